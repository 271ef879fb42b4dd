"""What the commands that use a trained model share: arguments, and how the model is loaded."""

import sys
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from atk.cli.parser import load_yaml

_Model = TypeVar("_Model", bound=nn.Module)


def add_run_arguments(parser: ArgumentParser) -> None:
    """Add the run folder, and how its model is used."""
    parser.add_argument("run", type=str, help="run folder, or a folder with a saved model")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, or cuda:1")
    parser.add_argument(
        "--clip_seconds",
        type=float | None,
        default=None,
        help="length of the windows that longer clips are cut into; null uses the length the run was trained with",
    )


def add_reading_arguments(parser: ArgumentParser) -> None:
    """Add how many audio files are read."""
    from atk.data.captions import OnError

    parser.add_argument("--batch_size", type=int, default=32, help="windows embedded at a time")
    parser.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="processes that read audio; 0 reads in the main process, null picks 1 on a CPU and up to 8 on a GPU",
    )
    parser.add_argument(
        "--on_error", type=OnError, default="skip", help="skip and name bad files, or stop at the first"
    )


def load_model(arguments: Namespace, *classes: type[_Model]) -> _Model:
    """Load the model of a run folder (its best checkpoint) or of a folder with a saved model.

    Fills in the options that the user did not set: `clip_seconds` from the run, so that windows are as long as in
    training, and `workers`.

    Raises:
        ValueError: the model is not an instance of any of `classes`.
    """
    from atk.device import default_workers, pick_device
    from atk.models import from_pretrained
    from atk.models.clap import CLAP
    from atk.ops.checks import at_least
    from atk.train.config import TrainConfig

    run = Path(arguments.run)
    device = pick_device(arguments.device)
    if "workers" in arguments and arguments.workers is None:
        arguments.workers = default_workers(device)
    for name, minimum in (("batch_size", 1), ("workers", 0)):
        if name in arguments:
            at_least(name, arguments[name], minimum)
    if arguments.clip_seconds is None:
        arguments.clip_seconds = saved_config(run).get("clip_seconds", TrainConfig.clip_seconds)
    model = from_pretrained(run)
    if not isinstance(model, classes):
        wanted = " or ".join(model_class.__name__ for model_class in classes)
        raise ValueError(f"{run} holds a {type(model).__name__}, but this command needs a {wanted}")
    if isinstance(model, CLAP) and (note := model.describe_cut(arguments.clip_seconds)):
        sys.stderr.write(note + "\n")
    return model.to(device).eval()


def beams(arguments: Namespace) -> int:
    """The beam width from the command line, else the run's."""
    from atk.train.difference import DifferenceConfig

    if arguments.beams is not None:
        return arguments.beams
    return saved_config(Path(arguments.run)).get("beams", DifferenceConfig.beams)


def saved_config(run: Path) -> dict[str, Any]:
    """The config.yaml of a run folder; empty without one."""
    path = run / "config.yaml"
    return load_yaml(path) if path.is_file() else {}


def reading_arguments(arguments: Namespace) -> dict[str, Any]:
    """The keyword arguments of functions that read many audio files."""
    return {name: arguments[name] for name in ("clip_seconds", "batch_size", "workers", "on_error")}
