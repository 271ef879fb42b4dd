"""The headers of audio files, read once: kept in a file beside the data, and sent to the other ranks."""

import contextlib
import hashlib
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from atk.data.audio import AudioError, AudioInfo, DataWarning, audio_info
from atk.ops.user_cache import cache_folder, replace_file

CACHE_NAME = ".atk-headers"
_FEWEST = 1000  # new headers that are worth a file; fewer are read again in a second
_NAME = b"atk headers "
_MAGIC = _NAME + b"1\n"  # and the version of the layout
_DIGEST_BYTES = 16
_START = len(_MAGIC) + _DIGEST_BYTES
_FRESH = 2_000_000_000  # nanoseconds; a file that was just written could change again with the same modification time
_ENTRY = np.dtype(
    [("key", "<u8"), ("size", "<i8"), ("mtime", "<i8"), ("frames", "<i8"), ("rate", "<i4"), ("channels", "<i4")]
)
_CONTENT = ("frames", "rate", "channels")
_NOTHING = np.empty(0, _ENTRY)
_CHUNK = 32  # files at a time
_SLOW = 1e-3  # seconds per file above which the disk counts as slow
_THREADS = 16  # for slow disks and networks, which serve small reads faster in parallel

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class SharedHeaders:
    """Headers that one process has read for others.

    Attributes:
        tables: entries by the folder that they were read for.
        errors: reason by path, of files that cannot be used.
        indices: what was read from tar shards and tables, by their names.
    """

    def __init__(self) -> None:
        self.tables: dict[str, np.ndarray] = {}
        self.errors: dict[str, str] = {}
        self.indices: dict[str, Any] = {}


_collected: ContextVar[SharedHeaders | None] = ContextVar("collected", default=None)
_given: ContextVar[SharedHeaders | None] = ContextVar("given", default=None)


@contextmanager
def collecting() -> Generator[SharedHeaders, None, None]:
    """A context that collects the headers that are read in it, for `taking_from` in other processes."""
    shared = SharedHeaders()
    token = _collected.set(shared)
    try:
        yield shared
    finally:
        _collected.reset(token)


@contextmanager
def taking_from(shared: SharedHeaders) -> Generator[None, None, None]:
    """A context in which headers come from another process; the files that it has read are not opened."""
    token = _given.set(shared)
    try:
        yield
    finally:
        _given.reset(token)


def shared_index(name: str, read: Callable[[], _Result]) -> _Result:
    """`read()`, or in `taking_from` what the other process has read under this name."""
    given, collected = _given.get(), _collected.get()
    if given is not None and name in given.indices:
        return given.indices[name]
    index = read()
    if collected is not None:
        collected.indices[name] = index
    return index


def map_files(
    read: Callable[[_Item], _Result], items: Sequence[_Item], threads: int = _THREADS
) -> Generator[_Result, None, None]:
    """Yield `read(item)` for each file in order: one at a time while that is fast, in threads once the disk is slow.

    Headers that the system has cached are read faster without threads, which would wait for each other.
    """
    chunks = iter([items[first : first + _CHUNK] for first in range(0, len(items), _CHUNK)])
    for chunk in chunks:
        start = time.perf_counter()
        results = [read(item) for item in chunk]
        slow = time.perf_counter() - start > _SLOW * len(chunk)
        yield from results
        if slow:
            break
    else:
        return
    pool = ThreadPoolExecutor(threads)
    try:
        for results in pool.map(lambda chunk: [read(item) for item in chunk], chunks):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def read_headers(
    paths: Sequence[str], folder: str | Path, threads: int = _THREADS
) -> Generator[AudioInfo | AudioError, None, None]:
    """Yield the header of each file, or why the file cannot be used, in order.

    Headers are kept in `.atk-headers` in the folder or, if that cannot be written, in the user's cache. They are read
    again only if the size or modification time of the file changes. Errors are not kept.

    Args:
        paths: audio files.
        folder: the folder that lists them.
        threads: files to read at a time on a slow disk.
    """
    prefix = os.path.join(folder, "")  # noqa: PTH118 (a string)
    given = _given.get()
    start = time.time_ns()
    entries = np.zeros(len(paths), _ENTRY)  # `frames` is 0 as long as a header is unknown
    entries["key"] = _keys(paths, prefix)
    if given is None:
        sizes, times = zip(*map_files(_stamp, paths, threads), strict=True) if paths else ((), ())
        entries["size"], entries["mtime"] = sizes, times
        _fill_in(entries, _load(folder), ("key", "size", "mtime"))
    else:
        _fill_in(entries, given.tables.get(prefix, _NOTHING), ("key",))
    known = entries["frames"] > 0
    errors = {} if given is None else given.errors
    unread = [path for path, is_known in zip(paths, known.tolist(), strict=True) if not is_known and path not in errors]
    reading = map_files(_header, unread, threads)
    failed: dict[str, str] = {}
    fields = (entries[field].tolist() for field in _CONTENT)
    try:
        for index, (path, *content) in enumerate(zip(paths, *fields, strict=True)):
            if content[0]:
                yield AudioInfo(*content)
                continue
            header = AudioError(path, errors[path]) if path in errors else next(reading)
            if isinstance(header, AudioInfo):
                for field, value in zip(_CONTENT, (header.frames, header.sample_rate, header.channels), strict=True):
                    entries[field][index] = value
            else:
                failed[path] = header.reason
            yield header
    finally:
        reading.close()
        complete = entries["frames"] > 0
        _share(prefix, entries[complete], failed)
        settled = entries["mtime"] < start - _FRESH
        new = entries[complete & ~known & settled]
        if given is None and len(new) >= _FEWEST:
            _save(folder, new)


def _header(path: str) -> AudioInfo | AudioError:
    try:
        return audio_info(path)
    except AudioError as error:
        return error


def _stamp(path: str) -> tuple[int, int]:
    """Size and modification time of a file; (-1, 0) if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 (a third of the time)
    except (OSError, ValueError):
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _keys(paths: Sequence[str], prefix: str) -> np.ndarray:
    """A number for each path, which is the same wherever the folder is: uint64 `[paths]`."""
    names = (path.removeprefix(prefix) for path in paths)
    digests = b"".join(hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, "<u8")


def _fill_in(entries: np.ndarray, known: np.ndarray, same: Sequence[str]) -> None:
    """Copy what a header says into the entries that agree with a known one in the fields `same`."""
    if not len(known):
        return
    known = known[np.argsort(known["key"], kind="stable")]
    rows = np.searchsorted(known["key"], entries["key"], side="right") - 1  # the last one with the key
    found_at = np.maximum(rows, 0)
    agree = rows >= 0
    for field in same:
        agree &= known[field][found_at] == entries[field]
    for field in _CONTENT:
        entries[field][agree] = known[field][found_at[agree]]


def _share(prefix: str, entries: np.ndarray, failed: dict[str, str]) -> None:
    shared = _collected.get()
    if shared is not None:
        shared.tables[prefix] = np.concatenate([shared.tables.get(prefix, _NOTHING), entries])
        shared.errors |= failed


def _places(folder: str | Path) -> Iterator[Path]:
    """Files that may keep the headers of a folder."""
    yield Path(folder, CACHE_NAME)
    with contextlib.suppress(OSError):  # no home directory
        name = hashlib.blake2b(os.fsencode(os.path.realpath(folder)), digest_size=16).hexdigest()
        yield cache_folder() / f"headers-{name}"


def _load(folder: str | Path) -> np.ndarray:
    return np.concatenate([_NOTHING, *map(_read_file, _places(folder))])


def _read_file(path: Path) -> np.ndarray:
    """The entries of a file; none if it does not exist, or with a warning if it cannot be used."""
    try:
        content = path.read_bytes()
    except OSError:
        return _NOTHING
    magic, digest, data = content[: len(_MAGIC)], content[len(_MAGIC) :][:_DIGEST_BYTES], content[_START:]
    if magic != _MAGIC or digest != _digest(data) or len(data) % _ENTRY.itemsize:
        note = f"{path}: not a list of headers that this version can use; the files are read again"
        warnings.warn(note, DataWarning, stacklevel=4)
        return _NOTHING
    return np.frombuffer(data, _ENTRY)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _save(folder: str | Path, new: np.ndarray) -> None:
    """Add entries to the first file that can be written; readers see the old file or the new one."""
    for path in _places(folder):
        with contextlib.suppress(OSError):
            if path.exists() and not path.read_bytes().startswith(_NAME):
                continue  # of another program
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # issued when the headers were looked up
                old = _read_file(path)
            data = np.concatenate([old[~np.isin(old["key"], new["key"])], new]).tobytes()
            replace_file(path, _MAGIC + _digest(data) + data)
            return
