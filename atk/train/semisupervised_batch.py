"""Batches of semi-supervised training: captioned and unlabeled clips, and their mixtures."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from atk.data import Batch


@dataclass
class SemiSupervisedBatch:
    """Captioned clips, and unlabeled clips if the loss uses them.

    Attributes:
        labeled: captioned clips.
        unlabeled: unlabeled clips, or None.
    """

    labeled: Batch
    unlabeled: Batch | None

    @property
    def files(self) -> list[str]:
        """The names of all files in the batch."""
        return self.labeled.files + ([] if self.unlabeled is None else self.unlabeled.files)

    @property
    def sizes(self) -> list[int]:
        """The number of clips of each data set that the loss uses; if any is 0, the batch is skipped."""
        return [len(self.labeled)] + ([] if self.unlabeled is None else [len(self.unlabeled)])

    def pairs(self) -> "SemiSupervisedBatch":
        """The batch, cut to equally many captioned and unlabeled clips."""
        if self.unlabeled is None:
            return self
        count = min(self.sizes)
        return SemiSupervisedBatch(self.labeled.rows(0, count), self.unlabeled.rows(0, count))

    def split(self, size: int) -> "list[SemiSupervisedBatch]":
        """Parts of at most `size` captioned and `size` unlabeled clips."""
        labeled = self.labeled.split(size)
        unlabeled = [] if self.unlabeled is None else self.unlabeled.split(size)
        empty = self.labeled.rows(0, 0)
        return [
            SemiSupervisedBatch(empty if captioned is None else captioned, uncaptioned)
            for captioned, uncaptioned in itertools.zip_longest(labeled, unlabeled)
        ]


def mixture(first: Batch, second: Batch, pairs: int) -> tuple[Tensor, Tensor]:
    """Mix the first `pairs` clips of two batches: `(x_a + x_un) / 2` (5.6), as long as the longer of the two clips.

    Returns:
        Waveforms `[pairs, S]`, zero-padded, and their lengths `[pairs]`.
    """
    samples = max(first.audio.shape[1], second.audio.shape[1])
    audio = first.audio.new_zeros(pairs, samples)
    for batch in (first, second):
        audio[:, : batch.audio.shape[1]] += batch.audio[:pairs] / 2
    return audio, torch.maximum(first.lengths[:pairs], second.lengths[:pairs])
