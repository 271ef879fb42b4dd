"""Files in the user's cache that only save time: whatever is unreadable there is written again."""

import hashlib
from pathlib import Path

from atk.ops.user_cache import replace_file


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
        replace_file(path, content)
    except OSError:
        return False
    return True
