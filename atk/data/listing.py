"""Walks folders for audio files and tar shards by the names in them alone: no file is opened but the tars."""

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
    """The clips met so far, packed: one byte string of names and one row of numbers for each clip.

    Links to folders are followed, each folder and shard is listed once however it is reached, hidden ones are left out.
    Names are sorted, the files of a folder before those of its sub-folders and its shards last: the order is the same
    wherever the data lie.

    Args:
        fault: called with what cannot be listed; raises where that is to stop the listing.

    Attributes:
        names: the clips' names below their folder, or in their shard, one after another.
        ends: where in `names` that of each clip ends.
        homes: number of the folder or shard of each clip.
        offsets: of each clip's content in its shard, in bytes; -1 for a file.
        sizes: of that content, in bytes.
        paths: of the folders and shards, absolute.
        shard_sizes: of the shards, in bytes; -1 for a folder.
    """

    def __init__(self, fault: Callable[[AudioError], None]):
        self.fault = fault
        self.names, self.ends, self.homes = bytearray(), array("q"), array("i")
        self.offsets, self.sizes = array("q"), array("q")
        self.paths: list[str] = []
        self.shard_sizes: list[int] = []
        self.seen: set[tuple[int, int]] = set()  # device and inode of folders and shards
        self.repeats = 0

    def __len__(self) -> int:
        return len(self.ends)

    def add(self, path: str) -> None:
        """List a folder or a tar, given by its absolute path.

        Raises:
            FileNotFoundError: there is no such path.
            ValueError: it is neither a folder nor a tar, a compressed tar, or holds no audio.
        """
        before, repeats = len(self), self.repeats
        if os.path.isdir(path):
            self._folder(path)
        elif not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such folder or tar file")
        elif path.lower().endswith(COMPRESSED_SUFFIXES):
            raise ValueError(f"{path}: {COMPRESSED}")
        elif path.lower().endswith(SHARD_SUFFIX):
            self._shard(path)
        else:
            raise ValueError(f"{path}: unlabelled audio must be a folder or a {SHARD_SUFFIX} file")
        if len(self) == before and (self.repeats == repeats or before == 0):
            wanted = ", ".join(AUDIO_SUFFIXES)
            raise ValueError(f"{path}: no audio found, neither files ({wanted}) nor {SHARD_SUFFIX} shards of them")

    def _append(self, name: bytes, offset: int, size: int) -> None:
        self.names += name
        self.ends.append(len(self.names))
        self.homes.append(len(self.paths) - 1)
        self.offsets.append(offset)
        self.sizes.append(size)

    def _is_new(self, path: bytes | str) -> bool:
        status = os.stat(path)
        new = (status.st_dev, status.st_ino) not in self.seen
        self.seen.add((status.st_dev, status.st_ino))
        self.repeats += not new
        return new

    def _folder(self, root: str) -> None:
        shards = []
        self.paths.append(root)
        self.shard_sizes.append(-1)
        waiting = [b""]  # folders below root, the next one last
        while waiting:
            below = waiting.pop()
            path = os.path.join(os.fsencode(root), below) if below else os.fsencode(root)
            try:
                files, tars, folders = _entries(path) if self._is_new(path) else ([], [], [])
            except OSError as error:
                self.fault(AudioError(os.fsdecode(path), error.strerror or str(error)))
                continue
            for name in files:
                self._append(os.path.join(below, name), -1, -1)
            shards += [os.path.join(path, name) for name in tars]
            waiting += [os.path.join(below, name) for name in reversed(folders)]
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
    """Names of the audio files, tars (compressed ones too) and folders in a folder, each sorted."""
    files, tars, folders = [], [], []
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


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_hidden(name: bytes) -> bool:
    return name == b"__MACOSX" or (name.startswith(b".") and name not in (b".", b".."))
