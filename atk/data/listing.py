"""List audio files and tar shards below folders by name; only the tar files are opened."""

# Paths are bytes: names need not be UTF-8, and there may be millions of them.
# ruff: noqa: PTH110, PTH112, PTH116, PTH118, PTH202

import os
from array import array
from collections.abc import Callable

from atk.data.audio import AUDIO_SUFFIXES, AudioError
from atk.data.shards import COMPRESSED, COMPRESSED_SUFFIXES, SHARD_SUFFIX, tar_members

_AUDIO, _SHARD, _COMPRESSED = (
    tuple(os.fsencode(suffix) for suffix in suffixes)
    for suffixes in (AUDIO_SUFFIXES, (SHARD_SUFFIX,), COMPRESSED_SUFFIXES)
)


class Listing:
    """Compact list of clips: one byte string with all names and one array entry per clip and field.

    Links to folders are followed, and each folder and shard is listed once no matter how it is reached. Hidden files
    and folders are ignored. Names are sorted: files of a folder come before its subfolders, shards come last. The order
    does not depend on the file system.

    Args:
        fault: called with the error of each folder or shard that cannot be listed; raises to stop the listing.

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
        self.seen: set[tuple[int, int]] = set()  # device and inode of folders and shards
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
        elif not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such folder or tar file")
        elif path.lower().endswith(COMPRESSED_SUFFIXES):
            raise ValueError(f"{path}: {COMPRESSED}")
        elif path.lower().endswith(SHARD_SUFFIX):
            self._shard(path)
        else:
            raise ValueError(f"{path}: unlabeled audio must be a folder or a {SHARD_SUFFIX} file")
        if len(self) == clips and (self.repeats == repeats or clips == 0):
            suffixes = ", ".join(AUDIO_SUFFIXES)
            raise ValueError(f"{path}: no audio found, neither files ({suffixes}) nor {SHARD_SUFFIX} shards of them")

    def _append(self, name: bytes, offset: int, size: int) -> None:
        self.names += name
        self.ends.append(len(self.names))
        self.sources.append(len(self.paths) - 1)
        self.offsets.append(offset)
        self.sizes.append(size)

    def _is_new(self, path: bytes | str) -> bool:
        status = os.stat(path)
        new = (status.st_dev, status.st_ino) not in self.seen
        self.seen.add((status.st_dev, status.st_ino))
        self.repeats += not new
        return new

    def _folder(self, root: str) -> None:
        shards: list[bytes] = []
        self.paths.append(root)
        self.shard_sizes.append(-1)
        pending = [b""]  # folders relative to root; the last one is next
        while pending:
            relative = pending.pop()
            path = os.path.join(os.fsencode(root), relative) if relative else os.fsencode(root)
            try:
                files, tars, folders = _entries(path) if self._is_new(path) else ([], [], [])
            except OSError as error:
                self.fault(AudioError(os.fsdecode(path), error.strerror or str(error)))
                continue
            for name in files:
                self._append(os.path.join(relative, name), -1, -1)
            shards += [os.path.join(path, name) for name in tars]
            pending += [os.path.join(relative, name) for name in reversed(folders)]
        for shard in shards:
            self._shard(os.fsdecode(shard))

    def _shard(self, path: str) -> None:
        if path.lower().endswith(COMPRESSED_SUFFIXES):
            self.fault(AudioError(path, COMPRESSED))
            return
        try:
            if not self._is_new(path):
                return
            self.paths.append(path)
            self.shard_sizes.append(os.path.getsize(path))
            for name, offset, size in tar_members(path):
                if name.lower().endswith(_AUDIO) and not any(_is_hidden(part) for part in name.split(b"/")):
                    self._append(name, offset, size)
        except AudioError as error:
            self.fault(error)
        except OSError as error:
            self.fault(AudioError(path, error.strerror or str(error)))


def _entries(folder: bytes) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """List the audio files, tar files (including compressed ones) and subfolders of a folder, each sorted by name."""
    files: list[bytes] = []
    tars: list[bytes] = []
    folders: list[bytes] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if _is_hidden(name):
                continue
            if _is_folder(entry):
                folders.append(name)
            elif (lower := name.lower()).endswith(_AUDIO):
                files.append(name)
            elif lower.endswith(_SHARD + _COMPRESSED):
                tars.append(name)
    return sorted(files), sorted(tars), sorted(folders)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_hidden(name: bytes) -> bool:
    return name == b"__MACOSX" or (name.startswith(b".") and name not in (b".", b".."))
