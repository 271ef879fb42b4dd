"""Shards in object stores and on web servers: ranged reads through fsspec, and a cache of blocks of bounded size."""

import contextlib
import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from atk.data.cache import cache_name, read_cached, write_cached
from atk.extras import optional_imports
from atk.ops.user_cache import cache_folder

_BLOCK = 1 << 20  # bytes; what a cache file holds
_AHEAD = 16 * _BLOCK  # bytes to request at a time from a shard that is read as a whole
_ATTEMPTS = 5  # to read a range; the waiting time doubles from the first second on
_CACHE_GIB = 20.0  # default size of the cache
_KEPT = 0.9  # fraction of the cache that stays when it is full
_CHECKS = 20  # the size of the cache is checked whenever this process has written this fraction of it
# What stores call the identity and the time of a file, in lowercase letters alone: "Last-Modified" is lastmodified.
_STAMPS = (
    *("etag", "contentmd", "digest", "blobid", "generation"),
    *("mtime", "lastmodified", "modified", "updated", "created"),
)

_Result = TypeVar("_Result")
_written = {"bytes": -1}  # by this process since it last checked the size of the cache; -1: it has not checked yet


def is_url(path: str | Path) -> bool:
    """Whether a path names a file in an object store or on a web server, such as s3://, gs://, hf://, or https://."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(path)) is not None


@dataclass(frozen=True)
class RemoteFile:
    """A remote file.

    Attributes:
        url: its address.
        size: its size in bytes.
        stamp: what changes along with the file.
    """

    url: str
    size: int
    stamp: str

    @classmethod
    @lru_cache(maxsize=1 << 16)  # a request per file and process
    def find(cls, url: str) -> "RemoteFile":
        """Ask for the size and the stamp of a file.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: the store cannot be reached or does not state the size.
        """
        system, path = _system(url)
        info = _attempt(url, lambda: system.info(path))
        if not isinstance(info.get("size"), int):
            raise OSError(f"{url}: its server does not state its size")
        stamps = [f"{name}={value}" for name, value in info.items() if re.sub("[^a-z]", "", name.lower()) in _STAMPS]
        return cls(url, info["size"], " ".join(sorted(stamps)))

    def read(self, offset: int, count: int) -> bytes:
        """Read a range, from the cache as far as possible; shorter at the end of the file.

        Raises:
            OSError: the store cannot be reached, or the file has changed.
        """
        end = min(offset + count, self.size)
        blocks = range(offset // _BLOCK, -(-end // _BLOCK))
        contents = {block: self._cached(block) for block in blocks}
        first = None
        for block in (*blocks, None):  # request neighboring blocks together
            missing = block is not None and contents[block] is None
            if missing and first is None:
                first = block
            elif not missing and first is not None:
                contents |= self._fetch(first, blocks.stop if block is None else block)
                first = None
        content = b"".join(contents[block] or b"" for block in blocks)
        start = offset - blocks.start * _BLOCK
        return content[start : start + end - offset]

    def read_ahead(self) -> None:
        """Bring the whole file into the cache, in few requests."""
        for offset in range(0, self.size, _AHEAD):
            self.read(offset, _AHEAD)

    def _file(self, block: int) -> Path:
        return _folder() / cache_name(self.url, self.size, self.stamp, block)

    def _length(self, block: int) -> int:
        return min(_BLOCK, self.size - block * _BLOCK)

    def _cached(self, block: int) -> bytes | None:
        """A block in the cache; None if it is missing or incomplete."""
        file = self._file(block)
        content = read_cached(file)
        if content is None or len(content) != self._length(block):
            return None
        with contextlib.suppress(OSError):
            os.utime(file)  # the blocks that have not been used for the longest time are removed first
        return content

    def _fetch(self, first: int, stop: int) -> dict[int, bytes]:
        """Request blocks and write them to the cache."""
        system, path = _system(self.url)
        start, end = first * _BLOCK, min(stop * _BLOCK, self.size)
        content = _attempt(self.url, lambda: system.cat_file(path, start=start, end=end))
        if len(content) != end - start:
            raise OSError(f"{self.url}: the server sent {len(content)} bytes instead of {end - start}")
        parts = [content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK)]
        blocks = dict(zip(range(first, stop), parts, strict=True))
        for block, part in blocks.items():
            write_cached(self._file(block), part)
        _limit(len(content))
        return blocks


class RemoteReader(io.RawIOBase):
    """A remote file, opened for reading."""

    def __init__(self, file: RemoteFile):
        self.file = file
        self.position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As `io.IOBase.seek`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.file.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        """As `io.IOBase.tell`."""
        return self.position

    def readinto(self, buffer: Any) -> int:
        """As `io.RawIOBase.readinto`."""
        content = self.file.read(self.position, len(buffer))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def remote_files(url: str, suffix: str) -> dict[str, str]:
    """Addresses of the files with this suffix in a remote folder and in its subfolders, sorted, by relative name.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: the store cannot be reached.
    """
    system, path = _system(url)
    # Stores may spell the folder differently in the names that they list, so the depth tells them apart.
    top = set(_attempt(url, lambda: system.find(path, maxdepth=1)))
    names = sorted(_attempt(url, lambda: system.find(path, maxdepth=2)))
    names = [name for name in names if name.lower().endswith(suffix)]
    return {"/".join(name.split("/")[-1 if name in top else -2 :]): system.unstrip_protocol(name) for name in names}


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    with optional_imports:
        import fsspec
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # of the protocol
        raise ValueError(f"{url}: {' '.join(str(error).split())}") from None


def _attempt(url: str, request: Callable[[], _Result]) -> _Result:
    """Make a request, again if it fails for a reason that may go away."""
    for attempt in range(_ATTEMPTS):
        try:
            return request()
        except Exception as error:  # noqa: BLE001  # each store has its own errors
            # fsspec turns every failure of a web server into this error.
            cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
            status = getattr(cause, "status", None)  # of a web server's answer
            if isinstance(cause, FileNotFoundError) or status in (404, 410):
                raise FileNotFoundError(f"{url}: no such file") from None
            if isinstance(cause, PermissionError) or status in (401, 403) or attempt == _ATTEMPTS - 1:
                reason = " ".join(str(cause).split()) or type(cause).__name__
                raise OSError(f"{url}: cannot be read ({reason[:300]})") from None
            time.sleep(2**attempt)
    raise AssertionError


def _folder() -> Path:
    return cache_folder() / "blocks"


def _limit(written: int) -> None:
    """Keep the cache within `$ATK_CACHE_GIB` after `written` bytes more."""
    text = os.environ.get("ATK_CACHE_GIB") or str(_CACHE_GIB)
    try:
        limit = float(text) * 2**30
    except ValueError:
        raise ValueError(f"ATK_CACHE_GIB: the environment variable must be a number, got {text!r}") from None
    if 0 <= _written["bytes"] < limit / _CHECKS:
        _written["bytes"] += written
        return
    _written["bytes"] = 0
    files = []
    with contextlib.suppress(OSError), os.scandir(_folder()) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # another process has removed it
                status = entry.stat()
                files.append((status.st_mtime_ns, status.st_size, entry.path))
    total = sum(size for _, size, _ in files)
    if total <= limit * (1 - 1 / _CHECKS):
        return
    for _, size, path in sorted(files):
        if total <= limit * _KEPT:
            break
        with contextlib.suppress(OSError):
            Path(path).unlink()
        total -= size
