"""Crops, windows, and loaders: the content of a batch is a function of seed and step alone."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from atk.data import (
    AudioError,
    EvalDataset,
    TrainDataset,
    collate,
    eval_loader,
    read_folder,
    read_split,
    train_loader,
)

RATE = 1000


def ramp_clips(folder, lengths, captions=3):
    """Write clips whose samples identify clip and time: the clip index plus time / 1000 s."""
    rows = ["file_name," + ",".join(f"caption_{k}" for k in range(captions))]
    for i, seconds in enumerate(lengths):
        wave = i + np.arange(round(seconds * RATE)) / (1000 * RATE)
        soundfile.write(folder / f"{i}.wav", wave, RATE, subtype="DOUBLE")
        rows.append(f"{i}.wav," + ",".join(f"{i} {k}" for k in range(captions)))
    (folder / "train.csv").write_text("\n".join(rows))
    return read_split(folder, "train").clips


def start_of(audio, clip):
    """Start of a crop in its clip, in seconds."""
    return 1000 * (float(audio[0]) - clip)


def contents(batch):
    return batch.files, batch.captions, batch.clips.tolist(), batch.lengths.tolist(), batch.audio, batch.skipped


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, reference in zip(batches, expected, strict=True):
        *exact, audio, skipped = contents(batch)
        *expected_exact, expected_audio, expected_skipped = contents(reference)
        assert exact == expected_exact and skipped == expected_skipped
        assert torch.equal(audio, expected_audio)


def truncated_flac(path):
    soundfile.write(path, np.random.default_rng(0).standard_normal(20 * RATE) / 10, RATE)
    path.write_bytes(path.read_bytes()[:2000])


# ---- crops


def test_crop_is_a_function_of_seed_epoch_and_index(tmp_path):
    clips = ramp_clips(tmp_path, [5.0, 5.0])
    items = {(s, e, i): TrainDataset(clips, RATE, 1.0, s)[i, e] for s in (0, 1) for e in (0, 1) for i in (0, 1)}
    starts = {round(start_of(item["audio"], item["clip"]), 3) for item in items.values()}
    assert len(starts) == len(items)
    again = TrainDataset(clips, RATE, 1.0, 1)
    again[0, 5]  # earlier reads have no effect
    assert torch.equal(again[1, 1]["audio"], items[1, 1, 1]["audio"])
    assert again[1, 1]["caption"] == items[1, 1, 1]["caption"]


def test_crops_and_captions_cover_a_clip(tmp_path):
    dataset = TrainDataset(ramp_clips(tmp_path, [4.0]), RATE, 1.0)
    items = [dataset[0, epoch] for epoch in range(300)]
    assert {len(item["audio"]) for item in items} <= {RATE - 1, RATE}
    starts = [start_of(item["audio"], 0) for item in items]
    assert min(starts) < 0.1 and max(starts) > 2.9 and np.mean(starts) == pytest.approx(1.5, abs=0.2)
    counts = {caption: [item["caption"] for item in items].count(caption) for caption in ("0 0", "0 1", "0 2")}
    assert sum(counts.values()) == 300 and min(counts.values()) > 70


def test_short_clip_is_taken_whole(tmp_path):
    clips = ramp_clips(tmp_path, [0.3, 1.0])
    dataset = TrainDataset(clips, RATE, 1.0)
    assert [len(dataset[i, 7]["audio"]) for i in (0, 1)] == [300, 1000]
    assert dataset[0, 7]["file"] == "0.wav"


def test_unlabeled_clips_have_no_caption(tmp_path):
    ramp_clips(tmp_path, [1.0])
    assert TrainDataset(read_folder(tmp_path).clips, RATE, 1.0)[0, 0]["caption"] == ""


# ---- windows


def test_windows_cover_each_clip(tmp_path):
    clips = ramp_clips(tmp_path, [2.5, 0.05, 2.05, 3.0, 2.1])
    dataset = EvalDataset(clips, RATE, 1.0)
    items = [dataset[i] for i in range(len(dataset))]
    assert [item["clip"] for item in items] == [0, 0, 0, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    assert [len(item["audio"]) for item in items] == [1000, 1000, 500, 50, *[1000] * 7, 100]
    starts = [start_of(item["audio"], item["clip"]) for item in items]
    assert np.allclose(starts, [0, 1, 2, 0, 0, 1, 0, 1, 2, 0, 1, 2], atol=0.01)
    with pytest.raises(IndexError, match=r"0\.\.11, got 12"):
        dataset[12]


def test_clips_are_whole_without_clip_seconds(tmp_path):
    dataset = EvalDataset(ramp_clips(tmp_path, [2.5, 0.05]), RATE, None)
    assert [len(dataset[i]["audio"]) for i in range(len(dataset))] == [2500, 50]


def test_hours_long_clip_is_read_in_windows(tmp_path):
    with soundfile.SoundFile(tmp_path / "long.flac", "w", RATE, 1) as file:
        for _ in range(72):
            file.write(np.zeros(100 * RATE))
    clips = read_folder(tmp_path).clips
    loader = iter(eval_loader(clips, sample_rate=RATE, clip_seconds=10.0, batch_size=4))
    training = iter(train_loader(clips, sample_rate=RATE, clip_seconds=10.0, batch_size=1))
    next(loader)
    tracemalloc.start()
    try:
        assert next(loader).audio.shape == (4, 10 * RATE)
        next(training)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(eval_loader(clips, sample_rate=RATE, clip_seconds=10.0, batch_size=4)) == 180
    assert peak < 1 << 20


# ---- batches


def test_collate_pads_with_zeros_and_names_errors():
    items = [
        {"audio": torch.ones(3), "caption": "x", "file": "a", "clip": 4},
        AudioError("b", "empty"),
        {"audio": torch.ones(1), "caption": "y", "file": "c", "clip": 2},
    ]
    batch = collate(items)
    assert torch.equal(batch.audio, torch.tensor([[1.0, 1, 1], [1, 0, 0]]))
    assert batch.lengths.tolist() == [3, 1] and batch.lengths.dtype == torch.int64
    assert batch.clips.tolist() == [4, 2] and batch.clips.dtype == torch.int64
    assert (batch.captions, batch.files, batch.skipped) == (["x", "y"], ["a", "c"], [("b", "empty")])
    moved = batch.to("meta")
    assert moved.audio.device.type == moved.clips.device.type == moved.lengths.device.type == "meta"
    assert moved.files == batch.files and batch.audio.device.type == "cpu"


def test_batch_of_nothing():
    batch = collate([AudioError("b", "empty")])
    assert len(batch) == 0 and batch.audio.shape == (0, 0) and batch.skipped == [("b", "empty")]


@pytest.mark.gpu
def test_pinned_memory(tmp_path):
    clips = ramp_clips(tmp_path, [1.0] * 4)
    loader = train_loader(clips, sample_rate=RATE, clip_seconds=1.0, batch_size=2, pin_memory=True)
    batch = next(iter(loader))
    assert batch.audio.is_pinned() and batch.lengths.is_pinned()
    assert torch.equal(batch.to("cuda").audio.cpu(), batch.audio)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_whose_damage_shows_only_when_it_is_decoded(tmp_path, workers):
    ramp_clips(tmp_path, [1.0, 1.0])
    truncated_flac(tmp_path / "cut.flac")
    clips = read_folder(tmp_path).clips
    assert [clip.file_name for clip in clips] == ["0.wav", "1.wav", "cut.flac"]  # the headers are intact
    options = {"sample_rate": RATE, "clip_seconds": 30.0, "batch_size": 3, "workers": workers}
    batch = next(iter(train_loader(clips, **options)))
    assert sorted(batch.files) == ["0.wav", "1.wav"]
    ((name, reason),) = batch.skipped
    assert name == "cut.flac" and "truncated" in reason
    (batch,) = eval_loader(clips, **options)
    assert batch.files == ["0.wav", "1.wav"] and [name for name, _ in batch.skipped] == ["cut.flac"]
    for loader in (train_loader, eval_loader):
        with pytest.raises(AudioError, match=r"^cut\.flac: damaged or truncated[^\n]*$"):
            list(itertools.islice(loader(clips, **options, on_error="raise"), 2))
    with pytest.raises(AudioError, match=r"^cut\.flac: "):
        TrainDataset(clips, RATE, 30.0)[2, 0]


# ---- loaders


def test_bad_arguments_of_loaders(tmp_path):
    clips = ramp_clips(tmp_path, [1.0])
    with pytest.raises(ValueError, match="on_error must be one of 'skip', 'raise', got 'stop'"):
        eval_loader(clips, sample_rate=RATE, clip_seconds=1.0, batch_size=1, on_error="stop")
    with pytest.raises(ValueError, match="chunks must be at least 1 and needs clip_seconds, got 2 and None"):
        eval_loader(clips, sample_rate=RATE, clip_seconds=None, chunks=2, batch_size=1)
    with pytest.raises(ValueError, match="clips must hold at least one clip"):
        eval_loader([], sample_rate=RATE, clip_seconds=1.0, batch_size=1)


def take(clips, count, **options):
    options = {"sample_rate": 800, "clip_seconds": 1.0, "batch_size": 4, "seed": 5} | options
    return list(itertools.islice(train_loader(clips, **options), count))


def test_workers_and_resume_change_nothing(tmp_path):
    clips = ramp_clips(tmp_path, [0.5 + 0.1 * i for i in range(14)])
    expected = take(clips, 8, bucket=True)
    assert_same(take(clips, 8, bucket=True, workers=1), expected)
    assert_same(take(clips, 5, bucket=True, workers=2, start_step=3), expected[3:])
    assert_same(take(clips, 5, bucket=True, start_step=3), expected[3:])
    assert {len(batch.files) for batch in expected} == {4}
    windows = list(eval_loader(clips, sample_rate=800, clip_seconds=0.7, batch_size=4))
    with_workers = eval_loader(clips, sample_rate=800, clip_seconds=0.7, batch_size=4, workers=2)
    next(iter(with_workers))  # an incomplete pass has no effect on later ones
    for _ in range(2):
        assert_same(list(with_workers), windows)


def test_threads_change_nothing(tmp_path):
    clips = ramp_clips(tmp_path, [1.5] * 4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = take(clips, 2)
        torch.set_num_threads(4)
        assert_same(take(clips, 2), expected)
    finally:
        torch.set_num_threads(threads)


def test_loaders_leave_the_global_random_state_alone(tmp_path):
    clips = ramp_clips(tmp_path, [1.0] * 4)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    take(clips, 3)
    list(eval_loader(clips, sample_rate=RATE, clip_seconds=1.0, batch_size=2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_interrupts_to_the_trainer(tmp_path, signum):
    loader = iter(
        train_loader(ramp_clips(tmp_path, [1.0] * 4), sample_rate=RATE, clip_seconds=1.0, batch_size=1, workers=1)
    )
    next(loader)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signum)
    for _ in range(5):  # more batches than were prefetched
        next(loader)
    assert worker.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last_line", "code"),
    [("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL), ("held = loader", 0), ("del loader", 0)],
)
def test_workers_end_with_the_trainer(tmp_path, last_line, code):
    ramp_clips(tmp_path, [1.0] * 4)
    script = f"""
import os, signal
from atk.data import read_split, train_loader
clips = read_split({str(tmp_path)!r}, "train").clips
loader = iter(train_loader(clips, sample_rate=1000, clip_seconds=1.0, batch_size=1, workers=1))
next(loader)
{last_line}
"""
    # Workers inherit the pipe, so `run` returns only after the last of them has ended.
    result = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=120, check=False)
    assert result.returncode == code


def test_processes_of_other_code_can_still_be_terminated(tmp_path):
    loader = iter(
        train_loader(ramp_clips(tmp_path, [1.0] * 4), sample_rate=RATE, clip_seconds=1.0, batch_size=1, workers=1)
    )
    next(loader)  # the fork server is running now
    process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    process.terminate()
    process.join(30)
    assert process.exitcode == -signal.SIGTERM


def test_loader_has_the_length_of_an_epoch(tmp_path):
    clips = ramp_clips(tmp_path, [1.0] * 5)
    loader = train_loader(clips, sample_rate=RATE, clip_seconds=1.0, batch_size=2)
    assert loader.batches.steps_per_epoch == 2 and loader.batches.note is None
    assert len(eval_loader(clips, sample_rate=RATE, clip_seconds=0.5, batch_size=4)) == 3
