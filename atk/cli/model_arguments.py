"""What the commands that use a model share: the arguments that name it and say how audio is read, and its loading."""

import sys
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace
from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


def add_run_arguments(parser: ArgumentParser, also: str = "") -> None:
    """Add the model, its device, and the length of its windows; `also` names what else may take its place."""
    parser.add_argument(
        "run",
        type=str,
        metavar="model",
        help="run folder, checkpoint, folder or hub repository of a saved model or a ClapModel, or file of LAION-CLAP "
        f"or MS-CLAP 2023{also}",
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, or cuda:1")
    parser.add_argument(
        "--clip_seconds",
        type=float | None,
        default=None,
        help="length of the windows that longer clips are cut into; null uses the length the run was trained with, or "
        "that of the model's input",
    )
    parser.add_argument(
        "--tokenizer",
        type=str | None,
        default=None,
        help="folder or hub repository of the tokenizer for a file of LAION-CLAP or MS-CLAP; null uses roberta-base or "
        "gpt2",
    )


def add_long_clips(parser: ArgumentParser) -> None:
    """Add the choice of how clips are embedded that are longer than the model's input."""
    from atk.eval.sources import LongClips

    parser.add_argument(
        "--long_clips",
        type=LongClips,
        default="windows",
        help="clips longer than the model's input: average all windows, or do as the published models do: one random "
        "crop, or LAION-CLAP's feature fusion",
    )


def add_score(parser: ArgumentParser, unset: str | None = None) -> None:
    """Add the choice of the similarity; `unset` says what null means, if that is the default."""
    from atk.eval.scores import Score

    text = "similarity of a clip and a text: of their global vectors, of frames and tokens, or the mean of both"
    if unset is None:
        help_text = f"{text}; protocols always rank by global vectors"
        parser.add_argument("--score", type=Score, default="global", help=help_text)
    else:
        parser.add_argument("--score", type=Score | None, default=None, help=f"{text}; {unset}")


def add_reading_arguments(parser: ArgumentParser) -> None:
    """Add how audio is read."""
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


def load(arguments: Namespace, *classes: type[_Model]) -> _Model:
    """Load the model that the arguments name.

    Fills in the options that the user did not set: `clip_seconds` from the run, so that windows are as long as in
    training, or from the model; and `workers`.

    Raises:
        ValueError: the model is not an instance of any of `classes`.
    """
    from atk.device import default_workers, pick_device
    from atk.eval.sources import window_seconds
    from atk.models import from_pretrained
    from atk.models.clap import CLAP
    from atk.ops.checks import at_least

    device = pick_device(arguments.device)
    if "workers" in arguments and arguments.workers is None:
        arguments.workers = default_workers(device)
    for name, minimum in (("batch_size", 1), ("workers", 0)):
        if name in arguments:
            at_least(name, arguments[name], minimum)
    model = from_pretrained(arguments.run, arguments.tokenizer)
    if not isinstance(model, classes):
        wanted = " or ".join(model_class.__name__ for model_class in classes)
        raise ValueError(f"{arguments.run} holds a {type(model).__name__}, but this command needs a {wanted}")
    long_clips = arguments.long_clips if "long_clips" in arguments else "windows"
    seconds = window_seconds(arguments.run, model, long_clips, arguments.clip_seconds)
    arguments.clip_seconds = seconds
    if isinstance(model, CLAP) and seconds is not None and (note := model.describe_cut(seconds)):
        sys.stderr.write(note + "\n")
    return model.to(device).eval()


def reading_arguments(arguments: Namespace) -> dict[str, Any]:
    """The arguments of the functions that read audio."""
    return {name: arguments[name] for name in ("clip_seconds", "batch_size", "workers", "on_error")}
