"""Batches of captioned and unlabeled clips: their mixtures, names, and sizes."""

import torch

from atk.data import Batch
from atk.train.semisupervised_batch import SemiSupervisedBatch, mixture


def batch_of(*lengths, value=1.0):
    audio = torch.zeros(len(lengths), max(lengths))
    for row, length in zip(audio, lengths, strict=True):
        row[:length] = value
    names = [f"{value} {index}" for index in range(len(lengths))]
    return Batch(audio, torch.tensor(lengths), names, names, torch.arange(len(lengths)), [])


def test_mixture_is_half_of_each():
    audio, lengths = mixture(batch_of(3, 5, value=1.0), batch_of(4, 2, 9, value=3.0), 2)
    assert lengths.tolist() == [4, 5]
    assert audio[0].tolist() == [2.0, 2.0, 2.0, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert audio[1].tolist() == [2.0, 2.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]


def test_the_files_of_a_batch_are_those_of_both_kinds():
    assert SemiSupervisedBatch(batch_of(2), batch_of(3)).files == ["1.0 0", "1.0 0"]


def test_sharded_ranks_take_equally_many_clips_of_both_kinds():
    batch = SemiSupervisedBatch(batch_of(3, 5), batch_of(4, 2, 9)).pairs()
    assert batch.sizes == [2, 2] and batch.unlabeled.lengths.tolist() == [4, 2]
    alone = SemiSupervisedBatch(batch_of(3, 5), None)
    assert alone.pairs() is alone
