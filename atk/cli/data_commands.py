"""The commands that make and check data folders: their arguments, and what they do."""

import json
import sys
from collections import Counter
from dataclasses import asdict, fields
from typing import Literal

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from atk.cli.exit_codes import FAILURE
from atk.cli.output import print_result
from atk.cli.parser import Parser, flag_value
from atk.eval.outputs import on_one_line


def add_data(parser: ArgumentParser, _: list[str]) -> None:
    """Add the subcommands of `atk data`."""
    commands = parser.add_subcommands(title="commands", dest="command")
    about = "Check every row and file of data sets; exits with 1 if --on-error raise would stop training."
    check = Parser("atk data check", description=about, usage="atk data check DATA [DATA ...] [options]")
    commands.add_subcommand("check", check, help=about)
    check.prog = "atk data check"
    check.add_argument("data", nargs="+", help="data folder, any other data set, or any folder of audio")
    check.add_argument(
        "--caption_column", type=str | None, default=None, help="name of the captions, as in atk train; null: see there"
    )
    check.add_argument("--decode", action="store_true", help="decode every file in full, not only its header")
    check.add_argument("--workers", type=int, default=4, help="files to read at a time")
    check.add_argument("--json", action="store_true", help="print all problems as JSON instead of a table")


def run_data(arguments: Namespace) -> None:
    """Run `atk data check`."""
    from atk.data.check import check_data
    from atk.ops.checks import at_least

    options = arguments.check
    at_least("workers", options.workers, 1)
    result = check_data(
        options.data, options.caption_column, decode=options.decode, workers=options.workers, progress="check"
    )
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
