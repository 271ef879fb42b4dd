"""The commands that make and check data folders: their arguments, and what they do."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from atk.cli.exit_codes import FAILURE
from atk.cli.output import print_result
from atk.cli.parser import Parser, flag_value
from atk.eval.outputs import check_output, on_one_line

if TYPE_CHECKING:
    from atk.data.stats import FolderStats

_CHANNELS = {1: "mono", 2: "stereo"}


def add_data(parser: ArgumentParser, _: list[str]) -> None:
    """Add the subcommands of `atk data`."""
    commands = parser.add_subcommands(title="commands", dest="command")
    about = "Check every row and file of data sets; exits with 1 if --on-error raise would stop training."
    check = Parser("atk data check", description=about, usage="atk data check DATA [DATA ...] [options]")
    commands.add_subcommand("check", check, help=about)
    check.prog = "atk data check"
    _add_sets(check)
    check.add_argument("--decode", action="store_true", help="decode every file in full, not only its header")
    check.add_argument("--workers", type=int, default=4, help="files to read at a time")
    check.add_argument("--json", action="store_true", help="print all problems as JSON instead of a table")
    _add_stats(commands)
    _add_import(commands)
    _add_list(commands)


def run_data(arguments: Namespace) -> None:
    """Run a subcommand of `atk data`."""
    run = {"check": _check, "stats": _stats, "import": _import, "list": _list}[arguments.command]
    run(arguments[arguments.command])


def _add_sets(parser: ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", help="data folder, any other data set, or any folder of audio")
    parser.add_argument(
        "--caption_column", type=str | None, default=None, help="name of the captions, as in atk train; null: see there"
    )


def _add_stats(commands: Any) -> None:
    """Add `atk data stats`."""
    about = "Count hours, formats, captions, words, and duplicates within and across the splits of data sets."
    stats = Parser("atk data stats", description=about, usage="atk data stats DATA [DATA ...] [options]")
    commands.add_subcommand("stats", stats, help=about)
    stats.prog = "atk data stats"
    _add_sets(stats)
    stats.add_argument("--json", action="store_true", help="print all numbers as JSON instead of tables")
    about = "PNG for histograms of the lengths of clips and captions"
    stats.add_argument("--out", type=str | None, default=None, help=about)


def _stats(options: Namespace) -> None:
    from atk.data.stats import data_stats, draw_stats

    if options.out is not None:
        check_output(options.out, b"\x89PNG", "a PNG picture")
    stats = data_stats(options.data, options.caption_column, progress="compare")
    if options.out is not None:
        draw_stats(stats, options.out)
    print_result(json.dumps(stats.to_dict(), indent=2) if options.json else "\n".join(_stats_lines(stats)))


def _stats_lines(stats: "FolderStats") -> Iterator[str]:
    """The numbers as tables."""
    names = {name: on_one_line(name) for name in ("split", *stats.splits)}
    width = max(6, *map(len, names.values()))
    row = f"{{:<{width}}} {{:>9}} {{:>9}} {{:>24}} {{:>10}} {{:>22}} {{:>11}}"
    yield row.format(
        "split", "clips", "hours", "seconds (median, range)", "captions", "words (median, range)", "vocabulary"
    )
    for name, split in stats.splits.items():
        record = split.to_dict()
        spans = [_span(record["seconds"], 1), _span(record["words"], 0)]
        counts = [f"{record[key]:,}" for key in ("clips", "captions", "vocabulary")]
        yield row.format(names[name], counts[0], f"{record['hours']:.2f}", spans[0], counts[1], spans[1], counts[2])
    for name, split in stats.splits.items():
        formats = {suffix or "without a file name": count for suffix, count in split.formats.items()}
        channels = {_CHANNELS.get(width, f"{width} channels"): count for width, count in split.channels.items()}
        rates = {f"{rate} Hz": count for rate, count in split.sample_rates.items()}
        parts = [f"{count:,} x {value}" for value, count in (rates | channels | formats).items()]
        yield f"{names[name]}: {', '.join(parts)}" + (f"; {split.skipped:,} skipped" if split.skipped else "")
    for group in stats.duplicates:
        plural, splits = "s" * (group.count > 1), " and ".join(names[split] for split in group.splits)
        example = on_one_line(group.examples[0])
        yield f"{group.count:,} duplicate{plural} by {group.by} in {splits}; first: {example}"
    if not stats.duplicates:
        yield "no duplicates by name, content, or caption"


def _span(summary: dict[str, float] | None, digits: int) -> str:
    """Median and range of a `to_dict` summary; "-" without values."""
    if summary is None:
        return "-"
    return "{median:.{d}f} ({min:.{d}f} to {max:.{d}f})".format(d=digits, **summary)


def _check(options: Namespace) -> None:
    from atk.data.check import check_data
    from atk.ops.checks import at_least

    at_least("workers", options.workers, 1)
    result = check_data(
        options.data, options.caption_column, decode=options.decode, workers=options.workers, progress="check"
    )
    if options.json:
        print_result(json.dumps([asdict(problem) for problem in result.problems], indent=2))
    else:
        counts = Counter((problem.stops, problem.category) for problem in result.problems)
        stops = sum(problem.stops for problem in result.problems)
        notes = f", {len(result.problems) - stops} notes" if len(result.problems) > stops else ""
        lines = [f"{result.rows} rows, {result.files} files, {stops} problems{notes}"]
        first = {(problem.stops, problem.category): problem for problem in reversed(result.problems)}
        for key, count in sorted(counts.items(), key=lambda item: (not item[0][0], -item[1])):
            effect = "stops" if key[0] else "note"
            lines.append(f"{count:>8}  {effect:<5}  {key[1]}; first: {on_one_line(first[key].name)}")
        print_result("\n".join(lines))
    if result.stops:
        sys.exit(FAILURE)


def _add_import(commands: Any) -> None:
    about = "Write a data folder for a published data set, whose audio stays where it is."
    parser = Parser("atk data import", description=about, usage="atk data import NAME SRC OUT [options]")
    commands.add_subcommand("import", parser, help=about)
    parser.prog = "atk data import"
    parser.add_argument("name", type=str, help="data set, one of those of `atk data list`")
    parser.add_argument("source", type=str, metavar="SRC", help="folder with the data set, in any known layout")
    parser.add_argument("out", type=str, metavar="OUT", help="folder to write; an earlier import there is replaced")
    parser.add_argument(
        "--tables",
        type=str | None,
        default=None,
        metavar="DIR",
        help="folder with the set's tables, if they are not in SRC or if SRC has several versions of them",
    )
    parser.add_argument(
        "--exclude",
        type=str,
        nargs="+",
        default=[],
        metavar="LIST",
        help="exclusion lists of WavCaps or DCASE (wavcaps, clotho): files, or names of files below SRC or --tables",
    )


def _import(options: Namespace) -> None:
    from atk.data.published import import_set

    report = import_set(
        options.name,
        options.source,
        options.out,
        tables=options.tables,
        exclude=options.exclude,
        progress=f"import {options.name}",
    )
    lines = [
        f"{split:<12} {count['clips']:>9} clips {count['captions']:>9} captions {count['left_out']:>9} left out"
        for split, count in report["splits"].items()
    ]
    for reason, entry in report["left_out"].items():
        lines.append(f"{entry['count']} left out: {reason}; first: {on_one_line(entry['names'][0])}")
    lines += [f"note: {on_one_line(note)}" for note in report["notes"]]
    print_result("\n".join([*lines, str(Path(options.out) / "import.json")]))


def _add_list(commands: Any) -> None:
    about = "List the published data sets that `atk data import` reads."
    parser = Parser("atk data list", description=about)
    commands.add_subcommand("list", parser, help=about)
    parser.prog = "atk data list"


def _list(_: Namespace) -> None:
    from atk.data.published import SETS

    rows = [
        f"{name}\n  tables    {' '.join(entry.tables)}\n  audio     {entry.audio}\n"
        f"  protocol  {entry.protocol}\n  evaluate  {' '.join(entry.evaluation) or '-'}\n  source    {entry.url}"
        for name, entry in SETS.items()
    ]
    print_result("\n".join(rows))


def add_soundscapes(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the arguments of `atk soundscapes`."""
    from atk.soundscapes import PRESETS, SoundscapeConfig

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    preset = flag_value(argv, "--preset") or "medium"
    parser.add_argument("out", type=str, help="folder to write")
    parser.add_argument(
        "--preset", type=Literal["easy", "medium", "hard"], default="medium", help="sets the defaults shown below"
    )
    parser.add_class_arguments(SoundscapeConfig, skip={"events"})
    parser.add_argument(
        "--events",
        type=tuple[int, int] | str,
        default=SoundscapeConfig.events,
        metavar="[FEWEST,MOST]|FOLDER",
        help="events per scene, 1 to 4, each of a different class; or a folder, as for --recordings",
    )
    parser.set_defaults(dict(PRESETS.get(preset, {})))


def run_soundscapes(arguments: Namespace) -> None:
    """Run `atk soundscapes`."""
    from atk.soundscapes import SoundscapeConfig, write_soundscapes

    values = {field.name: arguments[field.name] for field in fields(SoundscapeConfig)}
    if isinstance(values["events"], str):
        _take_recordings(values, values.pop("events"))
    print_result(str(write_soundscapes(arguments.out, SoundscapeConfig.preset(arguments.preset, **values))))


def _take_recordings(values: dict[str, Any], folder: str) -> None:
    """Take the value of --events for --recordings."""
    if not Path(folder).is_dir():
        wanted = "a pair such as '[1, 3]' (events per scene) or a folder of recordings"
        raise ValueError(f"--events must be {wanted}, got {folder!r}")
    if values["recordings"] not in ("", folder):
        raise ValueError(f"--events {folder} is the same setting as --recordings {values['recordings']}; give one")
    values["recordings"] = folder
