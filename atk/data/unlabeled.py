"""Unlabelled audio of any amount: folders and tar shards listed once, kept compactly, drawn in an endless order."""

import itertools
import json
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from atk.data.audio import AudioError, load_crop
from atk.data.captions import ON_ERROR, describe_skipped
from atk.data.dataset import Batch, collate, random_stream
from atk.data.listing import Listing
from atk.data.shards import expand_braces, read_member
from atk.ops.checks import at_least, one_of

_ARRAYS = {"names": np.uint8, "ends": np.int64, "homes": np.int32, "offsets": np.int64, "sizes": np.int64}
_LAYOUT = 1  # of the cache
_TRIES = 8  # clips tried for a place, the batch's own the first
_DRAWS = 16  # numbers drawn where a small pool has no more clips beside the batch


@dataclass(frozen=True, eq=False)
class UnlabeledAudio:
    """A pool of n audio files and members of tar shards, some 50 to 100 bytes of memory for each.

    Attributes:
        folders: what was listed: folders and tar files, absolute.
        arrays: the clips, packed as in `Listing`: names, ends, homes, offsets, sizes.
        paths: of the folders and shards that hold them.
        shard_sizes: of the shards in bytes, -1 for folders.
        skipped: (path, reason) of folders and shards that could not be listed, or not to their end.
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
        """List folders, or read back what an earlier call listed.

        Folders are searched recursively for the suffixes of `find_audio` and for tar shards (.tar), of which the
        members with these suffixes count. Only names are read, and the headers of tars: whether a clip can be decoded
        shows when it is loaded. Each folder and shard counts once, even where `folders` name it twice or lie in one
        another.

        Args:
            folders: folders and tar files; `shards-{000..099}.tar` stands for a range of them.
            cache: file to keep the list in (.npz). Where it exists nothing is listed, and the order stays what it was,
                whatever came or went since; None lists anew.
            on_error: "skip" leaves out folders and shards that cannot be listed and names them in `skipped`; "raise"
                stops at the first.

        Raises:
            FileNotFoundError: one of `folders` does not exist.
            ValueError: `folders` is empty, or one of them holds no audio or is a compressed tar; `cache` was made of
                other folders, or is damaged.
            AudioError: with `on_error="raise"`, a folder or shard cannot be listed.
        """
        one_of("on_error", on_error, ON_ERROR)
        if isinstance(folders, (str, Path)):
            raise TypeError(f"folders must be a sequence of paths, got the single path {str(folders)!r}")
        roots = [os.path.abspath(path) for folder in folders for path in expand_braces(os.fspath(folder))]
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
        """The absolute path of clip `index`, or that of its shard, a colon and the member's name."""
        ends = self.arrays["ends"]
        first = int(ends[index - 1]) if index else 0
        name = os.fsdecode(self.arrays["names"][first : int(ends[index])].tobytes())
        home = self.arrays["homes"][index]
        return os.path.join(self.paths[home], name) if self.shard_sizes[home] < 0 else f"{self.paths[home]}:{name}"

    def load(self, index: int, sample_rate: int, seconds: float, position: float) -> Tensor:
        """The crop of clip `index` at `position` (0 .. 1): float32 `[samples]`, see `load_crop`; raises AudioError."""
        name, home = self.name(index), self.arrays["homes"][index]
        content = None
        if self.shard_sizes[home] >= 0:
            offset, size = int(self.arrays["offsets"][index]), int(self.arrays["sizes"][index])
            content = read_member(self.paths[home], self.shard_sizes[home], offset, size, name)
        return load_crop(name, sample_rate, seconds, position, content)


class UnlabeledBatches(Sampler):
    """Endless batches of `(step, place, epoch, batch)`: epochs of the whole pool, shuffled anew, one after another.

    `batch` holds the clips of the whole batch, of all ranks, int64 `[batch_size]`; that of the key is `batch[place]`.
    Batches run on over the end of an epoch, so each clip comes once in an epoch and every batch is full, even where
    the pool is smaller. From two batches' worth of clips on, no batch holds a clip twice. Batch k depends on (seed, k)
    alone.

    Args:
        clips: their number.
        batch_size: clips in a batch.
        seed: of the order, at least 0.
        start_step: the first batch to give.
        rank, world_size: as in `TrainBatches`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, clips: int, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1):
        at_least("the number of clips", clips, 1)
        at_least("batch_size", batch_size, 1)
        at_least("seed", seed, 0)
        at_least("start_step", start_step, 0)
        self.clips, self.batch_size, self.seed, self.start_step = clips, batch_size, seed, start_step
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int, int, np.ndarray]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in itertools.count(self.start_step):
            batch, keys = np.empty(self.batch_size, dtype=np.int64), []
            for place in range(self.batch_size):
                now, position = divmod(step * self.batch_size + place, self.clips)
                if now != epoch:
                    epoch, order = now, self.epoch(now)
                batch[place] = order[position]
                keys.append((step, place, epoch, batch))
            yield keys[self.rank :: self.world_size]

    def epoch(self, epoch: int) -> np.ndarray:
        """The order of an epoch: int64 `[clips]`."""
        order = self._permutation(epoch)
        before = epoch * self.clips % self.batch_size  # clips of the last epoch in this one's first batch
        if before and self.clips >= 2 * self.batch_size:
            early = order[: -self.batch_size]  # the rest shares a batch with the next epoch
            again = np.isin(early, self._permutation(epoch - 1)[-before:])
            order[: -self.batch_size] = np.concatenate([early[~again], early[again]])
        return order

    def _permutation(self, epoch: int) -> np.ndarray:
        return random_stream(5, self.seed, epoch).permutation(self.clips)


class UnlabeledDataset(Dataset):
    """Random crops of the clips of a pool, by batches of `UnlabeledBatches`.

    The crop is a function of (seed, epoch, index). For a clip that cannot be read another one is drawn; each fault is
    named in `Batch.skipped`. After 8 faults a place stays empty. What replaces it is a function of the seed, the step
    and the place, not of the rank that reads it. Each place has clips of its own to draw on, none of the batch: no clip
    comes twice, on whatever rank, where the pool holds at least 8 batches' worth of clips.

    Args:
        pool: the clips.
        sample_rate: of the waveforms, in Hz.
        clip_seconds: longest crop; shorter clips are taken whole.
        seed: of crops and of what replaces unreadable clips, at least 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, pool: UnlabeledAudio, sample_rate: int, clip_seconds: float, seed: int = 0):
        at_least("sample_rate", sample_rate, 1)
        if not 0 < clip_seconds < math.inf:
            raise ValueError(f"clip_seconds must be above 0, got {clip_seconds}")
        at_least("seed", seed, 0)
        self.pool, self.sample_rate, self.clip_seconds, self.seed = pool, sample_rate, clip_seconds, seed

    def __len__(self) -> int:
        return len(self.pool)

    def __getitems__(self, keys: Sequence[tuple[int, int, int, np.ndarray]]) -> list[dict[str, Any] | AudioError]:
        """The items of a batch, or of a rank's share of it, after each the errors met on the way; its caption is ""."""
        items, spare = [], None
        for step, place, epoch, batch in keys:
            index, failed = int(batch[place]), set()
            random = random_stream(6, self.seed, epoch, index)
            for attempt in range(_TRIES):
                try:
                    items.append(self._item(index, random.random()))
                    break
                except AudioError as error:
                    items.append(error)
                    failed.add(index)
                if spare is None:
                    spare = self._spare(step, batch)
                random = random_stream(7, self.seed, step, place, attempt)
                number = attempt * len(batch) + place
                index = int(spare[number]) if number < len(spare) else self._repeated(random, batch, failed)
                if index is None:
                    break
        return items

    def collate(self, items: Sequence[dict[str, Any] | AudioError]) -> Batch:
        """The batch of these items."""
        return collate(items)

    def _item(self, index: int, position: float) -> dict[str, Any]:
        audio = self.pool.load(index, self.sample_rate, self.clip_seconds, position)
        return {"audio": audio, "caption": "", "file": self.pool.name(index), "clip": index}

    def _spare(self, step: int, batch: np.ndarray) -> np.ndarray:
        """Clips that the batch does not hold, each once, at most `_TRIES` for a place: int64 `[up to 8 batches]`."""
        count = min(len(self.pool), _TRIES * len(batch))
        drawn = random_stream(7, self.seed, step).choice(len(self.pool), count, replace=False)
        return drawn[~np.isin(drawn, batch)]

    def _repeated(self, random: np.random.Generator, batch: np.ndarray, failed: set[int]) -> int | None:
        """A clip that did not fail here, if possible not of the batch, though perhaps another place's; else None."""
        draws = [draw for draw in random.integers(len(self.pool), size=_DRAWS).tolist() if draw not in failed]
        return next((draw for draw in draws if draw not in batch), next(iter(draws), None))


def _list(roots: list[str], on_error: str) -> UnlabeledAudio:
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
    """Write the list to a file that a kill leaves either missing or whole."""
    told = {"layout": _LAYOUT} | {name: getattr(pool, name) for name in ("folders", "paths", "shard_sizes", "skipped")}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("wb") as file:
        np.savez(file, told=np.frombuffer(json.dumps(told).encode(), np.uint8), **pool.arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _read_cache(path: Path, roots: list[str]) -> UnlabeledAudio:
    try:
        with np.load(path, allow_pickle=False) as file:
            told = json.loads(file["told"].tobytes())
            arrays = {name: file[name] for name in _ARRAYS}
        layout, folders, paths, sizes = (told[name] for name in ("layout", "folders", "paths", "shard_sizes"))
        skipped = [(name, reason) for name, reason in told["skipped"]]
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a list of unlabelled audio ({error}); delete it to list the folders") from None
    if layout != _LAYOUT:
        raise ValueError(f"{path}: written by another version of atk; delete it to list the folders")
    if set(folders) != set(roots):
        raise ValueError(
            f"{path}: lists other folders, {', '.join(folders)}, than those asked for, {', '.join(roots)}; "
            "delete it to list these"
        )
    return UnlabeledAudio(folders, arrays, paths, sizes, skipped)
