"""The `atk` command."""

import itertools
import json
import os
import sys
from dataclasses import fields
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from atk.cli import commands

MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130


class _Parser(ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        first = " ".join(line.strip() for line in str(message).splitlines() if line.strip())
        sys.stderr.write(f"{self.prog}: {first} (see {self.prog} --help)\n")
        sys.exit(MISTAKE)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `atk` command; a user's mistake ends with one line on stderr and exit code 2."""
    argv = [_underscores(arg) for arg in (sys.argv[1:] if argv is None else argv)]
    parser, functions = _parser(argv)
    config = parser.parse_args(_with_saved_config(argv))
    name = config.subcommand
    try:
        functions[name](parser.instantiate(config)[name])
    except BrokenPipeError:
        sys.exit(FAILURE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(_report(f"atk {name}", error))


def _report(prog: str, error: Exception) -> int:
    import torch
    from safetensors import SafetensorError

    from atk.ops.backend import BackendError
    from atk.train.ranks import RankLost
    from atk.train.trainer import Interrupted, TrainingError

    codes = {Interrupted: INTERRUPTED, TrainingError: FAILURE, RankLost: FAILURE, torch.OutOfMemoryError: FAILURE}
    mistakes = (ValueError, OSError, ImportError, BackendError, SafetensorError, yaml.YAMLError)
    for kind, code in (*codes.items(), (mistakes, MISTAKE)):
        if isinstance(error, kind):
            sys.stderr.write(f"{prog}: {' '.join(str(error).split())}\n")
            return code
    raise error


def _underscores(arg: str) -> str:
    """`--batch-size=64` as `--batch_size=64`."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _with_saved_config(argv: list[str]) -> list[str]:
    """On `--resume` the run's own config.yaml comes first, so that flags after it override it."""
    if argv[:1] != ["train"] or "--resume" not in argv or "--config" in argv:
        return argv
    out = _flag(argv, "--out")
    if out is None or not (Path(out) / "config.yaml").is_file():
        return argv
    return [*argv[:2], "--config", str(Path(out) / "config.yaml"), *argv[2:]]


def _flag(argv: list[str], name: str) -> str | None:
    """The value of a flag, before anything is parsed."""
    parts = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith(f"{name}=") else [arg])]
    return next((value for flag, value in itertools.pairwise(parts) if flag == name), None)


def _parser(argv: list[str]) -> tuple[ArgumentParser, dict]:
    parser = _Parser(prog="atk", description="Fused kernels and lean trainers for audio-text learning.")
    subcommands = parser.add_subcommands(title="commands")
    entries = {
        "train": ("Train a model; ends by evaluating test.csv (else val.csv) into summary.json.", _add_train, _train),
        "evaluate": ("Evaluate a run on a data folder.", commands.add_evaluate, commands.evaluate),
        "caption": (
            "Describe an audio file, or what it has and a reference has not.",
            commands.add_caption,
            commands.caption,
        ),
        "align": ("Draw the token-by-frame similarity of one clip (Figure 3.3).", commands.add_align, commands.align),
        "search": ("Rank the audio files of a folder for a text query.", commands.add_search, commands.search),
        "soundscapes": (
            "Write a synthetic captioned data set.",
            lambda parser: _add_soundscapes(parser, argv),
            _soundscapes,
        ),
        "plan": ("Memory and time of a training step, before any run.", lambda parser: _add_plan(parser, argv), _plan),
        "kernels": ("Compile every Triton kernel for a GPU, with or without one.", _add_kernels, _kernels),
        "bench": ("Time the ops beside other implementations; exit 1 on a regression.", _add_bench, _bench),
        "doctor": ("Versions, devices, backends, and what is missing.", lambda parser: None, _doctor),
    }
    for name, (text, add_arguments, _) in entries.items():
        command = _Parser(prog=f"atk {name}", description=text)
        subcommands.add_subcommand(name, command, help=text)
        # Arguments that import a whole model are built only for the command at hand.
        if name in argv[:1]:
            add_arguments(command)
    return parser, {name: entry[2] for name, entry in entries.items()}


def _add_train(parser: ArgumentParser) -> None:
    from atk.train.aligned import AlignedConfig
    from atk.train.difference import DifferenceConfig
    from atk.train.semisupervised import SemiSupervisedConfig

    methods = parser.add_subcommands(title="methods", dest="method")
    for name, text, config in (
        ("aligned", "Aligned contrastive learning (thesis ch. 3).", AlignedConfig),
        ("difference", "Captioning and audio difference learning (thesis ch. 4).", DifferenceConfig),
        ("semisupervised", "Contrastive learning with unlabelled audio (thesis ch. 5).", SemiSupervisedConfig),
    ):
        method = _Parser(prog=f"atk train {name}", description=text)
        methods.add_subcommand(name, method, help=text)
        method.add_argument("--config", action="config", help="YAML file with any of the fields below")
        method.add_argument("--resume", action="store_true", help="go on from the last checkpoint of --out")
        method.add_class_arguments(config, skip={"unlabeled"} & {field.name for field in fields(config)})
        if config is SemiSupervisedConfig:  # FOLDER [FOLDER...], not a list in brackets
            method.add_argument(
                "--unlabeled", nargs="+", default=[], metavar="FOLDER",
                help="folders of audio, tar shards (WebDataset layout) or folders of them; not needed where both terms "
                "that use unlabelled audio have weight 0",
            )  # fmt: skip


def _train(arguments: Namespace) -> None:
    from atk.train import aligned, difference, semisupervised
    from atk.train.aligned import AlignedConfig
    from atk.train.difference import DifferenceConfig
    from atk.train.semisupervised import SemiSupervisedConfig

    methods = {
        "aligned": (AlignedConfig, aligned.train),
        "difference": (DifferenceConfig, difference.train),
        "semisupervised": (SemiSupervisedConfig, semisupervised.train),
    }
    make_config, train = methods[arguments.method]
    values = arguments[arguments.method]
    config = make_config(**{field.name: values[field.name] for field in fields(make_config)})
    summary = train(config, resume=values.resume)
    if summary is None:  # another rank tells
        return
    print(json.dumps(summary["metrics"], indent=2))
    print(f"{config.out}/summary.json")


def _add_soundscapes(parser: ArgumentParser, argv: list[str]) -> None:
    from atk.soundscapes import PRESETS, SoundscapeConfig

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_argument("out", type=str, help="folder to write")
    parser.add_argument("--preset", type=str, default="medium", help=f"{', '.join(PRESETS)}: sets the defaults below")
    parser.add_class_arguments(SoundscapeConfig)
    parser.set_defaults(PRESETS.get(_flag(argv, "--preset") or "medium", {}))


def _add_plan(parser: ArgumentParser, argv: list[str]) -> None:
    from atk.plan.command import add_arguments

    add_arguments(parser, _flag(argv, "--method") or "aligned")


def _plan(arguments: Namespace) -> None:
    from atk.plan.command import run

    run(arguments)


def _add_kernels(parser: ArgumentParser) -> None:
    parser.add_argument("--arch", type=str, help="compile for sm_80, sm_90, ...; needs no GPU")
    parser.add_argument("--quick", action="store_true", help="one configuration of each kind, not all of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("--tune", type=str, metavar="OUT.json", help="on a GPU: time launch numbers, write the fastest")
    parser.add_argument("--shape", type=int, nargs=5, metavar=("N_A", "N_T", "L_A", "L_T", "D"), help="to tune for")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="to tune for")


def _kernels(arguments: Namespace) -> None:
    if arguments.tune is not None:
        _tune(arguments)
    if arguments.arch is None:
        if arguments.tune is None:
            raise ValueError("needs --arch sm_90, say, to compile, or --tune OUT.json to time")
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

    from atk.kernels.launch import unavailable
    from atk.ops.backend import BackendError

    reason = unavailable("cuda")
    if reason is not None:
        raise BackendError(f"--tune: {reason}")
    from atk.kernels.tune import SHAPES, tune

    shapes = [tuple(arguments.shape)] if arguments.shape else SHAPES
    tuned = tune(shapes, [getattr(torch, arguments.dtype)], arguments.tune)
    print(f"{tuned.tried} candidates, {tuned.failed} failed, {tuned.wrong} wrong")
    print(f"ATK_LAUNCH_TABLE={arguments.tune} makes atk use the table")


def _add_bench(parser: ArgumentParser) -> None:
    from atk.bench.command import add_arguments

    add_arguments(parser)


def _bench(arguments: Namespace) -> None:
    from atk.bench.command import run

    if run(arguments):
        sys.exit(FAILURE)


def _doctor(arguments: Namespace) -> None:
    from atk.cli.doctor import report

    print(report())


def _soundscapes(arguments: Namespace) -> None:
    from atk.soundscapes import SoundscapeConfig, write_soundscapes

    values = {field.name: arguments[field.name] for field in fields(SoundscapeConfig)}
    print(write_soundscapes(arguments.out, SoundscapeConfig.preset(arguments.preset, **values)))
