"""The commands that make and check data folders: their arguments, and what they do."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from atk.cli.exit_codes import FAILURE
from atk.cli.output import print_result
from atk.cli.parser import Parser, flag_value
from atk.eval.outputs import check_output, on_one_line

if TYPE_CHECKING:
    from atk.data.stats import FolderStats


def add_data(parser: ArgumentParser, _: list[str]) -> None:
    """Add the subcommands of `atk data`."""
    commands = parser.add_subcommands(title="commands", dest="command")
    about = "Check every row and file of a data folder; exits with 1 if --on-error raise would stop training."
    check = Parser("atk data check", description=about, usage="atk data check DIR [options]")
    commands.add_subcommand("check", check, help=about)
    check.prog = "atk data check"
    check.add_argument("folder", type=str, help="data folder, or any folder of audio")
    check.add_argument("--decode", action="store_true", help="decode every file in full, not only its header")
    check.add_argument("--workers", type=int, default=4, help="files to read at a time")
    check.add_argument("--json", action="store_true", help="print all problems as JSON instead of a table")
    _add_stats(commands)


def _add_stats(commands: Any) -> None:
    """Add `atk data stats`."""
    about = "Count hours, formats, captions, words, and duplicates within and across the splits of a data folder."
    stats = Parser("atk data stats", description=about, usage="atk data stats DIR [options]")
    commands.add_subcommand("stats", stats, help=about)
    stats.prog = "atk data stats"
    stats.add_argument("folder", type=str, help="data folder, or any folder of audio")
    stats.add_argument("--json", action="store_true", help="print all numbers as JSON instead of tables")
    about = "PNG for histograms of the lengths of clips and captions"
    stats.add_argument("--out", type=str | None, default=None, help=about)


def run_data(arguments: Namespace) -> None:
    """Run a subcommand of `atk data`."""
    if arguments.command == "stats":
        _run_stats(arguments.stats)
    else:
        _run_check(arguments.check)


def _run_stats(options: Namespace) -> None:
    from atk.data.stats import draw_stats, folder_stats

    if options.out is not None:
        check_output(options.out, b"\x89PNG", "a PNG picture")
    stats = folder_stats(options.folder, progress="compare")
    if options.out is not None:
        draw_stats(stats, options.out)
    print_result(json.dumps(stats.to_dict(), indent=2) if options.json else "\n".join(_stats_lines(stats)))


def _stats_lines(stats: "FolderStats") -> Iterator[str]:
    """The numbers as tables."""
    row = "{:<6} {:>9} {:>9} {:>24} {:>10} {:>22} {:>11}"
    yield row.format(
        "split", "clips", "hours", "seconds (median, range)", "captions", "words (median, range)", "vocabulary"
    )
    for name, split in stats.splits.items():
        record = split.to_dict()
        spans = [_span(record["seconds"], 1), _span(record["words"], 0)]
        counts = [f"{record[key]:,}" for key in ("clips", "captions", "vocabulary")]
        yield row.format(name, counts[0], f"{record['hours']:.2f}", spans[0], counts[1], spans[1], counts[2])
    for name, split in stats.splits.items():
        shares = (("Hz", split.sample_rates), ("channels", split.channels), ("", split.formats))
        parts = [f"{count:,} x {value} {unit}".rstrip() for unit, counts in shares for value, count in counts.items()]
        yield f"{name}: {', '.join(parts)}" + (f"; {split.skipped:,} skipped" if split.skipped else "")
    for group in stats.duplicates:
        example = on_one_line(group.examples[0])
        yield f"{group.count:,} duplicates by {group.by} in {' and '.join(group.splits)}; first: {example}"
    if not stats.duplicates:
        yield "no duplicates by name, content, or caption"


def _span(summary: dict[str, float] | None, digits: int) -> str:
    """Median and range of a `to_dict` summary; "-" without values."""
    if summary is None:
        return "-"
    return "{median:.{d}f} ({min:.{d}f} to {max:.{d}f})".format(d=digits, **summary)


def _run_check(options: Namespace) -> None:
    from atk.data.check import check_folder
    from atk.ops.checks import at_least

    at_least("workers", options.workers, 1)
    result = check_folder(options.folder, decode=options.decode, workers=options.workers, progress="check")
    if options.json:
        print_result(json.dumps([asdict(problem) for problem in result.problems], indent=2))
    else:
        lines = [f"{result.rows} rows, {result.files} files, {len(result.problems)} problems"]
        counts = Counter((problem.stops, problem.category) for problem in result.problems)
        first = {(problem.stops, problem.category): problem for problem in reversed(result.problems)}
        for key, count in sorted(counts.items(), key=lambda item: (not item[0][0], -item[1])):
            effect = "stops" if key[0] else "note"
            lines.append(f"{count:>8}  {effect:<5}  {key[1]}; first: {on_one_line(first[key].name)}")
        print_result("\n".join(lines))
    if result.stops:
        sys.exit(FAILURE)


def add_soundscapes(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the arguments of `atk soundscapes`."""
    from atk.soundscapes import PRESETS, SoundscapeConfig

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    preset = flag_value(argv, "--preset") or "medium"
    parser.add_argument("out", type=str, help="folder to write")
    parser.add_argument(
        "--preset", type=Literal["easy", "medium", "hard"], default="medium", help="sets the defaults shown below"
    )
    parser.add_class_arguments(SoundscapeConfig)
    parser.set_defaults(dict(PRESETS.get(preset, {})))


def run_soundscapes(arguments: Namespace) -> None:
    """Run `atk soundscapes`."""
    from atk.soundscapes import SoundscapeConfig, write_soundscapes

    values = {field.name: arguments[field.name] for field in fields(SoundscapeConfig)}
    print(write_soundscapes(arguments.out, SoundscapeConfig.preset(arguments.preset, **values)))
