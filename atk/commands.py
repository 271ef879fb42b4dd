"""The commands that use a trained model: their arguments, and what they do."""

import json
import sys
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace


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
    parser.add_argument("--beams", type=int, default=4, help="captioners: width of the beam search")
    parser.add_argument("--references", type=str, default=None, help="captioners: sounds to mix in (the run's)")
    parser.add_argument("--condition", type=str, default=None, help="captioners: source/time of references (the run's)")
    parser.add_argument("--examples", type=int, default=5, help="captioners: clips to list (Table 4.3)")


def add_caption(parser: ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("audio", type=str, help="audio file")
    parser.add_argument("--reference", type=str, nargs="+", default=[], help="audio files to subtract")
    parser.add_argument("--beams", type=int, default=4, help="width of the beam search")


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
    from atk.checkpoint import model_folder
    from atk.config import TrainConfig
    from atk.models import from_pretrained
    from atk.trainer import pick_device

    run = Path(arguments.run)
    if arguments.clip_seconds is None:
        arguments.clip_seconds = _saved_config(run).get("clip_seconds", TrainConfig.clip_seconds)
    model = from_pretrained(model_folder(run))
    if not isinstance(model, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{run} holds a {type(model).__name__}, this command needs a {wanted}")
    return model.to(pick_device(arguments.device)).eval()


def _saved_config(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").is_file() else {}


def _reading(arguments: Namespace) -> dict:
    return {name: arguments[name] for name in ("clip_seconds", "batch_size", "workers", "on_error")}


def evaluate(arguments: Namespace) -> None:
    from atk.evaluate import embed_split, evaluate_retrieval, evaluate_tags, zero_shot
    from atk.models.captioner import Captioner
    from atk.models.clap import CLAP

    model = _load(arguments, CLAP, Captioner)
    if isinstance(model, Captioner):
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
    from atk.caption import CaptionSplit, evaluate_captions, format_captions, write_captions
    from atk.data import MixConfig

    run = Path(arguments.run)
    given = {name: arguments[name] for name in ("references", "condition") if arguments[name] is not None}
    mix = MixConfig(**{**_saved_config(run).get("mix", {}), **given})
    options = {"sample_rate": model.sample_rate, "mix": mix, **_reading(arguments)}
    split = CaptionSplit(arguments.data, arguments.split, **options)
    result, captions = evaluate_captions(model, split, arguments.beams, "evaluate")
    write_captions(run / f"captions_{arguments.split}.csv", captions)
    print(json.dumps(result, indent=2))
    print(format_captions(captions[: arguments.examples]))
    print(run / f"captions_{arguments.split}.csv")


def caption(arguments: Namespace) -> None:
    from atk.caption import caption_file
    from atk.models.captioner import Captioner

    model = _load(arguments, Captioner)
    options = {"clip_seconds": arguments.clip_seconds, "beams": arguments.beams}
    captions = caption_file(model, arguments.audio, arguments.reference, **options)
    for start, end, text in captions:
        print(text if len(captions) == 1 else f"{start:.1f}-{end:.1f} s  {text}")


def align(arguments: Namespace) -> None:
    from atk.align import align as draw
    from atk.models.clap import CLAP

    model = _load(arguments, CLAP)
    options = {"clip_seconds": arguments.clip_seconds, "events": arguments.events}
    draw(model, arguments.audio, arguments.text, arguments.out, **options)
    print(f"{arguments.out}\n{Path(arguments.out).with_suffix('.csv')}")


def search(arguments: Namespace) -> None:
    from atk.data.captions import describe_skipped
    from atk.models.clap import CLAP
    from atk.search import search as rank

    model = _load(arguments, CLAP)
    found = rank(model, arguments.folder, arguments.query, progress="search", **_reading(arguments))
    if found.skipped:
        sys.stderr.write(describe_skipped(found.skipped) + "\n")
    for score, path in found.hits[: arguments.top]:
        print(f"{score:.3f}  {path}")
