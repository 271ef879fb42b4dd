"""The order of training: which clips make up batch k, as a function of the seed and k alone."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from atk.data.dataset import random_stream
from atk.ops.checks import at_least

_BUCKET_BATCHES = 50  # batches' worth of clips that are sorted by length together


class TrainBatches(Sampler):
    """Endless batches of `(index, epoch)` pairs; each epoch is a permutation drawn from (seed, epoch).

    Started at step k it gives exactly the batches that an uninterrupted run has from its k-th on (counted from 0).

    Args:
        lengths: of the clips, in any unit; or their number, where `bucket` is off.
        batch_size: clips in a batch. With fewer clips than that, every batch is one epoch of all of them (see `note`).
        seed: of the order, at least 0.
        start_step: the first batch to give.
        bucket: batch clips of similar length together. Lengths are sorted within random groups of 50 batches and the
            batches then shuffled, so that composition still changes with the epoch.
        drop_last: leave out the clips beyond the last full batch of an epoch, others in each epoch.
        rank, world_size: give every `world_size`-th clip of each batch, from the one numbered `rank` on.

    Attributes:
        steps_per_epoch: batches in an epoch.
        note: a line for the user where the batches are not what was asked for, else None.

    Raises:
        ValueError: an argument is out of range, or `bucket` without lengths.
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
    ):
        if bucket and isinstance(lengths, int):
            raise ValueError(f"lengths must be a sequence where bucket=True, got the number {lengths}")
        self.lengths = None if isinstance(lengths, int) else np.asarray(lengths, dtype=np.float64)
        self.clips = lengths if isinstance(lengths, int) else len(lengths)
        for name, value, minimum in (
            ("the number of clips", self.clips, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("start_step", start_step, 0),
        ):
            at_least(name, value, minimum)
        self.batch_size, self.seed, self.start_step = batch_size, seed, start_step
        self.bucket, self.drop_last = bucket, drop_last
        self.rank, self.world_size = rank, world_size
        full, rest = divmod(self.clips, batch_size)
        self.steps_per_epoch = max(1, full + (rest > 0 and not drop_last))
        self.note = None
        if full == 0:
            self.note = f"{self.clips} clips are fewer than batch_size {batch_size}: every batch holds all of them"

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self.start_step, self.steps_per_epoch)
        while True:
            for batch in self.epoch(epoch)[first:]:
                yield [(index, epoch) for index in batch[self.rank :: self.world_size]]
            epoch, first = epoch + 1, 0

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as clip numbers."""
        random = random_stream(2, self.seed, epoch)
        order = random.permutation(self.clips)
        if self.drop_last:  # before sorting, so that it is not always the longest that are left out
            order = order[: self.steps_per_epoch * self.batch_size]
        if self.bucket:
            group = _BUCKET_BATCHES * self.batch_size
            groups = (order[first : first + group] for first in range(0, len(order), group))
            order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in groups])
        batches = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        if self.bucket:
            batches = [batches[number] for number in random.permutation(len(batches))]
        return [batch.tolist() for batch in batches]
