"""The `atk` command."""

import itertools
import json
import os
import sys
from dataclasses import fields
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

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
    parser, commands = _parser(argv)
    config = parser.parse_args(_with_saved_config(argv))
    name = config.subcommand
    try:
        commands[name](parser.instantiate(config)[name])
    except BrokenPipeError:
        sys.exit(FAILURE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(_report(f"atk {name}", error))


def _report(prog: str, error: Exception) -> int:
    import torch
    from safetensors import SafetensorError

    from atk.backend import BackendError
    from atk.trainer import Interrupted, TrainingError

    codes = {Interrupted: INTERRUPTED, TrainingError: FAILURE, torch.OutOfMemoryError: FAILURE}
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
    commands = parser.add_subcommands(title="commands")
    entries = {
        "train": ("Train a model; ends by evaluating test.csv (else val.csv) into summary.json.", _add_train, _train),
        "evaluate": ("Evaluate a run on a data folder.", _add_evaluate, _evaluate),
        "align": ("Draw the token-by-frame similarity of one clip (Figure 3.3).", _add_align, _align),
        "search": ("Rank the audio files of a folder for a text query.", _add_search, _search),
        "soundscapes": (
            "Write a synthetic captioned data set.",
            lambda parser: _add_soundscapes(parser, argv),
            _soundscapes,
        ),
        "kernels": ("Compile every Triton kernel for a GPU, with or without one.", _add_kernels, _kernels),
        "doctor": ("Versions, devices, backends, and what is missing.", lambda parser: None, _doctor),
    }
    for name, (text, add_arguments, _) in entries.items():
        command = _Parser(prog=f"atk {name}", description=text)
        commands.add_subcommand(name, command, help=text)
        # Arguments that import a whole model are built only for the command at hand.
        if name in argv[:1]:
            add_arguments(command)
    return parser, {name: entry[2] for name, entry in entries.items()}


def _add_train(parser: ArgumentParser) -> None:
    from atk.config import AlignedConfig

    methods = parser.add_subcommands(title="methods", dest="method")
    aligned = _Parser(prog="atk train aligned", description="Aligned contrastive learning (thesis ch. 3).")
    methods.add_subcommand("aligned", aligned, help="aligned contrastive learning")
    aligned.add_argument("--config", action="config", help="YAML file with any of the fields below")
    aligned.add_argument("--resume", action="store_true", help="go on from the last checkpoint of --out")
    aligned.add_class_arguments(AlignedConfig)


def _train(arguments: Namespace) -> None:
    from atk.aligned import train
    from atk.config import AlignedConfig

    values = arguments[arguments.method]
    config = AlignedConfig(**{field.name: values[field.name] for field in fields(AlignedConfig)})
    summary = train(config, resume=values.resume)
    print(json.dumps(summary["metrics"], indent=2))
    print(f"{config.out}/summary.json")


def _add_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="run folder, or a folder with a saved model")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument(
        "--clip_seconds", type=float | None, default=None, help="longer clips are embedded in such windows (the run's)"
    )


def _add_reading(parser: ArgumentParser) -> None:
    parser.add_argument("--batch_size", type=int, default=32, help="windows embedded at a time")
    parser.add_argument("--workers", type=int, default=1, help="processes that read audio")
    parser.add_argument("--on_error", type=str, default="skip", help="skip (and name) bad files, or raise at the first")


def _add_evaluate(parser: ArgumentParser) -> None:
    _add_run(parser)
    _add_reading(parser)
    parser.add_argument("--data", type=str, required=True, help="data folder")
    parser.add_argument("--split", type=str, default="test", help="train, val or test")
    parser.add_argument("--tags", action="store_true", help="also tag-level retrieval, by the folder's tags.csv")
    parser.add_argument("--zero_shot", action="store_true", help="also classification of the clips with a single tag")


def _add_align(parser: ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("audio", type=str, help="audio file")
    parser.add_argument("text", type=str, help="caption or words to look for")
    parser.add_argument(
        "--out", type=str, default="align.png", help="picture to write; the numbers go beside it as CSV"
    )
    parser.add_argument("--events", type=str, default=None, help="events.csv with true times (default: looked for)")


def _add_search(parser: ArgumentParser) -> None:
    _add_run(parser)
    _add_reading(parser)
    parser.add_argument("folder", type=str, help="folder of audio files, searched recursively")
    parser.add_argument("query", type=str, help="text to look for")
    parser.add_argument("--top", type=int, default=10, help="how many files to print")


def _add_soundscapes(parser: ArgumentParser, argv: list[str]) -> None:
    from atk.soundscapes import PRESETS, SoundscapeConfig

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_argument("out", type=str, help="folder to write")
    parser.add_argument("--preset", type=str, default="medium", help=f"{', '.join(PRESETS)}: sets the defaults below")
    parser.add_class_arguments(SoundscapeConfig)
    parser.set_defaults(PRESETS.get(_flag(argv, "--preset") or "medium", {}))


def _load(arguments: Namespace):
    """The model of a run folder (its best checkpoint) or of a folder with a saved model.

    Sets `arguments.clip_seconds` where the user did not: to the run's, so that windows are as long as in training.
    """
    from atk.checkpoint import best_or_last
    from atk.config import TrainConfig
    from atk.models.clap import CLAP
    from atk.trainer import pick_device

    run = Path(arguments.run)
    if arguments.clip_seconds is None:
        saved = yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").is_file() else {}
        arguments.clip_seconds = saved.get("clip_seconds", TrainConfig.clip_seconds)
    model = CLAP.from_pretrained(best_or_last(run) if (run / "checkpoints").is_dir() else run)
    return model.to(pick_device(arguments.device)).eval()


def _add_kernels(parser: ArgumentParser) -> None:
    parser.add_argument("--arch", type=str, help="compile for sm_80, sm_90, ...; needs no GPU")
    parser.add_argument("--quick", action="store_true", help="one configuration of each kind, not all of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("--tune", type=str, metavar="OUT.json", help="on a GPU: time launch numbers, write the fastest")
    parser.add_argument("--shape", type=int, nargs=5, metavar=("N_A", "N_T", "L_A", "L_T", "D"), help="to tune for")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="to tune for")


def _reading(arguments: Namespace) -> dict:
    return {name: arguments[name] for name in ("clip_seconds", "batch_size", "workers", "on_error")}


def _evaluate(arguments: Namespace) -> None:
    from atk.evaluate import embed_split, evaluate_retrieval, evaluate_tags, zero_shot

    model = _load(arguments)
    split = embed_split(model, arguments.data, arguments.split, progress="evaluate", **_reading(arguments))
    result = evaluate_retrieval(model, split)
    if arguments.tags:
        result["tags"] = evaluate_tags(model, split)
    if arguments.zero_shot:
        result["zero_shot"] = zero_shot(model, split)
    print(json.dumps(result, indent=2))


def _align(arguments: Namespace) -> None:
    from atk.align import align

    model = _load(arguments)
    options = {"clip_seconds": arguments.clip_seconds, "events": arguments.events}
    align(model, arguments.audio, arguments.text, arguments.out, **options)
    print(f"{arguments.out}\n{Path(arguments.out).with_suffix('.csv')}")


def _search(arguments: Namespace) -> None:
    from atk.data.captions import describe_skipped
    from atk.search import search

    model = _load(arguments)
    found = search(model, arguments.folder, arguments.query, progress="search", **_reading(arguments))
    if found.skipped:
        sys.stderr.write(describe_skipped(found.skipped) + "\n")
    for score, path in found.hits[: arguments.top]:
        print(f"{score:.3f}  {path}")


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

    from atk.backend import BackendError
    from atk.kernels.launch import unavailable

    reason = unavailable("cuda")
    if reason is not None:
        raise BackendError(f"--tune: {reason}")
    from atk.kernels.tune import SHAPES, tune

    shapes = [tuple(arguments.shape)] if arguments.shape else SHAPES
    tuned = tune(shapes, [getattr(torch, arguments.dtype)], arguments.tune)
    print(f"{tuned.tried} candidates, {tuned.failed} failed, {tuned.wrong} wrong")
    print(f"ATK_LAUNCH_TABLE={arguments.tune} makes atk use the table")


def _doctor(arguments: Namespace) -> None:
    from atk.doctor import report

    print(report())


def _soundscapes(arguments: Namespace) -> None:
    from atk.soundscapes import SoundscapeConfig, write_soundscapes

    values = {field.name: arguments[field.name] for field in fields(SoundscapeConfig)}
    print(write_soundscapes(arguments.out, SoundscapeConfig.preset(arguments.preset, **values)))
