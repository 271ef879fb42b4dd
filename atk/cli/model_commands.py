"""The commands that use a trained model: their arguments, and what they do."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from atk.cli.output import print_result
from atk.cli.parser import load_yaml

if TYPE_CHECKING:
    from atk.models.captioner import Captioner
    from atk.models.clap import CLAP

_CAPTIONER_OPTIONS = ("beams", "references", "condition", "out")  # of `atk evaluate`
_Model = TypeVar("_Model", bound=nn.Module)


def _add_run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="run folder, or a folder with a saved model")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, or cuda:1")
    parser.add_argument(
        "--clip_seconds",
        type=float | None,
        default=None,
        help="length of the windows that longer clips are cut into; null uses the length the run was trained with",
    )


def _add_reading_arguments(parser: ArgumentParser) -> None:
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


def add_evaluate(parser: ArgumentParser) -> None:
    """Add the arguments of `atk evaluate`."""
    from atk.data.mixtures import Condition

    _add_run_arguments(parser)
    _add_reading_arguments(parser)
    parser.add_argument("--data", type=str, required=True, help="data folder, or any other data set")
    parser.add_argument(
        "--split", type=str, default="test", help="split to evaluate on; in a data folder, the CSV file of this name"
    )
    parser.add_argument(
        "--caption_column",
        type=str | None,
        default=None,
        help="name of the captions in shards, metadata files, and Hugging Face data sets; null uses the first that "
        "exists of caption, text, and captions",
    )
    parser.add_argument("--tags", action="store_true", help="also score retrieval by tag, from the folder's tags.csv")
    parser.add_argument("--zero_shot", action="store_true", help="also classify the clips that have exactly one tag")
    parser.add_argument(
        "--beams", type=int | None, default=None, help="captioners: width of the beam search; null uses the run's"
    )
    parser.add_argument(
        "--references",
        type=str | None,
        default=None,
        help="captioners: folder of recordings to mix into the clips; null uses the run's",
    )
    parser.add_argument(
        "--condition",
        type=Condition,
        default=None,
        help="captioners: which recording is the reference, as source/time; null uses the run's",
    )
    parser.add_argument("--examples", type=int, default=5, help="captioners: number of clips to list with captions")
    parser.add_argument(
        "--out", type=str | None, default=None, help="captioners: CSV file to write the captions of all clips to"
    )


def add_caption(parser: ArgumentParser) -> None:
    """Add the arguments of `atk caption`."""
    _add_run_arguments(parser)
    parser.add_argument("audio", type=str, help="audio file")
    parser.add_argument(
        "--reference",
        type=str,
        action="append",
        default=[],
        help="audio file whose sounds the captions leave out; may be given several times",
    )
    parser.add_argument("--beams", type=int | None, default=None, help="width of the beam search; null uses the run's")


def add_align(parser: ArgumentParser) -> None:
    """Add the arguments of `atk align`."""
    _add_run_arguments(parser)
    parser.add_argument("audio", type=str, help="audio file")
    parser.add_argument("text", type=str, help="caption, or words to look for")
    parser.add_argument(
        "--out", type=str, default="align.png", help="PNG file to write; the values go next to it as CSV"
    )
    parser.add_argument(
        "--events",
        type=str | None,
        default=None,
        help="events.csv with the true event times; null takes the nearest one in a parent folder of the audio file",
    )


def add_search(parser: ArgumentParser) -> None:
    """Add the arguments of `atk search`."""
    _add_run_arguments(parser)
    _add_reading_arguments(parser)
    parser.add_argument("folder", type=str, help="folder of audio files, searched recursively, or any other data set")
    parser.add_argument("query", type=str, help="text to look for")
    parser.add_argument("--top", type=int, default=10, help="number of files to print")


def _load(arguments: Namespace, *classes: type[_Model]) -> _Model:
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
        arguments.clip_seconds = _saved_config(run).get("clip_seconds", TrainConfig.clip_seconds)
    model = from_pretrained(run)
    if not isinstance(model, classes):
        wanted = " or ".join(model_class.__name__ for model_class in classes)
        raise ValueError(f"{run} holds a {type(model).__name__}, but this command needs a {wanted}")
    if isinstance(model, CLAP) and (note := model.describe_cut(arguments.clip_seconds)):
        sys.stderr.write(note + "\n")
    return model.to(device).eval()


def _beams(arguments: Namespace) -> int:
    """The beam width from the command line, else the run's."""
    from atk.train.difference import DifferenceConfig

    if arguments.beams is not None:
        return arguments.beams
    return _saved_config(Path(arguments.run)).get("beams", DifferenceConfig.beams)


def _saved_config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    return load_yaml(path) if path.is_file() else {}


def _reading_arguments(arguments: Namespace) -> dict[str, Any]:
    return {name: arguments[name] for name in ("clip_seconds", "batch_size", "workers", "on_error")}


def run_evaluate(arguments: Namespace) -> None:
    """Run `atk evaluate`."""
    from atk.models.captioner import Captioner
    from atk.models.clap import CLAP

    given = [name for name in ("tags", "zero_shot", *_CAPTIONER_OPTIONS) if arguments[name] not in (None, False)]
    model = _load(arguments, CLAP, Captioner)
    is_captioner = isinstance(model, Captioner)
    if unsupported := [name for name in given if (name in _CAPTIONER_OPTIONS) != is_captioner]:
        raise ValueError(f"{unsupported[0]}: {arguments.run} holds a {type(model).__name__}, which has no such option")
    if isinstance(model, Captioner):
        _evaluate_captioner(arguments, model)
    else:
        _evaluate_clap(arguments, model)


def _evaluate_clap(arguments: Namespace, model: "CLAP") -> None:
    from atk.data import open_data
    from atk.eval.retrieval import embed_split, evaluate_retrieval, evaluate_tags, zero_shot

    data = open_data(arguments.data, arguments.caption_column)
    split = embed_split(model, data, arguments.split, progress="evaluate", **_reading_arguments(arguments))
    result = evaluate_retrieval(model, split)
    if arguments.tags:
        result["tags"] = evaluate_tags(model, split)
    if arguments.zero_shot:
        result["zero_shot"] = zero_shot(model, split)
    print_result(json.dumps(result, indent=2))


def _evaluate_captioner(arguments: Namespace, model: "Captioner") -> None:
    from atk.data import MixConfig, open_data
    from atk.eval.captioning import CaptionSplit, evaluate_captions, format_captions, write_captions
    from atk.eval.outputs import check_output

    if arguments.out is not None:
        check_output(arguments.out, b"file_name,added,", "a listing of captions")
    saved = _saved_config(Path(arguments.run)).get("mix") or {}
    given = {name: arguments[name] for name in ("references", "condition") if arguments[name] is not None}
    split = CaptionSplit(
        open_data(arguments.data, arguments.caption_column),
        arguments.split,
        sample_rate=model.sample_rate,
        mix=MixConfig(**{**saved, **given}),
        **_reading_arguments(arguments),
    )
    result, captions = evaluate_captions(model, split, _beams(arguments), "evaluate")
    try:
        print_result(json.dumps(result, indent=2))
        print_result(format_captions(captions[: arguments.examples]))
    finally:
        if arguments.out is not None:
            write_captions(Path(arguments.out), captions)
    if arguments.out is not None:
        print_result(arguments.out)


def run_caption(arguments: Namespace) -> None:
    """Run `atk caption`."""
    from atk.eval.captioning import caption_file
    from atk.models.captioner import Captioner

    captions = caption_file(
        _load(arguments, Captioner),
        arguments.audio,
        arguments.reference,
        clip_seconds=arguments.clip_seconds,
        beams=_beams(arguments),
    )
    lines = [text if len(captions) == 1 else f"{start:.1f}-{end:.1f} s  {text}" for start, end, text in captions]
    print_result("\n".join(lines))


def run_align(arguments: Namespace) -> None:
    """Run `atk align`."""
    from atk.eval.figures import align as draw
    from atk.models.clap import CLAP

    model = _load(arguments, CLAP)
    draw(
        model,
        arguments.audio,
        arguments.text,
        arguments.out,
        clip_seconds=arguments.clip_seconds,
        events=arguments.events,
    )
    print_result(f"{arguments.out}\n{Path(arguments.out).with_suffix('.csv')}")


def run_search(arguments: Namespace) -> None:
    """Run `atk search`."""
    from atk.data.captions import describe_skipped
    from atk.eval.outputs import on_one_line
    from atk.eval.search import search as rank
    from atk.models.clap import CLAP

    model = _load(arguments, CLAP)
    result = rank(model, arguments.folder, arguments.query, progress="search", **_reading_arguments(arguments))
    if result.skipped:
        sys.stderr.write(describe_skipped(result.skipped) + "\n")
    lines = [f"{score:.3f}  {on_one_line(str(path))}" for score, path in result.hits[: arguments.top]]
    print_result("\n".join(lines))
