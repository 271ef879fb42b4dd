"""The commands that use a trained model: their arguments, and what they do."""

import json
import sys
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace

_OF_CAPTIONERS = ("beams", "references", "condition", "out")  # options of `atk evaluate`


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


def add_evaluate(parser: ArgumentParser) -> None:
    _add_run(parser)
    _add_reading(parser)
    parser.add_argument("--data", type=str, required=True, help="data folder")
    parser.add_argument("--split", type=str, default="test", help="train, val or test")
    parser.add_argument("--tags", action="store_true", help="also tag-level retrieval, by the folder's tags.csv")
    parser.add_argument("--zero_shot", action="store_true", help="also classification of the clips with a single tag")
    parser.add_argument(
        "--beams", type=int | None, default=None, help="captioners: width of the beam search (the run's)"
    )
    parser.add_argument("--references", type=str, default=None, help="captioners: sounds to mix in (the run's)")
    parser.add_argument("--condition", type=str, default=None, help="captioners: source/time of references (the run's)")
    parser.add_argument("--examples", type=int, default=5, help="captioners: clips to list (Table 4.3)")
    parser.add_argument(
        "--out", type=str, default=None, help="captioners: CSV to write, with the captions of all clips"
    )


def add_caption(parser: ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("audio", type=str, help="audio file")
    parser.add_argument(
        "--reference", type=str, action="append", default=[], help="audio file to subtract; again for each further one"
    )
    parser.add_argument("--beams", type=int | None, default=None, help="width of the beam search (the run's)")


def add_align(parser: ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("audio", type=str, help="audio file")
    parser.add_argument("text", type=str, help="caption or words to look for")
    parser.add_argument(
        "--out", type=str, default="align.png", help="picture to write; the numbers go beside it as CSV"
    )
    parser.add_argument("--events", type=str, default=None, help="events.csv with true times (default: looked for)")


def add_search(parser: ArgumentParser) -> None:
    _add_run(parser)
    _add_reading(parser)
    parser.add_argument("folder", type=str, help="folder of audio files, searched recursively")
    parser.add_argument("query", type=str, help="text to look for")
    parser.add_argument("--top", type=int, default=10, help="how many files to print")


def _load(arguments: Namespace, *kinds: type):
    """The model of a run folder (its best checkpoint) or of a folder with a saved model, one of `kinds`.

    Sets `arguments.clip_seconds` where the user did not: to the run's, so that windows are as long as in training.
    """
    from atk.device import pick_device
    from atk.models import from_pretrained
    from atk.models.clap import CLAP
    from atk.ops.checks import at_least
    from atk.train.checkpoint import model_folder
    from atk.train.config import TrainConfig

    run = Path(arguments.run)
    for name, minimum in (("batch_size", 1), ("workers", 0)):
        if name in arguments:
            at_least(name, arguments[name], minimum)
    if arguments.clip_seconds is None:
        arguments.clip_seconds = _saved_config(run).get("clip_seconds", TrainConfig.clip_seconds)
    model = from_pretrained(model_folder(run))
    if not isinstance(model, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{run} holds a {type(model).__name__}, this command needs a {wanted}")
    if isinstance(model, CLAP) and (note := model.describe_cut(arguments.clip_seconds)):
        sys.stderr.write(note + "\n")
    return model.to(pick_device(arguments.device)).eval()


def _beams(arguments: Namespace) -> int:
    """The width of the beam search that the user asked for, or the run's."""
    from atk.train.difference import DifferenceConfig

    if arguments.beams is not None:
        return arguments.beams
    return _saved_config(Path(arguments.run)).get("beams", DifferenceConfig.beams)


def _saved_config(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").is_file() else {}


def _reading(arguments: Namespace) -> dict:
    return {name: arguments[name] for name in ("clip_seconds", "batch_size", "workers", "on_error")}


def evaluate(arguments: Namespace) -> None:
    from atk.eval.retrieval import embed_split, evaluate_retrieval, evaluate_tags, zero_shot
    from atk.models.captioner import Captioner
    from atk.models.clap import CLAP

    given = [name for name in ("tags", "zero_shot", *_OF_CAPTIONERS) if arguments[name] not in (None, False)]
    model = _load(arguments, CLAP, Captioner)
    captioner = isinstance(model, Captioner)
    if unfit := [name for name in given if (name in _OF_CAPTIONERS) != captioner]:
        raise ValueError(f"{unfit[0]}: {arguments.run} holds a {type(model).__name__}, which has no such option")
    if captioner:
        _evaluate_captioner(arguments, model)
        return
    split = embed_split(model, arguments.data, arguments.split, progress="evaluate", **_reading(arguments))
    result = evaluate_retrieval(model, split)
    if arguments.tags:
        result["tags"] = evaluate_tags(model, split)
    if arguments.zero_shot:
        result["zero_shot"] = zero_shot(model, split)
    print(json.dumps(result, indent=2))


def _evaluate_captioner(arguments: Namespace, model) -> None:
    from atk.data import MixConfig
    from atk.eval.captioning import CaptionSplit, evaluate_captions, format_captions, write_captions

    run = Path(arguments.run)
    given = {name: arguments[name] for name in ("references", "condition") if arguments[name] is not None}
    mix = MixConfig(**{**_saved_config(run).get("mix", {}), **given})
    options = {"sample_rate": model.sample_rate, "mix": mix, **_reading(arguments)}
    split = CaptionSplit(arguments.data, arguments.split, **options)
    result, captions = evaluate_captions(model, split, _beams(arguments), "evaluate")
    print(json.dumps(result, indent=2))
    print(format_captions(captions[: arguments.examples]))
    if arguments.out is not None:
        write_captions(Path(arguments.out), captions)
        print(arguments.out)


def caption(arguments: Namespace) -> None:
    from atk.eval.captioning import caption_file
    from atk.models.captioner import Captioner

    model = _load(arguments, Captioner)
    options = {"clip_seconds": arguments.clip_seconds, "beams": _beams(arguments)}
    captions = caption_file(model, arguments.audio, arguments.reference, **options)
    for start, end, text in captions:
        print(text if len(captions) == 1 else f"{start:.1f}-{end:.1f} s  {text}")


def align(arguments: Namespace) -> None:
    from atk.eval.figures import align as draw
    from atk.models.clap import CLAP

    model = _load(arguments, CLAP)
    options = {"clip_seconds": arguments.clip_seconds, "events": arguments.events}
    draw(model, arguments.audio, arguments.text, arguments.out, **options)
    print(f"{arguments.out}\n{Path(arguments.out).with_suffix('.csv')}")


def search(arguments: Namespace) -> None:
    from atk.data.captions import describe_skipped
    from atk.eval.search import search as rank
    from atk.models.clap import CLAP

    model = _load(arguments, CLAP)
    found = rank(model, arguments.folder, arguments.query, progress="search", **_reading(arguments))
    if found.skipped:
        sys.stderr.write(describe_skipped(found.skipped) + "\n")
    for score, path in found.hits[: arguments.top]:
        print(f"{score:.3f}  {path}")
