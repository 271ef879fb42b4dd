"""Print results to standard output without losing them if it fails."""

import codecs
import sys

_CodingError = UnicodeEncodeError | UnicodeDecodeError | UnicodeTranslateError


def print_result(text: str) -> None:
    """Print a result to standard output; if that fails for any reason but a closed pipe, print it to stderr instead.

    Raises:
        BrokenPipeError: the reader closed the pipe.
        OSError: standard output failed for another reason; the message says where the result is.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stderr.write(text + "\n")
        raise OSError(f"standard output: {error.strerror}; the result is printed above instead") from None


def report_skipped(skipped: list[tuple[str, str]]) -> None:
    """Name skipped files, (file name, reason) each, in one line on stderr; nothing if there are none."""
    from atk.data.captions import describe_skipped
    from atk.eval.outputs import on_one_line

    if skipped:
        sys.stderr.write(on_one_line(describe_skipped(skipped)) + "\n")


def accept_all_names() -> None:
    """Let standard output take every file name: as its own bytes if they are not UTF-8, escaped as a last resort."""
    codecs.register_error("atk_names", _encode_name)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="atk_names")


def _encode_name(error: _CodingError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
