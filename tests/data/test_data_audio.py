"""Reading audio files: one test for each unusual file that docs/data.md describes."""

import math
import pickle
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from atk.data import AudioError, audio_info, find_audio, load_audio, load_crop
from atk.data import audio as audio_module

RATE = 8000


def tone(seconds=1.0, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path, audio=None, rate=RATE, **options):
    """Write `audio`, by default a second of `tone`."""
    soundfile.write(path, tone(rate=rate) if audio is None else audio, rate, **options)
    return path


def truncate(path, fraction):
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    return path


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_torchaudio_without_its_compiled_part():
    # Simulates a CUDA build of torchaudio with a CPU-only torch.
    code = """
import torch
def missing(path): raise OSError("libc10_cuda.so: cannot open shared object file")
torch.ops.load_library = missing
from atk._torchaudio import functional, transforms
assert functional.resample(torch.ones(200), 200, 100).shape == (100,)
assert transforms.MelSpectrogram(16000, 1024, n_mels=64)(torch.ones(4000)).shape[0] == 64
assert functional.lfilter(torch.ones(1, 8), torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.0])).shape == (1, 8)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_torchaudio_loads_on_demand_or_says_how_to_get_it():
    code = """
import sys
import atk, atk.data
assert not any(name.startswith("torchaudio") for name in sys.modules)
class Hide:
    def find_spec(self, name, *_):
        if name == "torchaudio": raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import atk._torchaudio
"""
    result = run_python(code)
    assert result.returncode == 1
    assert "ImportError: needs torchaudio; pip install 'audio-text-kernels[train]'" in result.stderr


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {"subtype": "PCM_U8"}),
        ("a.wav", {"subtype": "PCM_16"}),
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.wav", {"subtype": "ULAW"}),
        ("a.wav", {"format": "WAVEX"}),
        ("a.flac", {}),
        ("a.ogg", {}),
        ("a.oga", {"format": "OGG"}),
        ("a.mp3", {}),
    ],
)
def test_every_format_gives_the_same_tone(tmp_path, name, options):
    if name.endswith("mp3") and "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile has no mp3")
    path = write(tmp_path / name, **options)
    audio = load_audio(path, RATE, 0.25, 0.5)
    assert audio.dtype == torch.float32 and audio.shape == (RATE // 2,)
    assert torch.nn.functional.cosine_similarity(audio, torch.from_numpy(tone()[2000:6000]), dim=0) > 0.99
    assert load_audio(path, RATE).shape[0] == pytest.approx(RATE, abs=2400)  # mp3 adds padding


@pytest.mark.parametrize("rate", [4000, 11025, 22050, 44100, 44101, 96000, 192000])
def test_any_rate_is_resampled(tmp_path, rate):
    audio = load_audio(write(tmp_path / "a.wav", rate=rate, subtype="FLOAT"), RATE, seconds=1.0)
    assert abs(len(audio) - RATE) <= 1
    inner = slice(200, 7800)  # without the ringing of the filter at both ends
    assert torch.allclose(audio[inner], torch.from_numpy(tone()[inner]), atol=0.01)


def test_odd_ratio_of_rates_makes_no_huge_kernel(tmp_path, monkeypatch):
    ratios = []
    resampler = audio_module._resampler
    monkeypatch.setattr(audio_module, "_resampler", lambda *ratio: ratios.append(ratio) or resampler(*ratio))
    load_audio(write(tmp_path / "a.wav", rate=44101), 16000)
    numerator, denominator = ratios[0]
    assert denominator <= 1000 and numerator / denominator == pytest.approx(44101 / 16000, rel=1e-6)


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(tmp_path, channels):
    audio = np.zeros((RATE, channels), np.float32)
    audio[:, 0] = tone()
    path = write(tmp_path / "a.wav", audio, subtype="FLOAT")
    assert torch.allclose(load_audio(path, RATE), torch.from_numpy(tone()) / channels, atol=1e-6)
    info = audio_info(path)
    assert (info.frames, info.sample_rate, info.channels, info.seconds) == (RATE, RATE, channels, 1.0)


def test_window_is_at_the_requested_position(tmp_path):
    path = write(tmp_path / "a.wav", np.arange(800, dtype=np.float32) / 1000, rate=100, subtype="FLOAT")
    assert torch.allclose(load_audio(path, 100, 2.0, 1.5), torch.arange(200, 350) / 1000)
    assert torch.allclose(load_audio(path, 100, 7.5, 2.0), torch.arange(750, 800) / 1000)  # cut at the end
    assert len(load_audio(path, 100, 0.0, 1e-6)) == 1


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.1, 0.3333, 0.991])
def test_window_is_never_longer_than_requested(tmp_path, rate, seconds):
    path = write(tmp_path / "a.wav", rate=rate)
    assert len(load_audio(path, 16000, 0.003, seconds)) == round(16000 * seconds)


def test_bad_arguments(tmp_path):
    path = write(tmp_path / "a.wav")
    for arguments in [(-1.0,), (0.0, 0.0), (math.nan,), (math.inf,), (0.0, math.inf)]:
        with pytest.raises(ValueError, match="start must be at least 0 and seconds above 0, both finite, got"):
            load_audio(path, RATE, *arguments)
    for arguments in [(0.0, 0.5), (math.inf, 0.0), (1.0, math.nan), (1.0, 1.1)]:
        with pytest.raises(ValueError, match=r"seconds must be above 0 and finite, and position in \[0, 1\], got"):
            load_crop(path, RATE, *arguments)
    for rate in (0, 2_000_000):
        with pytest.raises(ValueError, match=rf"sample_rate must be in 1\.\.1000000 Hz, got {rate}"):
            load_audio(path, rate)
    with pytest.raises(AudioError, match=r"ends at 1\.000 s, before the window at 2\.000 s"):
        load_audio(path, RATE, 2.0)


def test_silence_is_audio(tmp_path):
    assert torch.equal(load_audio(write(tmp_path / "a.wav", np.zeros(400)), RATE), torch.zeros(400))


@pytest.mark.parametrize(
    "name", ["a b  c .wav", "Ø åäö 犬の鳴き声 🐕.wav", "it's 100% #1 [x] (y); z,.wav", "n" * 251 + ".wav"]
)
def test_unusual_file_names(tmp_path, name):
    assert len(load_audio(write(tmp_path / name), RATE)) == RATE


def bad_file(path, fault):
    if fault == "missing":
        return path
    if fault == "name too long":
        return path.with_name("n" * 300 + ".wav")
    if fault == "folder":
        path.mkdir()
    elif fault == "empty":
        path.touch()
    elif fault == "no samples":
        write(path, np.zeros(0))
    elif fault == "not audio":
        path.write_text("file_name,caption\n" * 100)
    elif fault == "truncated wav":
        truncate(write(path), 0.6)
    return path


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("missing", "no such file"),
        ("name too long", "File name too long"),
        ("folder", "not a file"),
        ("empty", r"empty file \(0 bytes\)"),
        ("no samples", "contains no samples"),
        ("not audio", "not readable as audio"),
        ("truncated wav", "truncated: the header says 16000 bytes of samples, the file has 9582"),
    ],
)
def test_bad_file_is_named_with_the_reason(tmp_path, fault, reason):
    path = bad_file(tmp_path / "a.wav", fault)
    for function in (audio_info, lambda path: load_audio(path, RATE)):
        with pytest.raises(AudioError, match=reason) as caught:
            function(path)
        assert str(caught.value).startswith(f"{path}: ") and caught.value.file == str(path)


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "empty")))
    assert (str(error), error.file, error.reason) == ("a.wav: empty", "a.wav", "empty")


def test_wav_of_a_streaming_writer_is_whole(tmp_path):
    path = write(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff" * 4  # lengths were never filled in
    path.write_bytes(data)
    assert len(load_audio(path, RATE)) == RATE


def test_flac_without_its_length_is_refused(tmp_path):
    path = write(tmp_path / "a.flac")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # clears the 36-bit sample count
    data[22:26] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(AudioError, match="does not give the length"):
        audio_info(path)


@pytest.mark.parametrize("name", ["a.flac", "a.mp3"])
def test_truncation_is_an_error_only_in_windows_past_the_end(tmp_path, name):
    if name.endswith("mp3") and "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile has no mp3")
    noise = np.random.default_rng(0).standard_normal(40000).astype(np.float32) / 10
    path = truncate(write(tmp_path / name, noise), 0.5)
    assert audio_info(path).frames >= 40000  # the header is intact
    assert len(load_audio(path, RATE, 0.0, 1.0)) == RATE
    for start, seconds in ((0.0, None), (1.0, 3.5), (4.5, 0.5)):
        with pytest.raises(AudioError, match="truncated"):
            load_audio(path, RATE, start, seconds)


def test_truncated_ogg_is_a_shorter_file(tmp_path):
    noise = np.random.default_rng(0).standard_normal(40000).astype(np.float32) / 10
    path = truncate(write(tmp_path / "a.ogg", noise), 0.5)
    assert 0 < len(load_audio(path, RATE)) == audio_info(path).frames < 40000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_sample_is_an_error_only_in_windows_that_contain_it(tmp_path, value):
    audio = np.stack([tone(), tone()], 1)
    audio[6000, 1] = value
    path = write(tmp_path / "a.wav", audio, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"NaN or infinite samples \(first at 0\.750 s\)"):
        load_audio(path, RATE)
    assert torch.isfinite(load_audio(path, RATE, 0.0, 0.5)).all()


def hours_long_wav(path):
    """Write two hours of 8-bit 8 kHz audio as a sparse file: all samples are -1 except for zeros in the last 0.1 s."""
    samples = 7200 * RATE
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + samples, b"WAVE", b"fmt ", 16, 1, 1, RATE, RATE, 1, 8,
                         b"data", samples)  # fmt: skip
    with path.open("wb") as file:
        file.write(header)
        file.seek(samples - 800, 1)
        file.write(b"\x80" * 800)
    return path


def hours_long_flac(path):
    with soundfile.SoundFile(path, "w", 1000, 1) as file:
        for _ in range(72):
            file.write(np.full(100_000, -0.5, np.float32))
    return path


@pytest.mark.parametrize(("make", "name"), [(hours_long_wav, "a.wav"), (hours_long_flac, "a.flac")])
def test_hours_long_file_takes_only_the_memory_of_the_window(tmp_path, make, name):
    path = make(tmp_path / name)
    load_audio(path, 4000, 0.0, 0.1)  # imports are not measured
    tracemalloc.start()
    try:
        assert audio_info(path).seconds == 7200
        middle = load_audio(path, 4000, 3600.0, 10.0)
        end = load_audio(path, 4000, 7199.95, 10.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert middle.shape == (40000,) and end.shape == (200,)
    assert middle[20000] < -0.4
    assert peak < 2 << 20


def test_find_audio(tmp_path):
    for name in ["b.WAV", "a.wav", "sub/deep er/c.Flac", "sub/d.ogg", "e.oga", "F.mp3", "g.txt", ".h.wav", ".i/j.wav"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in find_audio(tmp_path)]
    assert names == ["F.mp3", "a.wav", "b.WAV", "e.oga", "sub/d.ogg", "sub/deep er/c.Flac"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_audio(tmp_path / "none")
