"""Audio files with more samples than 4 bytes of a header can state; the files are sparse."""

import io
import sys

import numpy as np
import pytest
import soundfile
import torch

from atk.data import AudioError, audio_info, load_audio

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files")
RATE = 16000
SIZE = 5 << 30  # bytes of samples
SAMPLES = np.full(1000, 8192, "<i2").tobytes()  # 0.25


def header(stated, **options):
    """The header of an empty 16-bit file, which ends in the size of its samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(0), RATE, **options)
    data = bytearray(buffer.getvalue())
    at = data.index(b"SSND" if options["format"] == "AIFF" else b"data") + 4
    data[at : at + 4] = stated.to_bytes(4, "big" if options["format"] == "AIFF" else "little")
    return data


def write(path, start):
    """Write `start`, then samples with zeros between the first and the last 1000."""
    with path.open("wb") as file:
        file.write(start + SAMPLES)
        file.truncate(len(start) + SIZE - len(SAMPLES))
        file.seek(0, io.SEEK_END)
        file.write(SAMPLES)
    return path


@pytest.mark.parametrize("stated", [0, 1001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_unfinished_recordings_are_read_whole(tmp_path, stated):
    path = write(tmp_path / "a.wav", header(stated, format="WAV"))
    assert audio_info(path).frames == SIZE // 2
    samples, zeros = torch.full((1000,), 0.25), torch.zeros(500)
    assert torch.equal(load_audio(path, RATE, 0, 1500 / RATE), torch.cat((samples, zeros)))
    assert torch.equal(load_audio(path, RATE, (SIZE // 2 - 1500) / RATE), torch.cat((zeros, samples)))


def test_what_follows_the_samples_is_not_read_as_samples(tmp_path):
    stated = 0xFFFFFFF0
    start = header(stated, format="WAV")
    path = write(tmp_path / "a.wav", start)
    with path.open("r+b") as file:
        file.seek(len(start) + stated)
        file.write(b"LIST" + (SIZE - stated - 8).to_bytes(4, "little"))
    assert audio_info(path).frames == stated // 2


def test_numpy_files(tmp_path):
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, {"descr": "<f4", "fortran_order": False, "shape": (SIZE // 4,)})
    path = write(tmp_path / "a.npy", start.getvalue())
    assert audio_info(path).frames == SIZE // 4
    end = load_audio(path, RATE, (SIZE // 4 - 500) / RATE)
    assert torch.equal(end, torch.frombuffer(bytearray(SAMPLES), dtype=torch.float32))


def test_formats_that_cannot_state_the_length_are_refused(tmp_path):
    path = write(tmp_path / "a.aiff", header(0xFFFFFFFF, format="AIFF"))
    with pytest.raises(AudioError, match="more than the 4 GiB of samples that its header can state"):
        audio_info(path)
