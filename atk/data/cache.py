"""The user's folder of caches, which only save time: whatever is unreadable in it is written again."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`$ATK_CACHE`; without it, `atk` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if folder := os.environ.get("ATK_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "atk")


def cache_name(*key: object) -> str:
    """A file name that stands for `key`."""
    return hashlib.sha256(repr(key).encode(errors="surrogateescape")).hexdigest()[:32]


def read_cached(path: Path) -> bytes | None:
    """The content of a cache file; None if there is none or it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def write_cached(path: Path, content: bytes) -> bool:
    """Write a cache file, which other processes see either whole or not at all; returns whether this worked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
    except OSError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(partial).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(partial).unlink()
        return False
    return True
