"""The command that serves a page with a model: its arguments, and what it does."""

import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from atk.cli.caption_commands import add_generation, beam_search
from atk.cli.model_arguments import add_run_arguments, load
from atk.cli.output import print_result

if TYPE_CHECKING:
    from atk.app.page import Contents
    from atk.eval.index import Index

_OF_THE_INDEX = ("data", "clip_seconds", "tokenizer")  # options that it was made with
_LOCAL = ("127.0.0.1", "localhost", "::1")


def add_app(parser: ArgumentParser) -> None:
    """Add the arguments of `atk app`."""
    add_run_arguments(parser)
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="folder of audio files to search in; an index in place of the model has one already",
    )
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="address to listen on; the default is this machine"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    add_generation(parser)


def run_app(arguments: Namespace) -> None:
    """Run `atk app` until it is interrupted."""
    from atk.app.server import check_port, delete_oldest, launch, upload_folder

    check_port(arguments.host, arguments.port)
    with ExitStack() as stack:
        uploads = stack.enter_context(upload_folder())
        from atk.app.page import build_page

        contents = _contents(arguments, stack, partial(delete_oldest, uploads))
        page = build_page(contents)
        address = launch(page, uploads, arguments.host, arguments.port)
        stack.callback(page.close, verbose=False)
        if arguments.host not in _LOCAL:
            sys.stderr.write(f"{arguments.host}: anybody who reaches this address can listen to the recordings\n")
        print_result(f"{address} (Ctrl+C ends it)")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # deletes temporary files, too
        threading.Event().wait()


def _contents(arguments: Namespace, stack: ExitStack, tidy: Callable[[], None]) -> "Contents":
    """Load the model and index the folder; what is temporary is deleted when `stack` is closed."""
    from atk.app.library import Library, Origin, index_folder
    from atk.app.page import Contents
    from atk.eval.moment_settings import saved_moments
    from atk.models.caption_model import CaptionModel
    from atk.models.captioner import Captioner
    from atk.models.clap import CLAP
    from atk.models.saved import run_folder

    name = Path(arguments.run).name
    index = _index(arguments)
    model = load(arguments, CLAP, Captioner) if index is None else index.load_model(arguments.device)
    library = None
    if isinstance(model, CLAP):
        origin = Origin(arguments.run, arguments.tokenizer, arguments.clip_seconds)
        if arguments.data is not None:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="atk-index-"))
            index = index_folder(model, origin, arguments.data, Path(place), "index")
        library = Library(model, origin, index)
        stack.callback(library.close)
    elif arguments.data is not None:
        raise ValueError(f"data: {arguments.run} holds a {type(model).__name__}, which cannot search")
    captioner = model if isinstance(model, CaptionModel) else None
    run = run_folder(arguments.run)
    return Contents(
        name=name,
        library=library,
        moments=saved_moments(arguments.run),
        captioner=captioner,
        clip_seconds=arguments.clip_seconds,
        generation={} if captioner is None else beam_search(arguments),
        run=run if run is not None and (run / "metrics.jsonl").is_file() else None,
        tidy=tidy,
    )


def _index(arguments: Namespace) -> "Index | None":
    """The index that takes the place of the model, if one does; the arguments then become those that it was made with.

    Raises:
        ValueError: other ones were given.
    """
    from atk.eval.sources import is_index

    if not is_index(arguments.run):
        return None
    from atk.eval.index import Index

    for name in _OF_THE_INDEX:
        if arguments[name] is not None:
            raise ValueError(f"{name}: fixed when the index was made; make another index to change it")
    index = Index.open(arguments.run)
    arguments.run, arguments.tokenizer = index.header.source, index.header.tokenizer
    arguments.clip_seconds = index.header.clip_seconds
    return index
