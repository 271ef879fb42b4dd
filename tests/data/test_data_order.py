"""Training order: a permutation per epoch, the same after resuming, with similar lengths in a batch if requested."""

import itertools

import numpy as np
import pytest

from atk.data import TrainBatches
from atk.data.dataset import random_stream


@pytest.mark.parametrize("bucket", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_is_a_permutation(bucket, drop_last):
    lengths = np.random.default_rng(0).random(103)
    batches = TrainBatches(lengths, 10, 3, bucket=bucket, drop_last=drop_last)
    assert batches.steps_per_epoch == (10 if drop_last else 11) and batches.note is None
    for epoch in (0, 1):
        indices = list(itertools.chain(*batches.epoch(epoch)))
        assert len(set(indices)) == len(indices) == (100 if drop_last else 103)
    assert batches.epoch(0) != batches.epoch(1)
    assert batches.epoch(0) != TrainBatches(lengths, 10, 4, bucket=bucket, drop_last=drop_last).epoch(0)


@pytest.mark.parametrize("bucket", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 33])
def test_order_resumes_at_any_step(bucket, drop_last, start):
    lengths = list(np.random.default_rng(0).random(103))
    expected = list(itertools.islice(TrainBatches(lengths, 10, 3, 0, bucket, drop_last), 40))
    rest = list(itertools.islice(TrainBatches(lengths, 10, 3, start, bucket, drop_last), 40 - start))
    assert rest == expected[start:]
    assert {epoch for batch in expected for _, epoch in batch} == set(range(4))


def test_order_and_crops_are_different_streams():
    draws = {random_stream(*key).integers(1 << 62) for key in [(1, 2), (1, 2, 0), (1, 2, 0, 0), (2, 2), (2, 2, 0)]}
    assert len(draws) == 5


def test_buckets_hold_similar_lengths():
    lengths = np.random.default_rng(0).random(2000)

    def spread(bucket):
        return np.mean([np.ptp(lengths[batch]) for batch in TrainBatches(lengths, 10, 0, bucket=bucket).epoch(0)])

    assert spread(True) < 0.05 < 0.5 < spread(False)
    first = [TrainBatches(lengths, 10, 0, bucket=True).epoch(epoch)[0] for epoch in range(20)]
    assert np.std([lengths[batch].mean() for batch in first]) > 0.1  # batches of short and of long clips are shuffled
    batches = {
        frozenset(batch) for epoch in range(3) for batch in TrainBatches(lengths, 10, 0, bucket=True).epoch(epoch)
    }
    assert len(batches) == 600  # no two epochs share a batch


def test_leftovers_of_buckets_are_not_always_the_longest():
    batches = TrainBatches(np.arange(15.0), 10, 0, bucket=True)
    left_out = {index for epoch in range(30) for index in set(range(15)) - set(batches.epoch(epoch)[0])}
    assert left_out == set(range(15))


def test_fewer_clips_than_a_batch():
    batches = TrainBatches(3, 8, 0)
    assert batches.steps_per_epoch == 1
    assert batches.note == "3 clips are fewer than batch_size 8: every batch has all of them"
    for epoch, batch in enumerate(itertools.islice(batches, 3)):
        assert sorted(batch) == [(0, epoch), (1, epoch), (2, epoch)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": 0}, "number of clips must be at least 1, got 0"),
        ({"lengths": []}, "number of clips must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"start_step": -1}, "start_step must be at least 0, got -1"),
        ({"bucket": True}, "lengths must be a sequence if bucket=True, got the integer 4"),
    ],
)
def test_bad_arguments_of_the_order(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainBatches(**{"lengths": 4, "batch_size": 2, "seed": 0} | arguments)
