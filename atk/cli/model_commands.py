"""The commands that evaluate a model, describe audio, and draw alignments: their arguments, and what they do."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from atk.cli.model_arguments import (
    add_long_clips,
    add_reading_arguments,
    add_run_arguments,
    add_score,
    load,
    reading_arguments,
)
from atk.cli.output import print_result
from atk.models.saved import run_settings

if TYPE_CHECKING:
    from atk.eval.captioning import Captions
    from atk.models.caption_model import CaptionModel
    from atk.models.clap import CLAP

_CLAP_OPTIONS = ("tags", "zero_shot", "protocol", "prompts")  # of `atk evaluate`
_CAPTIONER_OPTIONS = ("beams", "references", "condition", "out")  # of `atk evaluate`


def add_evaluate(parser: ArgumentParser) -> None:
    """Add the arguments of `atk evaluate`."""
    from atk.data.mixtures import Condition
    from atk.eval.prompts import Prompts
    from atk.eval.protocols import ProtocolName

    add_run_arguments(parser)
    add_reading_arguments(parser)
    parser.add_argument("--data", type=str, required=True, help="data folder, or any other data set")
    parser.add_argument(
        "--split",
        type=str | None,
        default=None,
        help="split to evaluate on; in a data folder, the CSV file of this name; null uses test, or the splits that "
        "the protocols are defined on",
    )
    parser.add_argument(
        "--caption_column",
        type=str | None,
        default=None,
        help="name of the captions in shards, metadata files, and Hugging Face data sets; null uses the first that "
        "exists of caption, text, and captions",
    )
    parser.add_argument(
        "--protocol",
        type=ProtocolName,
        nargs="+",
        default=[],
        help="also evaluate by these published protocols; see docs/evaluation.md",
    )
    parser.add_argument(
        "--prompts",
        type=Prompts,
        nargs="+",
        default=[],
        help="whose prompts the protocol zero-shot uses; all that are published for the set by default",
    )
    add_score(parser)
    add_long_clips(parser)
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
    add_run_arguments(parser)
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
    add_run_arguments(parser)
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


def _beams(arguments: Namespace) -> int:
    """The beam width from the command line, else the run's."""
    from atk.train.difference import DifferenceConfig

    if arguments.beams is not None:
        return arguments.beams
    return run_settings(arguments.run).get("beams", DifferenceConfig.beams)


def run_evaluate(arguments: Namespace) -> None:
    """Run `atk evaluate`."""
    from atk.eval.captioning import format_captions, write_captions
    from atk.eval.outputs import check_output
    from atk.models.caption_model import CaptionModel
    from atk.models.captioner import Captioner
    from atk.models.clap import CLAP

    given = [name for name in (*_CLAP_OPTIONS, *_CAPTIONER_OPTIONS) if arguments[name] not in (None, False, [])]
    given += ["score"] * (arguments.score != "global")
    model = load(arguments, CLAP, Captioner)
    needed = {name: CaptionModel if name in _CAPTIONER_OPTIONS else CLAP for name in given}
    if unsupported := [name for name, wanted in needed.items() if not isinstance(model, wanted)]:
        raise ValueError(f"{unsupported[0]}: {arguments.run} holds a {type(model).__name__}, which has no such option")
    if arguments.out is not None:
        check_output(arguments.out, b"file_name,added,", "a listing of captions")
    result = _evaluate_clap(arguments, model) if isinstance(model, CLAP) else {}
    if not isinstance(model, CaptionModel):
        print_result(json.dumps(result, indent=2))
        return
    scores, captions = _evaluate_captioner(arguments, model)
    try:
        print_result(json.dumps(result | {"captioning": scores} if result else scores, indent=2))
        print_result(format_captions(captions[: arguments.examples]))
    finally:
        if arguments.out is not None:
            write_captions(Path(arguments.out), captions)
    if arguments.out is not None:
        print_result(arguments.out)


def _evaluate_clap(arguments: Namespace, model: "CLAP") -> dict[str, Any]:
    from atk.data import open_data
    from atk.eval.protocols import check_protocols, evaluate_protocols, protocol_split
    from atk.eval.retrieval import embed_split, evaluate_retrieval, evaluate_tags, zero_shot

    check_protocols(
        arguments.protocol,
        arguments.data,
        split=arguments.split,
        prompts=arguments.prompts,
        clip_seconds=arguments.clip_seconds,
    )
    name = arguments.split or (protocol_split(arguments.protocol[0], arguments.data) if arguments.protocol else "test")
    reading = reading_arguments(arguments) | {"progress": "evaluate"}
    split = embed_split(
        model,
        open_data(arguments.data, arguments.caption_column),
        name,
        side_files=arguments.long_clips == "windows",  # otherwise frames have no times
        frames=arguments.score != "global",
        **reading,
    )
    result = evaluate_retrieval(model, split, arguments.score)
    if arguments.tags:
        result["tags"] = evaluate_tags(model, split, score=arguments.score)
    if arguments.zero_shot:
        result["zero_shot"] = zero_shot(model, split, score=arguments.score)
    if arguments.protocol:
        result["protocols"] = evaluate_protocols(
            model,
            arguments.data,
            arguments.protocol,
            split=arguments.split,
            prompts=arguments.prompts,
            embedded=split,
            **reading,
        )
    return result


def _evaluate_captioner(arguments: Namespace, model: "CaptionModel") -> "tuple[dict[str, Any], list[Captions]]":
    from atk.data import MixConfig, open_data
    from atk.eval.captioning import CaptionSplit, evaluate_captions

    saved = run_settings(arguments.run).get("mix") or {}
    given = {name: arguments[name] for name in ("references", "condition") if arguments[name] is not None}
    split = CaptionSplit(
        open_data(arguments.data, arguments.caption_column),
        arguments.split or "test",
        sample_rate=model.sample_rate,
        mix=MixConfig(**{**saved, **given}),
        **reading_arguments(arguments),
    )
    return evaluate_captions(model, split, _beams(arguments), "evaluate")


def run_caption(arguments: Namespace) -> None:
    """Run `atk caption`."""
    from atk.eval.captioning import caption_file
    from atk.models.captioner import Captioner
    from atk.models.unified import Unified

    captions = caption_file(
        load(arguments, Captioner, Unified),
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

    model = load(arguments, CLAP)
    draw(
        model,
        arguments.audio,
        arguments.text,
        arguments.out,
        clip_seconds=arguments.clip_seconds,
        events=arguments.events,
    )
    print_result(f"{arguments.out}\n{Path(arguments.out).with_suffix('.csv')}")
