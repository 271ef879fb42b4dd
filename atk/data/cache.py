"""Files in the user's cache that only save time: whatever is unreadable there is written again."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from atk.data.audio import DataWarning
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


def read_index(path: Path, key: list[Any]) -> dict[str, Any]:
    """What `write_index` wrote for the same key; empty if that is missing or damaged, or for another key."""
    content = read_cached(path)
    try:
        values = json.loads(content) if content else None
    except ValueError:
        return {}
    return values if isinstance(values, dict) and values.get("key") == key else {}


def write_index(path: Path, key: list[Any], values: dict[str, Any], source: str) -> None:
    """Write what was read from `source`, in JSON, with the key that says what it was read from and how."""
    if not write_cached(path, json.dumps({"key": key, **values}).encode()):
        warnings.warn(f"{path}: cannot be written; {source} is read at every start", DataWarning, stacklevel=2)
