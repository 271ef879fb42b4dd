"""Samples that cannot be used as they are: the documented outcome, reported once with the file's name."""

import tracemalloc
import warnings

import numpy as np
import pytest
import soundfile
import torch

from atk.data import AudioError, DataWarning, eval_loader, load_audio, read_folder, train_loader
from atk.data import samples as samples_module

RATE = 8000


def tone(seconds=1.0, peak=0.3):
    return peak * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)


def write(path, audio, **options):
    soundfile.write(path, audio, RATE, **options)
    return path


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_float_samples_at_integer_scale_are_scaled(tmp_path, bits, subtype):
    path = write(tmp_path / "a.wav", tone(30) * 2.0 ** (bits - 1), subtype=subtype)
    for window in ((0.0, None), (20.0, 1.0)):
        notes = []
        got = load_audio(path, RATE, *window, notes)
        assert torch.allclose(got, torch.from_numpy(tone(30)).float()[round(window[0] * RATE) :][: len(got)], atol=1e-6)
        assert len(notes) == 1 and notes[0].endswith(f") and are divided by {2 ** (bits - 1)}")
    with pytest.warns(DataWarning, match=r"a\.wav: its float samples are at integer scale"):
        load_audio(path, RATE)


def test_a_quiet_passage_of_a_file_at_integer_scale_has_the_scale_of_the_file(tmp_path):
    audio = tone(20) * 2.0**15
    audio[5 * RATE : 6 * RATE] = 3.0
    path = write(tmp_path / "a.wav", audio, subtype="FLOAT")
    assert torch.allclose(load_audio(path, RATE, 5.2, 0.5, []), torch.full((RATE // 2,), 3.0 / 2**15))


@pytest.mark.parametrize("peak", [1e-30, 1.0, 4.0, 63.0])
def test_float_samples_above_full_scale_are_used(tmp_path, peak):
    path = write(tmp_path / "a.wav", tone(peak=peak), subtype="FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(load_audio(path, RATE).abs().max()) == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize("value", [1e3, 1e12, 3e38])
def test_a_single_huge_sample_is_an_error_only_in_windows_that_contain_it(tmp_path, value):
    audio = tone(30)
    audio[12345] = value
    path = write(tmp_path / "a.wav", audio, subtype="FLOAT")
    for window in ((0.0, None), (1.0, 1.0)):
        with pytest.raises(
            AudioError, match=r"a\.wav: contains samples up to .* full scale is 1 \(first at 1\.543 s\)"
        ):
            load_audio(path, RATE, *window)
    assert len(load_audio(path, RATE, 3.0, 1.0)) == RATE


def test_clipped_audio_is_used(tmp_path):
    path = write(tmp_path / "a.wav", np.clip(tone(peak=3.0), -1, 1), subtype="PCM_16")
    assert float(load_audio(path, RATE).max()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("seconds", [1.0, 200.0])  # one block and several
def test_channels_that_cancel_are_replaced_by_the_loudest(tmp_path, seconds):
    left = tone(seconds)
    path = write(tmp_path / "a.flac", np.stack([left, -0.98 * left], 1))
    with pytest.warns(DataWarning, match=r"a\.flac: its channels cancel each other, so channel 1 is used"):
        got = load_audio(path, RATE)
    assert torch.allclose(got, torch.from_numpy(left).float(), atol=1e-4)


@pytest.mark.parametrize("channels", [2, 6])
def test_unrelated_silent_and_partly_opposite_channels_are_averaged(tmp_path, channels):
    noise = np.random.default_rng(0).normal(0, 0.1, (RATE, channels))
    opposite = noise.copy()
    opposite[:, 1] = -0.7 * noise[:, 0]
    one_sided = noise.copy()
    one_sided[:, 1:] = 0
    for audio in (noise, opposite, one_sided, np.zeros_like(noise)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = load_audio(write(tmp_path / "a.wav", audio, subtype="FLOAT"), RATE)
        assert torch.allclose(got, torch.from_numpy(audio.mean(1)).float(), atol=1e-6)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_loaders_warn_once_per_file_and_name_it(tmp_path, workers):
    left = tone(4)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.flac", np.stack([left, -left], 1))
    write(tmp_path / "c.flac", left)
    clips = read_folder(tmp_path).clips
    train = train_loader(clips, sample_rate=RATE, clip_seconds=1.0, batch_size=3, workers=workers)
    evaluation = eval_loader(clips, sample_rate=RATE, clip_seconds=1.0, batch_size=4, workers=workers)
    for loader in (train, evaluation):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for batch, _ in zip(loader, range(3), strict=False):
                assert len(batch) and not batch.skipped
        messages = [str(warning.message) for warning in caught]
        assert sorted(text.partition(":")[0] for text in messages) == ["a.flac", "b.flac"], messages


def test_memory_is_that_of_the_mono_result(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros((RATE * 60, 64), np.int16))
    load_audio(path, RATE, 0.0, 1.0)
    tracemalloc.start()
    load_audio(path, RATE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * RATE * 60 * 64 / 4  # a quarter of all channels in float32


def test_a_block_never_holds_less_than_a_frame(monkeypatch, tmp_path):
    monkeypatch.setattr(samples_module, "_BLOCK_SAMPLES", 1)
    audio = np.random.default_rng(0).normal(0, 0.1, (100, 3))
    path = write(tmp_path / "a.wav", audio, subtype="FLOAT")
    assert torch.allclose(load_audio(path, RATE), torch.from_numpy(audio.mean(1)).float(), atol=1e-6)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 30.0])
def test_an_outlier_is_not_taken_for_integer_scale(tmp_path, seconds):
    audio = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE))
    audio[10] = 100.0
    path = write(tmp_path / "a.wav", audio, subtype="FLOAT")
    with pytest.raises(AudioError, match="contains samples up to 100, where full scale is 1"):
        load_audio(path, RATE)


def test_two_notes_are_both_kept(tmp_path):
    left = tone(peak=9000.0)
    notes = []
    load_audio(write(tmp_path / "a.wav", np.stack([left, -left], 1), subtype="FLOAT"), RATE, notes=notes)
    assert len(notes) == 1 and "integer scale" in notes[0] and "cancel each other" in notes[0]
