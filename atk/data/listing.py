"""List audio files and tar shards below folders by name; only the tar files are opened."""

# Paths are bytes: names need not be UTF-8, and there may be millions of them.
# ruff: noqa: PTH110, PTH112, PTH116, PTH118

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from atk.data import codecs
from atk.data.audio import AudioError
from atk.data.remote import is_url
from atk.data.shards import COMPRESSED, COMPRESSED_SUFFIXES, SHARD_SUFFIX, Shard, tar_members

# Suffixes of what libsndfile reads; a CSV file may also list files with other suffixes.
AUDIO_SUFFIXES = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc"),
    *(".au", ".snd", ".caf", ".w64", ".rf64", ".bwf"),
)
# Left out of listings, and counted, unless PyAV is installed to read the first ones.
UNSUPPORTED_SUFFIXES = (*codecs.CODEC_SUFFIXES, ".mid")

UNSUPPORTED = "this format cannot be read; convert it to FLAC, for example"

_SHARD, _COMPRESSED, _UNSUPPORTED = (
    tuple(os.fsencode(suffix) for suffix in suffixes)
    for suffixes in ((SHARD_SUFFIX,), COMPRESSED_SUFFIXES, UNSUPPORTED_SUFFIXES)
)


def audio_suffixes() -> tuple[str, ...]:
    """Suffixes of the files that can be read here: `AUDIO_SUFFIXES`, and more if PyAV is installed."""
    return AUDIO_SUFFIXES + (codecs.CODEC_SUFFIXES if codecs.has_av() else ())


def _audio() -> tuple[bytes, ...]:
    return tuple(map(os.fsencode, audio_suffixes()))


def why_left_out(suffix: str) -> str:
    """Why files with an unsupported suffix are left out."""
    return codecs.needs_av() if suffix in codecs.CODEC_SUFFIXES else UNSUPPORTED


class Listing:
    """Compact list of clips: one byte string with all names, and one array entry per clip and field.

    Links to folders are followed, and each folder and shard is listed once no matter how it is reached. Hidden files
    and folders are ignored. Names are sorted: files of a folder come before its subfolders, shards come last. The order
    does not depend on the file system.

    Args:
        fault: called with the error of each folder or shard that cannot be listed; it may raise to stop the listing.

    Attributes:
        names: concatenated names of the clips, relative to their folder or inside their shard.
        ends: end of each clip's name in `names`.
        sources: index in `paths` of each clip's folder or shard.
        offsets: byte offset of each clip's content in its shard; -1 for a file.
        sizes: size of the content in bytes; -1 for a file.
        paths: absolute paths of the folders and shards.
        shard_sizes: size of each shard in bytes; -1 for a folder.
    """

    def __init__(self, fault: Callable[[AudioError], None]):
        self.fault = fault
        self.names = bytearray()
        self.ends = array("q")
        self.sources = array("i")
        self.offsets = array("q")
        self.sizes = array("q")
        self.paths: list[str] = []
        self.shard_sizes: list[int] = []
        self._first_time = _once()
        self.repeats = 0

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, path: str) -> None:
        """List a folder or tar file, given by its absolute path.

        Raises:
            FileNotFoundError: the path does not exist.
            ValueError: the path is neither a folder nor a tar file, is a compressed tar file, or contains no audio.
        """
        clips = len(self)
        repeats = self.repeats
        if os.path.isdir(path):
            self._folder(path)
        elif not is_url(path) and not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such folder or tar file")
        elif path.lower().endswith(COMPRESSED_SUFFIXES):
            raise ValueError(f"{path}: {COMPRESSED}")
        elif path.lower().endswith(SHARD_SUFFIX):
            self._shard(path)
        else:
            raise ValueError(f"{path}: unlabeled audio must be a folder or a {SHARD_SUFFIX} file")
        if len(self) == clips and (self.repeats == repeats or clips == 0):
            suffixes = ", ".join(audio_suffixes())
            raise ValueError(f"{path}: no audio found, neither files ({suffixes}) nor {SHARD_SUFFIX} shards of them")

    def _append(self, name: bytes, offset: int, size: int) -> None:
        self.names += name
        self.ends.append(len(self.names))
        self.sources.append(len(self.paths) - 1)
        self.offsets.append(offset)
        self.sizes.append(size)

    def _is_new(self, path: bytes | str) -> bool:
        new = self._first_time(os.fsencode(path))
        self.repeats += not new
        return new

    def _folder(self, root: str) -> None:
        shards: list[bytes] = []
        unsupported: Counter[str] = Counter()
        self.paths.append(root)
        self.shard_sizes.append(-1)
        for folder, entries in _walk(os.fsencode(root), self._is_new, self.fault):
            for name in entries.audio:
                self._append(os.path.join(folder, name), -1, -1)
            shards += [os.path.join(os.fsencode(root), folder, name) for name in entries.tars]
            unsupported.update(_suffix(name) for name in entries.unsupported)
        self._report(root, unsupported)
        for shard in shards:
            self._shard(os.fsdecode(shard))

    def _report(self, path: str, unsupported: Counter[str]) -> None:
        for suffix, count in sorted(unsupported.items()):
            self.fault(AudioError(path, f"{count} {suffix} file{'s' * (count > 1)} left out: {why_left_out(suffix)}"))

    def _shard(self, path: str) -> None:
        if path.lower().endswith(COMPRESSED_SUFFIXES):
            self.fault(AudioError(path, COMPRESSED))
            return
        try:
            if path in self.paths if is_url(path) else not self._is_new(path):
                return
            self.shard_sizes.append(Shard.find(path).size)
            self.paths.append(path)
            unsupported: Counter[str] = Counter()
            audio = _audio()
            for name, offset, size in tar_members(path):
                if any(is_hidden(part) for part in name.split(b"/")):
                    continue
                if name.lower().endswith(audio):
                    self._append(name, offset, size)
                elif name.lower().endswith(_UNSUPPORTED):
                    unsupported[_suffix(name)] += 1
            self._report(path, unsupported)
        except AudioError as error:
            self.fault(error)
        except OSError as error:
            self.fault(AudioError(path, error.strerror or str(error)))


def list_folder(folder: str | Path) -> tuple[list[Path], list[AudioError]]:
    """Find the audio files below a folder, sorted, and what is left out.

    Links to folders are followed, and each folder is searched once. Hidden files and folders are ignored.

    Returns:
        The files whose suffix, in upper or lower case, is in `audio_suffixes()`; and an error for each audio or video
        file of an unsupported format and for each folder that cannot be listed.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths: list[Path] = []
    left_out: list[AudioError] = []
    for parent, entries in _walk(os.fsencode(folder), _once(), left_out.append):
        path = Path(folder, os.fsdecode(parent))
        paths += [path / os.fsdecode(name) for name in entries.audio]
        left_out += [AudioError(path / os.fsdecode(name), why_left_out(_suffix(name))) for name in entries.unsupported]
    return sorted(paths), left_out


def not_listed(audio: Iterable[Path], listed: Iterable[object]) -> list[Path]:
    """The files that are not among `listed`, where only paths count; links are the same as what they lead to."""
    known = {os.path.realpath(path) for path in listed if isinstance(path, Path) and "\0" not in str(path)}
    return [path for path in audio if os.path.realpath(path) not in known]


def find_audio(folder: str | Path) -> list[Path]:
    """The first result of `list_folder`: the audio files below a folder, sorted.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    return list_folder(folder)[0]


class _Entries(NamedTuple):
    """Names in a folder, each list sorted; hidden ones are left out."""

    audio: list[bytes]
    tars: list[bytes]  # including compressed ones
    unsupported: list[bytes]
    folders: list[bytes]


def _walk(
    root: bytes, is_new: Callable[[bytes], bool], fault: Callable[[AudioError], object]
) -> Iterator[tuple[bytes, _Entries]]:
    """Yield each folder below `root`, relative to it, with its entries; folders that are not new are skipped."""
    pending = [b""]  # the last one is visited next
    while pending:
        relative = pending.pop()
        path = os.path.join(root, relative) if relative else root
        try:
            entries = _entries(path) if is_new(path) else None
        except OSError as error:
            fault(AudioError(os.fsdecode(path), error.strerror or str(error)))
            continue
        if entries is not None:
            yield relative, entries
            pending += [os.path.join(relative, name) for name in reversed(entries.folders)]


def _once() -> Callable[[bytes], bool]:
    """A function that returns whether it sees a folder or file for the first time."""
    seen: set[tuple[int, int]] = set()

    def is_new(path: bytes) -> bool:
        status = os.stat(path)
        size = len(seen)
        seen.add((status.st_dev, status.st_ino))
        return len(seen) > size

    return is_new


def _entries(folder: bytes) -> _Entries:
    contents = _Entries([], [], [], [])
    audio = _audio()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if is_hidden(name):
                continue
            if _is_folder(entry):
                contents.folders.append(name)
            elif (lower := name.lower()).endswith(audio):
                contents.audio.append(name)
            elif lower.endswith(_SHARD + _COMPRESSED):
                contents.tars.append(name)
            elif lower.endswith(_UNSUPPORTED):
                contents.unsupported.append(name)
    for names in contents:
        names.sort()
    return contents


def _suffix(name: bytes) -> str:
    return os.fsdecode(name[name.rindex(b".") :]).lower()


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_hidden(name: str | bytes) -> bool:
    """Whether a file or folder is ignored: its name starts with a dot, or macOS puts it into archives."""
    name = os.fsencode(name)
    return name == b"__MACOSX" or (name.startswith(b".") and name not in (b".", b".."))
