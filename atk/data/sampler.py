"""Training orders: the clips of batch k as a function of the seed and k alone."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from atk.data.dataset import random_stream
from atk.ops.checks import at_least

_NEARBY = 10_000  # clips among which to look for one to change places with
_BUCKET_BATCHES = 50  # batches per group of clips that is sorted by length

UnlabeledKey = tuple[int, int, int, np.ndarray]  # step, slot, epoch, clips of the batch


@dataclass(frozen=True)
class SetWeights:
    """How often an epoch draws the clips of each of several data sets.

    An epoch draws `weight * size` clips of a data set, rounded, and at least one. It goes on where the epoch before
    stopped: with weight 0.5, two epochs draw every clip once, and with weight 2, one epoch draws every clip twice.

    Args:
        sizes: number of clips of each data set, in the order of the clips; data sets without clips are passed over.
        weights: one for each data set, above 0; 1 draws every clip once per epoch.

    Raises:
        ValueError: the number of weights is not that of the data sets, or a weight is not above 0.
    """

    sizes: Sequence[int]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.weights):
            raise ValueError(f"data_weights must be {len(self.sizes)}, one per data set, got {len(self.weights)}")
        if wrong := [weight for weight in self.weights if not 0 < weight < float("inf")]:
            raise ValueError(f"data_weights must be above 0 and finite, got {wrong[0]}")

    @property
    def counts(self) -> list[int]:
        """Number of clips that an epoch draws from each data set."""
        sized = zip(self.sizes, self.weights, strict=True)
        return [max(1, round(size * weight)) if size else 0 for size, weight in sized]

    def draw(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The clips of an epoch, before they are shuffled, and how often each was drawn before: int64 `[draws]`."""
        clips = []
        passes = []
        first = 0
        for index, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            start = epoch * count
            for draw in range(start // size, -(-(start + count) // size)) if size else ():
                order = np.arange(size)
                if count != size:  # else all of them are drawn, and their order does not matter
                    order = random_stream(9, seed, index, draw).permutation(size)
                part = order[max(0, start - draw * size) : start + count - draw * size]
                clips.append(first + part)
                passes.append(np.full(len(part), draw))
            first += size
        return np.concatenate(clips), np.concatenate(passes)


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Endless batches of `(clip, epoch)` pairs; each epoch is a permutation drawn from (seed, epoch).

    With `sets`, an epoch draws some clips less or more than once. The second number of a pair is then how often the
    clip was drawn before, and a batch holds a clip twice only if the epoch has too few others.

    With `start_step=k`, the batches are exactly those of an uninterrupted run from batch k on (counted from 0).

    Args:
        lengths: clip lengths in any unit; without `bucket`, the clip count is enough.
        batch_size: clips per batch. With fewer clips than that, every batch is one epoch of all clips (see `note`).
        seed: seed of the order, at least 0.
        start_step: first batch to yield.
        bucket: put clips of similar length in the same batch. Clips are sorted by length within random groups of 50
            batches, then the batches are shuffled, so their composition still changes every epoch.
        drop_last: drop the clips beyond the last full batch of an epoch, which differ from epoch to epoch.
        rank: rank of this process, which gets every `world_size`-th clip of each batch, starting at clip `rank`.
        world_size: process count.
        sets: data sets of the clips, with weights; None draws every clip once per epoch.

    Attributes:
        steps_per_epoch: batches per epoch.
        note: message for the user if the batches differ from what was asked for, else None.

    Raises:
        ValueError: an argument is out of range, or `bucket` is set without lengths.
    """

    def __init__(
        self,
        lengths: Sequence[float] | int,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        bucket: bool = False,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        sets: SetWeights | None = None,
    ):
        if bucket and isinstance(lengths, int):
            raise ValueError(f"lengths must be a sequence if bucket=True, got the integer {lengths}")
        self.lengths = None if isinstance(lengths, int) else np.asarray(lengths, dtype=np.float64)
        self.clips = lengths if isinstance(lengths, int) else len(lengths)
        for name, value, minimum in (
            ("the number of clips", self.clips, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("start_step", start_step, 0),
        ):
            at_least(name, value, minimum)
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.bucket = bucket
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.sets = sets
        if sets is not None and sum(sets.sizes) != self.clips:
            raise ValueError(f"sets must have {self.clips} clips in all, got {sum(sets.sizes)}")
        draws = self.clips if sets is None else sum(sets.counts)
        full, rest = divmod(draws, batch_size)
        self.steps_per_epoch = max(1, full + (rest > 0 and not drop_last))
        self.note: str | None = None
        if full == 0:
            self.note = f"{draws} clips are fewer than batch_size {batch_size}: every batch has all of them"

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self.start_step, self.steps_per_epoch)
        while True:
            clips, passes, batches = self._draw(epoch)
            for batch in batches[first:]:
                part = batch[self.rank :: self.world_size]
                yield list(zip(clips[part].tolist(), passes[part].tolist(), strict=True))
            epoch += 1
            first = 0

    def epoch(self, epoch: int) -> list[list[int]]:
        """Batches of an epoch, as clip indices."""
        clips, _, batches = self._draw(epoch)
        return [clips[batch].tolist() for batch in batches]

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """The clips of an epoch and how often each was drawn before, and the positions in these of each batch."""
        clips, passes = np.arange(self.clips), np.full(self.clips, epoch)
        if self.sets is not None:
            clips, passes = self.sets.draw(self.seed, epoch)
        random = random_stream(2, self.seed, epoch)
        order = random.permutation(len(clips))
        if self.drop_last:  # before sorting; otherwise, the longest clips would always be dropped
            order = order[: self.steps_per_epoch * self.batch_size]
        if self.bucket:
            assert self.lengths is not None
            lengths = self.lengths[clips]
            groups = _parts(order, _BUCKET_BATCHES * self.batch_size)
            order = np.concatenate([group[np.argsort(lengths[group], kind="stable")] for group in groups])
        if self.sets is not None:
            order = order[_without_repeats(clips[order], self.batch_size)]
        batches = _parts(order, self.batch_size)
        if self.bucket:
            batches = [batches[index] for index in random.permutation(len(batches))]
        return clips, passes, batches


class UnlabeledBatches(Sampler[list[UnlabeledKey]]):
    """Endless batches of `(step, slot, epoch, batch)`: consecutive epochs of the pool, reshuffled every epoch.

    `batch` holds the clips of the whole batch over all ranks, int64 `[batch_size]`, and the clip of a key is
    `batch[slot]`. Batches may cross the end of an epoch, so each clip appears once per epoch and every batch is full,
    even if the pool is smaller than a batch. With at least `2 * batch_size` clips, no batch contains a clip twice.
    Batch k is a function of (seed, k) alone.

    Args:
        clips: clip count.
        batch_size: clips per batch, over all ranks.
        seed: seed of the order, at least 0.
        start_step: first batch to yield.
        rank, world_size: as in `TrainBatches`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, clips: int, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1):
        at_least("the number of clips", clips, 1)
        at_least("batch_size", batch_size, 1)
        at_least("seed", seed, 0)
        at_least("start_step", start_step, 0)
        self.clips = clips
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[UnlabeledKey]]:
        epoch = -1
        order = np.empty(0, dtype=np.int64)
        for step in itertools.count(self.start_step):
            batch = np.empty(self.batch_size, dtype=np.int64)
            keys: list[UnlabeledKey] = []
            for slot in range(self.batch_size):
                slot_epoch, position = divmod(step * self.batch_size + slot, self.clips)
                if slot_epoch != epoch:
                    epoch = slot_epoch
                    order = self.epoch(epoch)
                batch[slot] = order[position]
                keys.append((step, slot, epoch, batch))
            yield keys[self.rank :: self.world_size]

    def epoch(self, epoch: int) -> np.ndarray:
        """Order of an epoch, as clip indices: int64 `[clips]`."""
        order = self._permutation(epoch)
        carried = epoch * self.clips % self.batch_size  # clips of the previous epoch in the first batch of this one
        if carried and self.clips >= 2 * self.batch_size:
            # That batch must not hold a clip twice, so its clips of the previous epoch come later in this one, but
            # before the last batch, which may hold clips of the next epoch.
            early = order[: -self.batch_size]
            repeated = np.isin(early, self._permutation(epoch - 1)[-carried:])
            order[: -self.batch_size] = np.concatenate([early[~repeated], early[repeated]])
        return order

    def _permutation(self, epoch: int) -> np.ndarray:
        return random_stream(5, self.seed, epoch).permutation(self.clips)


def _without_repeats(clips: np.ndarray, batch_size: int) -> np.ndarray:
    """Positions in `clips`, in which a clip that repeats within a batch changes places with one of a batch nearby."""
    values = clips.tolist()
    order = np.arange(len(values))
    if len(set(values)) == len(values):
        return order
    batches = [Counter(values[first : first + batch_size]) for first in range(0, len(values), batch_size)]
    for position, clip in enumerate(values):
        batch = batches[position // batch_size]
        if batch[clip] == 1:
            continue
        for other in _elsewhere(position // batch_size, clip, batches, batch_size, len(values)):
            if not batch[values[other]]:
                for counts, old, new in (
                    (batch, clip, values[other]),
                    (batches[other // batch_size], values[other], clip),
                ):
                    counts[old] -= 1
                    counts[new] += 1
                order[[position, other]] = order[[other, position]]
                values[position], values[other] = values[other], clip
                break
    return order


def _elsewhere(index: int, clip: int, batches: list[Counter[int]], batch_size: int, end: int) -> Iterator[int]:
    """Positions near batch `index` in batches without `clip`: later ones in order, then earlier ones backward."""
    first = index * batch_size
    stop, start = min(end, first + _NEARBY), max(-1, first - _NEARBY)
    for later in range(index + 1, -(-stop // batch_size)):
        if not batches[later][clip]:
            yield from range(later * batch_size, min((later + 1) * batch_size, stop))
    for earlier in range(index - 1, -1, -1):
        if (earlier + 1) * batch_size - 1 <= start:
            return
        if not batches[earlier][clip]:
            yield from range((earlier + 1) * batch_size - 1, max(earlier * batch_size - 1, start), -1)


def _parts(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Split `order` into consecutive parts of at most `size`."""
    return [order[first : first + size] for first in range(0, len(order), size)]
