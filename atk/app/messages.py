"""What the page does when it is asked for something: in one thread, and with errors as one line."""

import functools
import html
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from atk.data.audio import AudioError
from atk.extras import optional_imports

with optional_imports:
    import gradio

_LONGEST = 300  # characters
# The C library keeps freed memory for each thread, so that memory would grow with the number of threads.
_WORKER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="atk-app")
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def message_of(error: Exception) -> str | None:
    """One line about a mistake, with only the names of files, not their folders; None for a bug."""
    if isinstance(error, AudioError):
        text = f"{Path(error.file).name}: {error.reason}"
    elif isinstance(error, OSError):
        text = error.strerror or type(error).__name__
    elif isinstance(error, (ValueError, ImportError)):
        text = str(error)
    else:
        return None
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def reporting(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """A handler of the page. It runs in one thread for all handlers, and its errors become messages.

    Errors that are bugs are also printed to stderr.
    """

    @functools.wraps(function)
    def handler(*args: _Given.args, **options: _Given.kwargs) -> _Result:
        try:
            return _WORKER.submit(function, *args, **options).result()
        except gradio.Error:
            raise
        except Exception as error:  # noqa: BLE001 (the page never shows a traceback)
            text = message_of(error)
            if text is None:
                traceback.print_exc()
                text = f"this failed with a {type(error).__name__}; the terminal says more"
            # The page renders messages as HTML.
            raise gradio.Error(html.escape(text), print_exception=False) from None

    return handler
