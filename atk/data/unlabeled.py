"""Unlabeled audio of any size: folders and tar shards, listed once, stored compactly, and drawn in an endless order."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from atk.data.audio import AudioError, load_crop
from atk.data.captions import ON_ERROR, describe_skipped
from atk.data.dataset import Batch, collate, random_stream
from atk.data.listing import Listing
from atk.data.remote import is_url
from atk.data.sampler import UnlabeledKey
from atk.data.shards import Member, Shard, expand_braces
from atk.ops.checks import at_least, one_of

_ARRAYS = {"names": np.uint8, "ends": np.int64, "sources": np.int32, "offsets": np.int64, "sizes": np.int64}
# Keys in the cache file; they never change, so that existing files can be read.
_HEADER_KEY = "told"
_FILE_KEYS = {name: name for name in _ARRAYS} | {"sources": "homes"}
_LAYOUT = 1  # version of the cache file
_ATTEMPTS = 8  # clips to try per slot of a batch, including the first
_DRAWS = 16  # clips to draw if a small pool has no unused clips left


@dataclass(frozen=True, eq=False)
class UnlabeledAudio:
    """Pool of audio files and members of tar shards; takes about 50 to 100 bytes of memory per clip.

    Attributes:
        folders: absolute paths of the folders and tar files that were scanned.
        arrays: the clips, packed as in `Listing`: names, ends, sources, offsets, sizes.
        paths: absolute paths of the folders and shards that contain the clips.
        shard_sizes: size of each shard in bytes; -1 for a folder.
        skipped: (path, reason) of folders and shards that could not be listed completely.
    """

    folders: list[str]
    arrays: dict[str, np.ndarray]
    paths: list[str]
    shard_sizes: list[int]
    skipped: list[tuple[str, str]]

    @classmethod
    def scan(
        cls, folders: Sequence[str | Path], cache: str | Path | None = None, on_error: str = "skip"
    ) -> "UnlabeledAudio":
        """Scan folders for audio, or load the result of an earlier scan.

        Folders are searched recursively for files with the suffixes of `find_audio`, and for tar shards (.tar) with
        members that have these suffixes. Only file names and tar headers are read; a clip that cannot be decoded is
        noticed only when it is loaded. Each folder and shard is listed once, even if `folders` names it twice or one
        folder contains another.

        Args:
            folders: folders and tar files; `shards-{000..099}.tar` expands to a range of shards.
            cache: .npz file to keep the list in. If it exists, nothing is scanned and the order stays the same, even
                if files were added or removed since then; None always scans.
            on_error: "skip" leaves out folders and shards that cannot be listed and reports them in `skipped`; "raise"
                stops at the first one.

        Raises:
            FileNotFoundError: one of `folders` does not exist.
            ValueError: `folders` is empty, one of them contains no audio or is a compressed tar file, or `cache` lists
                other folders or is damaged.
            AudioError: with `on_error="raise"`, a folder or shard cannot be listed.
        """
        one_of("on_error", on_error, ON_ERROR)
        if isinstance(folders, (str, Path)):
            raise TypeError(f"folders must be a sequence of paths, got the single path {str(folders)!r}")
        patterns = [pattern for folder in folders for pattern in expand_braces(os.fspath(folder))]
        # resolve() would follow links
        roots = [pattern if is_url(pattern) else os.path.abspath(pattern) for pattern in patterns]  # noqa: PTH100
        if not roots:
            raise ValueError(f"folders must name at least one folder or tar file, got {[str(f) for f in folders]}")
        if cache is not None and Path(cache).exists():
            return _read_cache(Path(cache), roots)
        pool = _list(roots, on_error)
        if cache is not None:
            _write_cache(Path(cache), pool)
        return pool

    def __len__(self) -> int:
        return len(self.arrays["ends"])

    def name(self, index: int) -> str:
        """Absolute path of clip `index`; for a member of a shard, the path of the shard, a colon, and the name."""
        return str(self._location(index))

    def _location(self, index: int) -> Path | Member:
        ends = self.arrays["ends"]
        first = int(ends[index - 1]) if index else 0
        name = os.fsdecode(self.arrays["names"][first : int(ends[index])].tobytes())
        source = self.arrays["sources"][index]
        shard = Shard(self.paths[source], self.shard_sizes[source])
        if shard.size < 0:
            return Path(shard.path, name)
        return Member(shard, name, int(self.arrays["offsets"][index]), int(self.arrays["sizes"][index]))

    def load(
        self, index: int, sample_rate: int, seconds: float, position: float, notes: list[str] | None = None
    ) -> Tensor:
        """Load the crop of clip `index` at `position` (0 to 1), as `load_crop` does: float32 `[samples]`.

        Raises:
            AudioError: the clip cannot be read.
        """
        return load_crop(self._location(index), sample_rate, seconds, position, notes=notes)


class UnlabeledDataset(Dataset[dict[str, Any]]):
    """Random crops of the clips of a pool, in the batches of `UnlabeledBatches`.

    The crop is a function of (seed, epoch, clip). A clip that cannot be read is replaced by another one, and every
    error is listed in `Batch.skipped`. After 8 errors, a slot of the batch stays empty. Replacements are a function of
    (seed, step, slot), not of the rank that reads them. Each slot has its own replacement clips from outside the batch,
    so with at least `8 * batch_size` clips in the pool, no batch contains a clip twice on any rank.

    Args:
        pool: unlabeled clips.
        sample_rate: sample rate of the waveforms, in Hz.
        clip_seconds: longest crop; shorter clips are used whole.
        seed: seed of crops and replacements, at least 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, pool: UnlabeledAudio, sample_rate: int, clip_seconds: float, seed: int = 0):
        at_least("sample_rate", sample_rate, 1)
        if not 0 < clip_seconds < math.inf:
            raise ValueError(f"clip_seconds must be above 0, got {clip_seconds}")
        at_least("seed", seed, 0)
        self.pool = pool
        self.sample_rate = sample_rate
        self.clip_seconds = clip_seconds
        self.seed = seed
        self._notes: list[tuple[str, str]] = []  # (file name, note) since the last batch

    def __len__(self) -> int:
        return len(self.pool)

    def __getitems__(self, keys: Sequence[UnlabeledKey]) -> list[dict[str, Any] | AudioError]:
        """Load the items of a batch or of a rank's part of it; the errors of a slot precede its item."""
        items: list[dict[str, Any] | AudioError] = []
        spare = None
        for step, slot, epoch, batch in keys:
            failed: set[int] = set()
            index = int(batch[slot])
            random = random_stream(6, self.seed, epoch, index)
            for attempt in range(_ATTEMPTS):
                try:
                    items.append(self._item(index, random.random()))
                    break
                except AudioError as error:
                    items.append(error)
                    failed.add(index)
                if spare is None:
                    spare = self._spare_clips(step, batch)
                random = random_stream(7, self.seed, step, slot, attempt)
                position = attempt * len(batch) + slot
                replacement = (
                    int(spare[position]) if position < len(spare) else self._draw_fallback(random, batch, failed)
                )
                if replacement is None:
                    break
                index = replacement
        return items

    def collate(self, items: Sequence[dict[str, Any] | AudioError]) -> Batch:
        """Combine items into a batch."""
        notes, self._notes = self._notes, []
        return collate(items, notes)

    def _item(self, index: int, position: float) -> dict[str, Any]:
        notes: list[str] = []
        name = self.pool.name(index)
        audio = self.pool.load(index, self.sample_rate, self.clip_seconds, position, notes)
        self._notes += [(name, note) for note in notes]
        return {"audio": audio, "caption": "", "file": name, "clip": index}

    def _spare_clips(self, step: int, batch: np.ndarray) -> np.ndarray:
        """Distinct clips that are not in the batch, at most `_ATTEMPTS` per slot: int64 `[up to 8 * batch_size]`."""
        count = min(len(self.pool), _ATTEMPTS * len(batch))
        drawn = random_stream(7, self.seed, step).choice(len(self.pool), count, replace=False)
        return drawn[~np.isin(drawn, batch)]

    def _draw_fallback(self, random: np.random.Generator, batch: np.ndarray, failed: set[int]) -> int | None:
        """Draw a clip that hasn't failed in this slot, preferably from outside the batch; None if there is none."""
        draws = [draw for draw in random.integers(len(self.pool), size=_DRAWS).tolist() if draw not in failed]
        return next((draw for draw in draws if draw not in batch), next(iter(draws), None))


def _list(roots: list[str], on_error: str) -> UnlabeledAudio:
    """List the folders and tar files `roots`, given by their absolute paths."""
    skipped: list[tuple[str, str]] = []

    def fault(error: AudioError) -> None:
        if on_error == "raise":
            raise error
        skipped.append((error.file, error.reason))

    listing = Listing(fault)
    for root in roots:
        try:
            listing.add(root)
        except ValueError as error:
            if isinstance(error, AudioError) or not skipped:
                raise
            raise ValueError(f"{error}; {describe_skipped(skipped, 3)}") from None
    arrays = {name: np.frombuffer(getattr(listing, name), dtype) for name, dtype in _ARRAYS.items()}
    return UnlabeledAudio(roots, arrays, listing.paths, listing.shard_sizes, skipped)


def _write_cache(path: Path, pool: UnlabeledAudio) -> None:
    """Write the cache file atomically: `path` itself is never incomplete."""
    header = {
        "layout": _LAYOUT,
        "folders": pool.folders,
        "paths": pool.paths,
        "shard_sizes": pool.shard_sizes,
        "skipped": pool.skipped,
    }
    content: dict[str, Any] = {_HEADER_KEY: np.frombuffer(json.dumps(header).encode(), np.uint8)}
    content |= {_FILE_KEYS[name]: array for name, array in pool.arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_cache(path: Path, roots: list[str]) -> UnlabeledAudio:
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file[_HEADER_KEY].tobytes())
            arrays = {name: file[key] for name, key in _FILE_KEYS.items()}
        layout, folders, paths, sizes = (header[name] for name in ("layout", "folders", "paths", "shard_sizes"))
        skipped = [(name, reason) for name, reason in header["skipped"]]
    except MemoryError:
        raise
    except Exception as error:  # of many types, depending on what is damaged
        raise ValueError(f"{path}: not a list of unlabeled audio ({error}); delete it to rescan the folders") from error
    if layout != _LAYOUT:
        raise ValueError(f"{path}: written by another version of atk; delete it to rescan the folders")
    if set(folders) != set(roots):
        raise ValueError(
            f"{path}: lists the folders {', '.join(folders)}, but {', '.join(roots)} were requested; "
            "delete it to scan these"
        )
    return UnlabeledAudio(folders, arrays, paths, sizes, skipped)
