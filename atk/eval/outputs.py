"""Output files of an evaluation: checked before the work starts, and never written over something else."""

import unicodedata
from pathlib import Path


def check_output(path: str | Path, starts: bytes, what: str) -> Path:
    """Check that `path` can be written without loss, and create its folder.

    Args:
        path: file to write.
        starts: first bytes of a file that an earlier call wrote, which may be replaced.
        what: what such a file is, for the message.

    Raises:
        ValueError: `path` is a folder, or an existing file of another kind.
        OSError: the file cannot be written, or its folder cannot be created.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"out: {path} is a folder; a file name is needed")
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(starts)) not in (starts, b""):
                raise ValueError(f"out: {path} exists and is not {what}; choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    path.open("ab").close()
    if not existed:
        path.unlink()
    return path


def on_one_line(name: str) -> str:
    """A file name with its line breaks and other control characters escaped."""
    return "".join(repr(letter)[1:-1] if unicodedata.category(letter) == "Cc" else letter for letter in name)


def in_unicode(name: str) -> str:
    """A file name on one line, in which bytes that are not UTF-8 are written as \\xNN."""
    return on_one_line(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
