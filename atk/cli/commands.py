"""The commands of `atk`: their arguments, and what they run."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from jsonargparse import ArgumentParser, Namespace

import atk
from atk.cli import data_commands, train_command
from atk.cli.exit_codes import FAILURE
from atk.cli.parser import Parser, flag_value, with_underscores
from atk.models.saved import load_yaml

Run = Callable[[Namespace], None]


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        help: one line of help.
        add_arguments: adds the arguments to a parser; also gets the command line, on which some arguments depend.
        run: runs the command.
        usage: its arguments in the usage line, if listing all of them would be too long.
    """

    help: str
    add_arguments: Callable[[ArgumentParser, list[str]], None]
    run: Run
    usage: str | None = None


def parse(argv: list[str]) -> tuple[str, Run, Namespace]:
    """Parse a command line.

    Args:
        argv: the words after `atk`.

    Returns:
        The name of the command, the function that runs it, and the function's argument.

    Raises:
        SystemExit: with code 0 for `--help` and `--version`, with code 2 for a mistake.
        ValueError: the `--config` file is missing, does not hold a YAML mapping, or has an unknown setting.
    """
    argv = _with_saved_config(with_underscores(argv))
    parser = build_parser(argv)
    Parser.config_file = flag_value(argv, "--config")
    if Parser.config_file is not None:
        command = parser.leaf(argv)
        if unknown := next(command.unknown_settings(load_yaml(Parser.config_file)), None):
            raise ValueError(f"{Parser.config_file}: {unknown!r} is no setting of {command.prog}; remove or correct it")
    if argv[:1] in (["align"], ["search"]):  # any number of texts
        argv = [argv[0], *parser.subcommand(argv[0]).options_first(argv[1:])]
    config = parser.parse_args(argv)
    name = config.subcommand
    return name, _commands()[name].run, parser.instantiate(config)[name]


def build_parser(argv: list[str]) -> Parser:
    """The parser of a command line, whose option names are spelled with underscores.

    Only the command on that line gets its arguments, because adding them may import a whole model.
    """
    about = "Fused kernels and lean trainers for audio-text learning."
    parser = Parser("atk", description=about, version=atk.__version__)
    subcommands = parser.add_subcommands(title="commands")
    for name, command in _commands().items():
        usage = None if command.usage is None else f"atk {name} {command.usage}"
        subparser = Parser(f"atk {name}", description=command.help, usage=usage)
        subcommands.add_subcommand(name, subparser, help=command.help)
        subparser.prog = f"atk {name}"
        if name in argv[:1]:
            command.add_arguments(subparser, argv)
    return parser


def _commands() -> dict[str, Command]:
    return {
        "train": Command(
            "Train a model, then evaluate it on test.csv (else val.csv) and write summary.json.",
            train_command.add_train,
            train_command.run_train,
        ),
        "evaluate": _model_command("Evaluate a trained model on a data folder.", "evaluate"),
        "caption": _model_command(
            "Describe an audio file, or what it contains that a reference does not.", "caption", "caption_commands"
        ),
        "align": _model_command("Draw which words match which moments of an audio file.", "align"),
        "search": _model_command(
            "Rank the audio files of a folder or an index, or moments in them, by text queries.",
            "search",
            "search_command",
        ),
        "index": _model_command(
            "Build an index of the audio files of a folder, or bring it up to date.", "index", "index_command"
        ),
        "app": _model_command("Serve a page to search, caption, and see the curves of a run.", "app", "app_command"),
        "embed": _model_command("Write the embeddings of the audio files of a folder.", "embed", "embed_commands"),
        "export": _model_command("Write a model for use without atk.", "export", "embed_commands"),
        "data": Command(
            "Check data folders, and import published data sets.", data_commands.add_data, data_commands.run_data
        ),
        "soundscapes": Command(
            "Write a synthetic data set of captioned soundscapes.",
            data_commands.add_soundscapes,
            data_commands.run_soundscapes,
            "OUT [options]",
        ),
        "plan": Command(
            "Predict memory and time of a training step without running it.", _add_plan, _plan, "[options]"
        ),
        "reproduce": Command(
            "Train and evaluate the rows of a table of the thesis, and set the results beside its figures.",
            _add_reproduce,
            _reproduce,
            "TABLE --out OUT --data NAME=PATH [options]",
        ),
        "kernels": Command("Compile every Triton kernel for a GPU, which need not be present.", _add_kernels, _kernels),
        "bench": Command(
            "Time the ops against other implementations; exits with 1 on a regression.", _add_bench, _bench, "[options]"
        ),
        "doctor": Command("Show versions, devices, and backends, and what is missing.", _add_doctor, _doctor),
    }


def _model_command(text: str, name: str, module: str = "model_commands") -> Command:
    """A command of a module of `atk.cli`, which is imported when it is used."""

    def add_arguments(parser: ArgumentParser, _: list[str]) -> None:
        getattr(importlib.import_module(f"atk.cli.{module}"), f"add_{name}")(parser)

    def run(arguments: Namespace) -> None:
        getattr(importlib.import_module(f"atk.cli.{module}"), f"run_{name}")(arguments)

    return Command(text, add_arguments, run)


def _with_saved_config(argv: list[str]) -> list[str]:
    """With `--resume`, put the config.yaml of the run first, so that flags override it."""
    if argv[:1] != ["train"] or "--resume" not in argv or flag_value(argv, "--config") is not None:
        return argv
    out = flag_value(argv, "--out")
    if out is None or not (Path(out) / "config.yaml").is_file():
        return argv
    return [*argv[:2], "--config", str(Path(out) / "config.yaml"), *argv[2:]]


def _add_plan(parser: ArgumentParser, argv: list[str]) -> None:
    from atk.plan.command import add_arguments

    add_arguments(parser, flag_value(argv, "--method") or "aligned")


def _plan(arguments: Namespace) -> None:
    from atk.plan.command import run

    run(arguments)


def _add_reproduce(parser: ArgumentParser, _: list[str]) -> None:
    from atk.recipes.command import add_arguments

    add_arguments(parser)


def _reproduce(arguments: Namespace) -> None:
    from atk.recipes.command import run

    run(arguments)


def _add_kernels(parser: ArgumentParser, _: list[str]) -> None:
    parser.add_argument(
        "--arch",
        type=str | None,
        default=None,
        help="compile for sm_80, sm_90, ... without a GPU: registers, spills, how far copies run ahead, clocks by pipe",
    )
    parser.add_argument(
        "--quick", action="store_true", help="compile some configurations of each kernel instead of all of them"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes that compile")
    parser.add_argument(
        "--tune",
        type=str | None,
        default=None,
        metavar="OUT.json",
        help="on a GPU: time the launch configurations and write the fastest ones to this file",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=5,
        metavar=("N_A", "N_T", "L_A", "L_T", "D"),
        help="clips, captions, frames, tokens, and width to tune for; default: a list of common shapes",
    )
    parser.add_argument(
        "--dtype", type=Literal["bfloat16", "float16", "float32"], default="bfloat16", help="data type to tune for"
    )


def _kernels(arguments: Namespace) -> None:
    if arguments.tune is not None:
        _tune(arguments)
    if arguments.arch is None:
        if arguments.tune is None:
            raise ValueError("give --arch sm_90 (for example) to compile, or --tune OUT.json to tune")
        return
    from atk.kernels.compile import compile_report, format_table
    from atk.kernels.compile_cases import every_case, representative_cases

    cases = representative_cases() if arguments.quick else every_case()
    rows = compile_report(arguments.arch, cases, arguments.workers, progress=True)
    print(format_table(rows))
    if any(row.spills for row in rows):
        sys.exit(FAILURE)


def _tune(arguments: Namespace) -> None:
    import torch

    from atk.eval.outputs import check_output
    from atk.kernels.availability import unavailable
    from atk.ops.backend import BackendError

    reason = unavailable("cuda")
    if reason is not None:
        raise BackendError(f"--tune: {reason}")
    from atk.kernels.tune import SHAPES, tune

    check_output(arguments.tune, b"{", "a launch table")
    shapes = [tuple(arguments.shape)] if arguments.shape else SHAPES
    tuned = tune(shapes, [getattr(torch, arguments.dtype)], arguments.tune)
    print(f"{tuned.tried} candidates, {tuned.failed} failed, {tuned.wrong} wrong")
    print(f"set ATK_LAUNCH_TABLE={arguments.tune} to use the table")


def _add_bench(parser: ArgumentParser, _: list[str]) -> None:
    from atk.bench.command import add_arguments

    add_arguments(parser)


def _bench(arguments: Namespace) -> None:
    from atk.bench.command import run

    if run(arguments):
        sys.exit(FAILURE)


def _add_doctor(parser: ArgumentParser, _: list[str]) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the kernels with the reference on this machine; exits with 1 if a result is wrong",
    )


def _doctor(arguments: Namespace) -> None:
    from atk.cli import doctor

    doctor.run(check=arguments.check)
