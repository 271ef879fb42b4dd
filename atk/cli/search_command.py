"""The command that searches audio, for files or for moments: its arguments, and what it does."""

import json
import sys
from dataclasses import replace
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
from atk.cli.output import print_result, report_skipped

if TYPE_CHECKING:
    from atk.eval.embed import EmbeddingModel
    from atk.eval.index import Index
    from atk.eval.moment_search import MomentHit, MomentResults

_SETTINGS = ("threshold", "smooth", "merge", "within")  # of moments, by the names of `MomentConfig`
_MOMENT_OPTIONS = (*_SETTINGS, "context_seconds", "figures")
_INDEX_OPTIONS = ("candidates", "exact")
_OF_THE_INDEX = ("clip_seconds", "context_seconds", "tokenizer")  # options that it was made with


def add_search(parser: ArgumentParser) -> None:
    """Add the arguments of `atk search`."""
    add_run_arguments(parser, "; or an index (see atk index)")
    add_reading_arguments(parser)
    parser.add_argument(
        "folder",
        type=str,
        help="folder of audio files, searched recursively, or any other data set; with --moments also a single file; "
        "left out with an index",
    )
    parser.add_argument("query", type=str, nargs="*", help="text to look for; several are ranked one after the other")
    parser.add_argument("--top", type=int, default=10, help="number of files or moments to print for each query")
    add_score(parser, "null uses global, or what suits the model of an index")
    add_long_clips(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with the files that could not be read")
    parser.add_argument(
        "--moments",
        action="store_true",
        help="rank moments instead of files, in recordings of any length; a query may be a sequence, 'A, then B'",
    )
    parser.add_argument(
        "--candidates",
        type=int | None,
        default=None,
        help="index: recordings with the most similar global vectors whose frames are compared; 3000 by default",
    )
    parser.add_argument("--exact", action="store_true", help="index: compare the frames of all recordings")
    _add_settings(parser)


def _add_settings(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--threshold",
        type=float | None,
        default=None,
        help="moments: cosine above which something sounds; null uses the run's (see atk evaluate --calibrate), or "
        "40 % of the height of each curve",
    )
    parser.add_argument(
        "--smooth", type=float | None, default=None, help="moments: width of the moving average in seconds"
    )
    parser.add_argument("--merge", type=float | None, default=None, help="moments: longest gap to close, in seconds")
    parser.add_argument(
        "--within", type=float | None, default=None, help="moments: longest time between the parts of a sequence"
    )
    parser.add_argument(
        "--context_seconds",
        type=float | None,
        default=None,
        help="moments: audio that each frame sees on both sides at least; null uses an eighth of a window",
    )
    parser.add_argument(
        "--figures", type=str | None, default=None, metavar="DIR", help="moments: folder to write a picture of each to"
    )


def run_search(arguments: Namespace) -> None:
    """Run `atk search`."""
    from atk.ops.checks import at_least

    at_least("top", arguments.top, 1)
    index = _index(arguments)
    if not arguments.query:
        raise ValueError("missing arguments: query")
    for names, met, wanted in (
        (_MOMENT_OPTIONS, arguments.moments, "only moments have it; add --moments"),
        (_INDEX_OPTIONS, index is not None, "only an index has it; see atk index"),
        (_INDEX_OPTIONS, not arguments.moments, "moments are looked for in all frames; leave it out"),
        (_OF_THE_INDEX, index is None, "fixed when the index was made; make another index to change it"),
    ):
        given = [name for name in names if arguments[name] not in (None, False)]
        if given and not met:
            raise ValueError(f"{given[0]}: {wanted}")
    if arguments.moments:
        _search_moments(arguments, index)
    else:
        _search_files(arguments, index)


def _index(arguments: Namespace) -> "Index | None":
    """The index that takes the place of the model, if one does; the folder is then the first query."""
    from atk.eval.sources import is_index

    if not is_index(arguments.run):
        return None
    from atk.eval.index import Index

    if arguments.long_clips != "windows":
        raise ValueError("long_clips: an index holds windows")
    arguments.query = [arguments.folder, *arguments.query]
    index = Index.open(arguments.run)
    if not len(index):
        raise ValueError(f"{arguments.run}: the index holds no recordings yet; atk index adds them")
    return index


def _search_files(arguments: Namespace, index: "Index | None") -> None:
    from atk.eval.outputs import on_one_line
    from atk.eval.search import search_all
    from atk.models.clap import CLAP

    skipped: list[tuple[str, str]] = []
    if index is None:
        model = load(arguments, CLAP)
        reading = reading_arguments(arguments) | {"score": arguments.score or "global", "progress": "search"}
        hits, skipped = search_all(model, arguments.folder, arguments.query, **reading)
        ranked = [best[: arguments.top] for best in hits]
    else:
        index.load_model(arguments.device)
        options = {"score": arguments.score, "top": arguments.top, "exact": arguments.exact}
        if arguments.candidates is not None:
            options["candidates"] = arguments.candidates
        ranked = index.search(arguments.query, **options)
    report_skipped(skipped)
    if arguments.json:
        queries = [
            {"query": query, "hits": [{"score": score, "file": str(path)} for score, path in hits]}
            for query, hits in zip(arguments.query, ranked, strict=True)
        ]
        print_result(json.dumps({"queries": queries, "skipped": skipped}, indent=2))
        return
    lines = [[f"{score:.3f}  {on_one_line(str(path))}" for score, path in hits] for hits in ranked]
    _print_blocks(arguments.query, lines)


def _search_moments(arguments: Namespace, index: "Index | None") -> None:
    from atk.eval.moment_search import search_indexed_moments, search_moments
    from atk.eval.moment_settings import saved_moments
    from atk.models.clap import CLAP

    if arguments.long_clips != "windows" or arguments.score not in (None, "global"):
        raise ValueError("moments: they are found in windows, by frames and tokens, without --long-clips and --score")
    config = replace(
        saved_moments(arguments.run if index is None else index.header.source),
        **{name: arguments[name] for name in _SETTINGS if arguments[name] is not None},
    )
    folder = None if arguments.figures is None else _picture_folder(arguments.figures)
    options = {"config": config, "top": arguments.top}
    if index is None:
        model = load(arguments, CLAP)
        reading = reading_arguments(arguments) | {"context_seconds": arguments.context_seconds, "progress": "search"}
        result = search_moments(model, arguments.folder, arguments.query, **options, **reading)
    else:
        model = index.load_model(arguments.device)
        result = search_indexed_moments(index, arguments.query, **options)
    report_skipped(result.skipped)
    pictures = {} if folder is None else _draw(model, result, arguments.query, folder)
    if arguments.json:
        print_result(json.dumps(_as_json(arguments.query, result, pictures), indent=2))
        return
    _print_blocks(
        arguments.query,
        [[_line(hit, pictures.get(id(hit))) for hit in hits] or ["nothing found"] for hits in result.hits],
    )


def _picture_folder(name: str) -> Path:
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _draw(model: "EmbeddingModel", result: "MomentResults", queries: list[str], folder: Path) -> dict[int, str]:
    """Draw every hit that can be drawn; returns the picture of each, by the id of the hit."""
    from atk.data import AudioError
    from atk.eval.moment_figure import draw_moment
    from atk.eval.outputs import on_one_line

    pictures = {}
    for place, (query, phrases, hits) in enumerate(zip(queries, result.phrases, result.hits, strict=True), 1):
        for rank, hit in enumerate(hits, 1):
            path = folder / f"query{place}_{rank:02d}.png"
            try:
                draw_moment(path, model, hit, phrases, query)
            except (AudioError, ValueError) as error:  # the moment is found all the same
                sys.stderr.write(on_one_line(f"{path} is not drawn: {error}") + "\n")
                continue
            pictures[id(hit)] = str(path)
    return pictures


def _line(hit: "MomentHit", picture: str | None) -> str:
    from atk.eval.outputs import on_one_line

    moment = hit.moment
    times = f"{moment.start:.2f}-{moment.end:.2f} s"
    if len(moment.parts) > 1:
        times += " (" + ", ".join(f"{part.start:.2f}-{part.end:.2f}" for part in moment.parts) + ")"
    return f"{moment.score:.3f}  {on_one_line(str(hit.path))}  {times}" + (f"  {picture}" if picture else "")


def _as_json(queries: list[str], result: "MomentResults", pictures: dict[int, str]) -> dict[str, Any]:
    listed = []
    for query, phrases, hits in zip(queries, result.phrases, result.hits, strict=True):
        moments = [
            {
                "score": hit.moment.score,
                "file": str(hit.path),
                "start": hit.moment.start,
                "end": hit.moment.end,
                "parts": [
                    {"phrase": phrase, **part._asdict()} for phrase, part in zip(phrases, hit.moment.parts, strict=True)
                ],
                **({"picture": pictures[id(hit)]} if id(hit) in pictures else {}),
            }
            for hit in hits
        ]
        listed.append({"query": query, "phrases": phrases, "hits": moments})
    return {"queries": listed, "skipped": result.skipped}


def _print_blocks(queries: list[str], lines: list[list[str]]) -> None:
    """Print the lines of each query, below the query if there are several."""
    from atk.eval.outputs import on_one_line

    blocks = ["\n".join(block) for block in lines]
    if len(blocks) > 1:
        blocks = [f"{on_one_line(query)}\n{block}" for query, block in zip(queries, blocks, strict=True)]
    print_result("\n\n".join(blocks))
