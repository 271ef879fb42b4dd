"""NumPy files as audio: float32 samples at 16 kHz."""

import numpy as np
import pytest

from atk.data import AudioError, audio_info, load_audio, load_crop
from atk.data.audio import decode_audio

SAMPLES = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_samples_are_read_as_they_are(tmp_path, version):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, SAMPLES, version=version)
    info = audio_info(tmp_path / "a.npy")
    assert (info.frames, info.sample_rate, info.channels) == (48_000, 16_000, 1)
    assert (load_audio(tmp_path / "a.npy", 16_000).numpy() == SAMPLES).all()
    assert (load_audio(tmp_path / "a.npy", 16_000, 1.0, 0.5).numpy() == SAMPLES[16_000:24_000]).all()
    assert len(load_audio(tmp_path / "a.npy", 8000)) == 24_000 and decode_audio(tmp_path / "a.npy") == []
    content = (tmp_path / "a.npy").read_bytes()
    assert (load_crop("shard.tar:a.npy", 16_000, 1.0, 1.0, content).numpy() == SAMPLES[32_000:]).all()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (SAMPLES[None], r"a NumPy file must hold float32 \[samples\], got float32 \[1, 48000\]"),
        (SAMPLES.astype(np.float64), r"must hold float32 \[samples\], got float64 \[48000\]"),
        (SAMPLES.astype(">f4"), "got >f4"),
        (np.array(["a", None], dtype=object), "got object"),
        (SAMPLES[:0], "contains no samples"),
        (np.full(100, np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(AudioError, match=reason):
        load_audio(tmp_path / "a.npy", 16_000)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: content[:50_000], "truncated: the header says 192000 bytes of samples, the file has 49872"),
        (lambda content: content.replace(b"descr", b"descx"), "a NumPy file whose header is damaged"),
        (lambda content: content[:40], "a NumPy file whose header is damaged"),
        (lambda content: content.replace(b"(48000,)", b"(-8000,)"), r"got float32 \[-8000\]"),
        (lambda content: content.replace(b"(48000,)", b"(48000,("), "a NumPy file whose header is damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path, spoil, reason):
    np.save(tmp_path / "a.npy", SAMPLES)
    (tmp_path / "a.npy").write_bytes(spoil((tmp_path / "a.npy").read_bytes()))
    with pytest.raises(AudioError, match=reason):
        audio_info(tmp_path / "a.npy")
