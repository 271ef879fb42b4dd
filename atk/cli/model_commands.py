"""The commands that evaluate a model and draw alignments: their arguments, and what they do."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from atk.cli.caption_commands import GENERATION, add_captioner_arguments, evaluate_captioner
from atk.cli.model_arguments import (
    add_long_clips,
    add_reading_arguments,
    add_run_arguments,
    add_score,
    load,
    reading_arguments,
)
from atk.cli.output import print_result

if TYPE_CHECKING:
    from atk.models.clap import CLAP

_CLAP_OPTIONS = ("tags", "zero_shot", "protocol", "prompts", "calibrate")  # of `atk evaluate`
_CAPTIONER_OPTIONS = ("references", "condition", "baseline", "repeated", "out", *GENERATION)  # of `atk evaluate`


def add_evaluate(parser: ArgumentParser) -> None:
    """Add the arguments of `atk evaluate`."""
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
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="choose the threshold and the smoothing of moments on --split (val by default) and store them in the "
        "run; computes nothing else",
    )
    parser.add_argument("--tags", action="store_true", help="also score retrieval by tag, from the folder's tags.csv")
    parser.add_argument("--zero_shot", action="store_true", help="also classify the clips that have exactly one tag")
    add_captioner_arguments(parser)


def add_align(parser: ArgumentParser) -> None:
    """Add the arguments of `atk align`."""
    add_run_arguments(parser)
    parser.add_argument("audio", type=str, help="audio file")
    parser.add_argument(
        "text",
        type=str,
        nargs="+",
        help="caption, whose words are looked for one by one; or several words or phrases, each of which is looked for "
        "as a whole",
    )
    parser.add_argument("--phrase", action="store_true", help="look for the text as a whole, even if there is only one")
    parser.add_argument(
        "--out", type=str, default="align.png", help="PNG file to write; the values go next to it as CSV"
    )
    parser.add_argument(
        "--events",
        type=str | None,
        default=None,
        help="events.csv with the true event times; null takes the nearest one in a parent folder of the audio file",
    )


def run_evaluate(arguments: Namespace) -> None:
    """Run `atk evaluate`."""
    from atk.models.caption_model import CaptionModel
    from atk.models.captioner import Captioner
    from atk.models.clap import CLAP

    given = [name for name in (*_CLAP_OPTIONS, *_CAPTIONER_OPTIONS) if arguments[name] not in (None, False, [])]
    given += ["score"] * (arguments.score != "global")
    model = load(arguments, CLAP, Captioner)
    needed = {name: CaptionModel if name in _CAPTIONER_OPTIONS else CLAP for name in given}
    if unsupported := [name for name, wanted in needed.items() if not isinstance(model, wanted)]:
        raise ValueError(f"{unsupported[0]}: {arguments.run} holds a {type(model).__name__}, which has no such option")
    retrieval = partial(_evaluate_clap, arguments, model) if isinstance(model, CLAP) else dict
    if isinstance(model, CLAP) and arguments.calibrate:
        _calibrate(arguments, model)
    elif isinstance(model, CaptionModel):
        evaluate_captioner(arguments, model, retrieval)
    else:
        print_result(json.dumps(retrieval(), indent=2))


def _evaluate_clap(arguments: Namespace, model: "CLAP") -> dict[str, Any]:
    from atk.data import open_data
    from atk.eval.moment_settings import saved_moments
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
            spans=saved_moments(arguments.run),
            **reading,
        )
    return result


def _calibrate(arguments: Namespace, model: "CLAP") -> None:
    from atk.eval.moment_settings import save_moments, saved_moments, settings_file
    from atk.eval.timed_protocols import choose_settings

    settings_file(arguments.run)  # raises an error before the work starts
    config = saved_moments(arguments.run)
    reading = reading_arguments(arguments) | {"progress": "calibrate"}
    result = choose_settings(model, arguments.data, arguments.split or "val", config, **reading)
    path = save_moments(arguments.run, result.pop("config"))
    print_result(json.dumps(result, indent=2) + f"\n{path}")


def run_align(arguments: Namespace) -> None:
    """Run `atk align`."""
    from atk.eval.figures import align as draw
    from atk.models.clap import CLAP

    texts = arguments.text
    model = load(arguments, CLAP)
    draw(
        model,
        arguments.audio,
        texts[0] if len(texts) == 1 and not arguments.phrase else texts,
        arguments.out,
        clip_seconds=arguments.clip_seconds,
        events=arguments.events,
    )
    print_result(f"{arguments.out}\n{Path(arguments.out).with_suffix('.csv')}")
