"""Batches of unlabeled audio: endless, full, and a function of seed and step alone."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.unlabeled_cases import RATE, audio_bytes, ramps, take, tar

from atk.data import AudioError, UnlabeledAudio, UnlabeledBatches, load_audio, load_crop


def assert_same(batches, expected):
    for batch, reference in zip(batches, expected, strict=True):
        assert (batch.files, batch.skipped) == (reference.files, reference.skipped)
        assert torch.equal(batch.audio, reference.audio) and torch.equal(batch.lengths, reference.lengths)
        assert torch.equal(batch.clips, reference.clips)


@pytest.mark.slow
def test_workers_and_resume_change_nothing(tmp_path):
    ramps(tmp_path / "a", 9)
    (tmp_path / "a" / "bad.wav").write_text("not audio")
    tar(tmp_path / "b.tar", [("x.wav", audio_bytes())])
    pool = UnlabeledAudio.scan([tmp_path / "a", tmp_path / "b.tar"])
    expected = take(pool, 9)  # crosses the end of three epochs
    assert any(batch.skipped for batch in expected[2:]) and any(
        "b.tar:x.wav" in str(batch.files) for batch in expected[2:]
    )
    for step in (1, 2, 5):
        assert_same(take(pool, 9 - step, start_step=step), expected[step:])
    assert_same(take(pool, 9, workers=1), expected)
    assert_same(take(pool, 7, workers=2, start_step=2), expected[2:])
    assert take(pool, 9, seed=4)[0].files != expected[0].files


def test_content_of_a_batch(tmp_path):
    ramps(tmp_path, 5, 2.0)
    ramps(tmp_path, 1, 0.3, first=5)
    pool = UnlabeledAudio.scan([tmp_path])
    for batch in take(pool, 20, sample_rate=RATE):
        assert batch.captions == [""] * 4 and batch.skipped == []
        assert batch.files == [pool.name(clip) for clip in batch.clips.tolist()]
        for clip, audio, length in zip(batch.clips.tolist(), batch.audio, batch.lengths.tolist(), strict=True):
            assert length == (300 if clip == 5 else 500) and not audio[length:].any()
            assert int(audio[0]) == clip


def test_crops_cover_a_clip_and_change_with_the_epoch(tmp_path):
    ramps(tmp_path, 2)
    batches = take(UnlabeledAudio.scan([tmp_path]), 150, sample_rate=RATE, batch_size=2)
    rows = [(clip, audio[0]) for batch in batches for clip, audio in zip(batch.clips, batch.audio, strict=True)]
    starts = [1000 * (float(value) - int(clip)) for clip, value in rows]
    assert min(starts) < 0.1 and max(starts) > 1.4 and np.mean(starts) == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize(("clips", "batch_size"), [(12, 4), (10, 4), (3, 8), (5, 4), (1, 3)])
def test_full_batches_hold_each_clip_once_per_epoch(clips, batch_size):
    batches = list(itertools.islice(UnlabeledBatches(clips, batch_size, seed=1), 60))
    assert {len(batch) for batch in batches} == {batch_size}
    drawn = [int(clips_of_batch[slot]) for batch in batches for _, slot, _, clips_of_batch in batch]
    epochs = [drawn[first : first + clips] for first in range(0, len(drawn) - clips + 1, clips)]
    assert all(sorted(epoch) == list(range(clips)) for epoch in epochs)
    assert clips == 1 or len({tuple(epoch) for epoch in epochs}) > 1
    keys = [(step, slot) for batch in batches for step, slot, _, _ in batch]
    assert keys == list(itertools.product(range(60), range(batch_size)))
    (late,) = itertools.islice(UnlabeledBatches(clips, batch_size, seed=1, start_step=37), 1)
    assert [key[:3] for key in late] == [key[:3] for key in batches[37]]
    assert late[0][3].tolist() == batches[37][0][3].tolist()


@pytest.mark.parametrize("clips", [8, 9, 11, 18, 31])
def test_no_batch_contains_a_clip_twice(clips):
    for batch in itertools.islice(UnlabeledBatches(clips, 4, seed=0), 300):
        assert len({int(clips_of_batch[slot]) for _, slot, _, clips_of_batch in batch}) == 4


def test_unreadable_clips_are_named_and_replaced(tmp_path):
    ramps(tmp_path, 12)
    faults = {"cut.flac": "damaged or truncated", "empty.wav": "empty file", "text.ogg": "not readable as audio"}
    soundfile.write(tmp_path / "cut.flac", np.random.default_rng(0).standard_normal(20 * RATE) / 10, RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:2000])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.ogg").write_text("not audio")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    pool = UnlabeledAudio.scan([tmp_path])
    assert len(pool) == 16 and pool.skipped == []  # nothing is opened yet
    batches = take(pool, 4, clip_seconds=30.0)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4]
    assert all(len(set(batch.files)) == 4 for batch in batches)
    skipped = {Path(name).name: reason for batch in batches for name, reason in batch.skipped}
    assert set(skipped) == {*faults, "none.wav"}
    assert all(reason in skipped[name] for name, reason in faults.items())
    with pytest.raises(AudioError, match=rf"^{tmp_path}/[^\n]*$"):
        take(pool, 4, clip_seconds=30.0, on_error="raise")


@pytest.mark.parametrize("good", [27, 3])
def test_world_size_does_not_change_what_replaces_unreadable_clips(tmp_path, good):
    ramps(tmp_path, good)
    for index in range(5):
        (tmp_path / f"bad {index}.wav").write_text("not audio")
    pool = UnlabeledAudio.scan([tmp_path])
    expected = take(pool, 40)
    faults = [name for batch in expected for name, _ in batch.skipped]
    assert len(faults) > len(set(faults)) == 5
    for batch, *shares in zip(expected, *(take(pool, 40, rank=rank, world_size=2) for rank in (0, 1)), strict=True):
        assert sorted(batch.files) == sorted(file for share in shares for file in share.files)
        assert sorted(batch.skipped) == sorted(fault for share in shares for fault in share.skipped)
        assert good == 3 or len(set(batch.files)) == 4


def test_few_readable_clips_fill_a_batch(tmp_path):
    ramps(tmp_path, 1)
    (tmp_path / "bad.wav").write_text("not audio")
    batches = take(UnlabeledAudio.scan([tmp_path]), 10)
    assert all([Path(name).name for name in batch.files] == ["000.wav"] * 4 for batch in batches)


def test_nothing_readable_gives_empty_batches(tmp_path):
    for index in range(40):
        (tmp_path / f"{index}.wav").write_text("not audio")
    (batch,) = take(UnlabeledAudio.scan([tmp_path]), 1)
    assert len(batch) == 0 and len(batch.skipped) == 4 * 8


def test_load_crop_is_load_audio_at_a_relative_position(tmp_path):
    path = ramps(tmp_path, 1) / "000.wav"
    for position, start in ((0.0, 0.0), (0.5, 0.75), (1.0, 1.5)):
        expected = load_audio(path, 800, start, 0.5)
        assert torch.equal(load_crop(path, 800, 0.5, position), expected)
        assert torch.equal(load_crop("named", 800, 0.5, position, path.read_bytes()), expected)
    assert torch.equal(load_crop(path, RATE, 9.0, 0.7), load_audio(path, RATE))
    with pytest.raises(AudioError, match=r"^named: empty file"):
        load_crop("named", RATE, 1.0, 0.0, b"")
    with pytest.raises(ValueError, match=r"position in \[0, 1\], got 1\.0 and 1\.1"):
        load_crop(path, RATE, 1.0, 1.1)
