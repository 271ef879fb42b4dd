"""What the commands that use a captioner do, and their arguments."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from atk.cli.model_arguments import add_run_arguments, load, reading_arguments
from atk.cli.output import print_result
from atk.models.saved import run_settings

if TYPE_CHECKING:
    from atk.eval.caption_listing import Captions
    from atk.models.caption_model import CaptionModel

_SEARCH: dict[str, tuple[Any, str]] = {  # settings of the beam search besides its width
    "min_length": (int, "minimum length of a caption in tokens"),
    "no_repeat_ngram_size": (int, "no sequence of this many tokens occurs twice in a caption; 0 allows all"),
    "length_penalty": (float, "exponent of the length by which scores are divided; above 0 favors long captions"),
    "early_stopping": (bool, "end the search when there are as many complete captions as beams"),
}
GENERATION = ("beams", *_SEARCH)


def add_generation(parser: ArgumentParser) -> None:
    """Add the settings of the beam search."""
    parser.add_argument(
        "--beams",
        type=int | None,
        default=None,
        help="captioners: width of the beam search (num_beams); null uses the run's",
    )
    for name, (value, text) in _SEARCH.items():
        parser.add_argument(
            f"--{name}", type=value | None, default=None, help=f"captioners: {text}; null uses the run's"
        )


def add_captioner_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `atk evaluate` that only captioners take."""
    from atk.data.mixtures import Condition

    add_generation(parser)
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
    parser.add_argument(
        "--repeated",
        action="store_true",
        help="captioners with a mask: remove several references one after the other, not at once",
    )
    parser.add_argument(
        "--baseline",
        type=str | None,
        default=None,
        help="captioners: run of another captioner whose captions are listed, too; without a Diff block, it subtracts "
        "the features of references",
    )
    parser.add_argument("--examples", type=int, default=5, help="captioners: number of clips to list with captions")
    parser.add_argument(
        "--out", type=str | None, default=None, help="captioners: CSV file to write the captions of all clips to"
    )


def add_caption(parser: ArgumentParser) -> None:
    """Add the arguments of `atk caption`."""
    add_run_arguments(parser)
    parser.add_argument("audio", type=str, help="audio file")
    parser.add_argument(
        "--reference",
        type=str,
        action="append",
        default=[],
        help="audio file whose sounds the captions leave out; may be given several times",
    )
    parser.add_argument(
        "--repeated",
        action="store_true",
        help="with a mask: remove several references one after the other, not at once",
    )
    parser.add_argument(
        "--common", action="store_true", help="with a mask: describe what the file and all references have in common"
    )
    add_generation(parser)


def beam_search(arguments: Namespace) -> dict[str, Any]:
    """The settings of the beam search from the command line, else the run's."""
    from atk.models.generation import GenerationConfig
    from atk.train.captioning import CaptioningConfig

    run = run_settings(arguments.run)
    given = {name: arguments[name] for name in _SEARCH if arguments[name] is not None}
    beams = run.get("beams", CaptioningConfig.beams) if arguments.beams is None else arguments.beams
    return {"beams": beams, "generation": GenerationConfig(**{**(run.get("generation") or {}), **given})}


def _baseline(name: str, model: "CaptionModel") -> "CaptionModel":
    """The captioner to compare with, on the device of `model`; without a Diff block, it gets one that subtracts.

    Raises:
        ValueError: `name` holds no captioner, or one for another sample rate.
    """
    from atk.eval.embed import device_of
    from atk.models import from_pretrained
    from atk.models.caption_model import CaptionModel

    baseline = from_pretrained(name)
    if not isinstance(baseline, CaptionModel):
        raise ValueError(f"baseline: {name} holds a {type(baseline).__name__}, which writes no captions")
    if baseline.sample_rate != model.sample_rate:
        raise ValueError(
            f"baseline: must take audio at {model.sample_rate} Hz, as the model, got {baseline.sample_rate} Hz"
        )
    if baseline.config.difference == "none":
        baseline = baseline.with_difference("subtraction", baseline.config.heads)
    return baseline.to(device_of(model)).eval()


def evaluate_captioner(arguments: Namespace, model: "CaptionModel", retrieval: Callable[[], dict[str, Any]]) -> None:
    """Run `atk evaluate` with a captioner.

    Args:
        arguments: those of the command.
        model: the captioner.
        retrieval: returns the metrics of what else the model does, if anything; those of captions then are one of them.
    """
    from atk.data import MixConfig, open_data
    from atk.eval.caption_listing import format_captions, write_captions
    from atk.eval.captioning import CaptionSplit, evaluate_captions
    from atk.eval.outputs import check_output

    if arguments.out is not None:
        check_output(arguments.out, b"file_name,added,", "a listing of captions")
    saved = run_settings(arguments.run).get("mix") or {}
    given = {name: arguments[name] for name in ("references", "condition") if arguments[name] is not None}
    split = CaptionSplit(
        open_data(arguments.data, arguments.caption_column),
        arguments.split or "test",
        sample_rate=model.sample_rate,
        mix=MixConfig(**{**saved, **given}),
        **reading_arguments(arguments),
    )
    baseline = None if arguments.baseline is None else _baseline(arguments.baseline, model)
    others = retrieval()
    options = beam_search(arguments) | {"repeated": arguments.repeated}
    result, captions = evaluate_captions(model, split, progress="evaluate", **options)
    listed: list[Captions] = []
    if baseline is not None:
        result["baseline"], listed = evaluate_captions(baseline, split, progress="baseline", **options)
    try:
        print_result(json.dumps(others | {"captioning": result} if others else result, indent=2))
        print_result(format_captions(captions[: arguments.examples], listed))
    finally:
        if arguments.out is not None:
            write_captions(Path(arguments.out), captions, listed)
    if arguments.out is not None:
        print_result(arguments.out)


def run_caption(arguments: Namespace) -> None:
    """Run `atk caption`."""
    from atk.eval.caption_listing import window_lines
    from atk.eval.captioning import caption_file
    from atk.models.captioner import Captioner
    from atk.models.unified import Unified

    captions = caption_file(
        load(arguments, Captioner, Unified),
        arguments.audio,
        arguments.reference,
        clip_seconds=arguments.clip_seconds,
        repeated=arguments.repeated,
        common=arguments.common,
        **beam_search(arguments),
    )
    print_result(window_lines(captions))
