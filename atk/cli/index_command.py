"""The command that builds an index of recordings: its arguments, and what it does."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from atk.cli.model_arguments import add_reading_arguments, add_run_arguments, load, reading_arguments
from atk.cli.output import print_result, report_skipped


def add_index(parser: ArgumentParser) -> None:
    """Add the arguments of `atk index`."""
    from atk.eval.index_parts import IndexDtype

    add_run_arguments(parser)
    add_reading_arguments(parser)
    parser.add_argument("folder", type=str, help="folder of audio files, searched recursively, or any other data set")
    parser.add_argument(
        "--out",
        type=str,
        required=True,
        help="folder of the index; if it exists, only new and changed files are encoded",
    )
    parser.add_argument("--dtype", type=IndexDtype, default="int8", help="how frames are stored")
    parser.add_argument(
        "--context_seconds",
        type=float | None,
        default=None,
        help="audio that each frame sees on both sides at least; null uses an eighth of a window, 0 encodes all audio "
        "only once",
    )
    parser.add_argument(
        "--to",
        type=str | None,
        default=None,
        metavar="qdrant:PLACE#COLLECTION",
        help="also copy the index to a collection of Qdrant, on a server or in a local folder (extra qdrant)",
    )


def run_index(arguments: Namespace) -> None:
    """Run `atk index`."""
    from atk.eval.index import Index
    from atk.eval.index_build import build_index
    from atk.models.clap import CLAP

    target = None if arguments.to is None else _target(arguments.to, arguments.out)
    model = load(arguments, CLAP)
    changes = build_index(
        model,
        arguments.folder,
        arguments.out,
        source=arguments.run,
        tokenizer=arguments.tokenizer,
        dtype=arguments.dtype,
        context_seconds=arguments.context_seconds,
        progress="index",
        **reading_arguments(arguments),
    )
    report_skipped(changes.skipped)
    counts = f"{changes.added} added, {changes.changed} changed, {changes.dropped} dropped, {changes.kept} kept"
    print_result(f"{arguments.out}: {counts}")
    if target is not None:
        from atk.eval.index_export import export_to_qdrant

        points = export_to_qdrant(Index.open(arguments.out), *target, progress="export")
        print_result(f"{arguments.to}: {points} points")


def _target(to: str, out: str) -> tuple[str, str]:
    """The place and the collection that `--to` names; the collection is called like the index by default."""
    from atk.eval.index_export import check_qdrant

    engine, _, rest = to.partition(":")
    place, _, collection = rest.partition("#")
    if engine != "qdrant" or not place:
        raise ValueError(f"to: must be qdrant: and the URL of a server or a folder, got {to!r}")
    check_qdrant()
    return place, collection or Path(out).resolve().name
