"""The command that trains a model: its methods and their arguments, and what it does."""

import json
from dataclasses import fields
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from atk.cli.output import print_result
from atk.cli.parser import Parser


class _Method(NamedTuple):
    """A training method: a line of help, its configuration class, and its training function."""

    help: str
    config: Any
    train: Any


def _methods() -> dict[str, _Method]:
    from atk.train import aligned, difference, semisupervised, unified, unified_config

    return {
        "aligned": _Method(
            "Contrastive learning from clips and captions, with frames aligned to words.",
            aligned.AlignedConfig,
            aligned.train,
        ),
        "difference": _Method(
            "Captioning, optionally of the difference between a clip and reference clips.",
            difference.DifferenceConfig,
            difference.train,
        ),
        "semisupervised": _Method(
            "Contrastive learning from captioned clips and uncaptioned audio.",
            semisupervised.SemiSupervisedConfig,
            semisupervised.train,
        ),
        "unified": _Method(
            "One model for retrieval and captioning, by all of these at once.",
            unified_config.UnifiedConfig,
            unified.train,
        ),
    }


def add_train(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the methods of `atk train`, and the arguments of the one on the command line."""
    methods = parser.add_subcommands(title="methods", dest="method")
    for name, (text, config, _) in _methods().items():
        prog = f"atk train {name}"
        method = Parser(prog, description=text, usage=f"{prog} --data DATA --out OUT [options]")
        methods.add_subcommand(name, method, help=text)
        method.prog = prog
        if name not in argv[1:2]:
            continue
        method.add_argument("--config", action="config", help="YAML file with any of the settings below")
        method.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
        _add_lists(method)
        names = {field.name for field in fields(config)}
        method.add_class_arguments(config, skip={"data", "data_weights", "unlabeled", "loggers"} & names)
        if "unlabeled" in names:  # FOLDER [FOLDER...] instead of a list in brackets
            method.add_argument(
                "--unlabeled",
                nargs="+",
                default=[],
                metavar="FOLDER",
                help="folders of audio, tar shards in WebDataset layout, or folders of such shards; not needed if both "
                "loss terms that use audio without captions have weight 0",
            )


def _add_lists(parser: ArgumentParser) -> None:
    """Add the options that take several values: without brackets, and in YAML also as a single value."""
    from atk.train.loggers import LOGGERS

    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="DATA",
        help="data sets: folders with train.csv, optionally val.csv and test.csv, and the audio files that they list; "
        "tar shards; and other layouts (see the page on data)",
    )
    parser.add_argument(
        "--data_weights",
        nargs="+",
        type=float,
        metavar="WEIGHT",
        help="how often an epoch draws each clip of each data set: with 2, twice; with 0.5, every other epoch; null "
        "draws every clip once",
    )
    parser.add_argument(
        "--loggers",
        nargs="*",
        default=["tensorboard"],
        choices=LOGGERS,
        metavar="LOGGER",
        help="where the rows of metrics.jsonl go as well: tensorboard, wandb, mlflow, trackio; the last three need "
        "their packages, and work offline unless their environment variables name a server",
    )


def run_train(arguments: Namespace) -> None:
    """Run `atk train`."""
    method = _methods()[arguments.method]
    values = arguments[arguments.method]
    config = method.config(**{field.name: values[field.name] for field in fields(method.config)})
    summary = method.train(config, resume=values.resume)
    if summary is None:  # the first rank prints it
        return
    metrics = "" if summary["metrics"] is None else json.dumps(summary["metrics"], indent=2) + "\n"
    print_result(f"{metrics}{config.out}/summary.json")
