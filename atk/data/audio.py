"""Audio files to mono waveforms at one sample rate: only the window asked for is read."""

import io
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3")

_MAX_PHASES = 1000  # resampling kernels grow with the terms of the ratio of rates: gigabytes at 44101 to 16000
_SLOPPY_BYTES = 4096  # some writers overstate a WAV's data by the size of a header
_SLOPPY_MP3_FRAMES = 2 * 1152  # encoder delay and padding make an MP3's stated length inexact
_WAV_DATA = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_WAV_STREAMED = 0x7FFFF000  # streaming writers leave about 2^31 or 2^32 as the length of the data
_UNKNOWN_FRAMES = 1 << 62


class AudioError(ValueError):
    """An audio file cannot be used: `file` is its name as given, `reason` what is wrong with it."""

    def __init__(self, file: str | Path, reason: str):
        super().__init__(str(file), reason)  # both in args, so that it pickles
        self.file, self.reason = str(file), reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: samples per channel, samples per second, channels."""

    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """Length of the file."""
        return self.frames / self.sample_rate


def audio_info(path: str | Path) -> AudioInfo:
    """Read a file's header.

    Raises:
        AudioError: missing, empty, not audio, without samples, or (WAV) shorter than its header says.
    """
    with _opened(path) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels)


def load_audio(path: str | Path, sample_rate: int, start: float = 0.0, seconds: float | None = None) -> Tensor:
    """Read a window of a file, mixed to mono (mean over channels) and resampled.

    Reading seeks to the window, so hours-long files cost no more than short ones. The ratio of the two rates is
    rounded to a fraction of at most 1000ths, a change of pitch below 1e-6 and only for odd rates such as 44101 Hz.

    Args:
        path: wav, flac, ogg or mp3; any rate, any channel count.
        sample_rate: of the result, in Hz.
        start: where the window starts, in seconds.
        seconds: length of the window, cut at the end of the file; None for all the rest.

    Returns:
        float32 `[samples]`, 1 <= samples <= round(seconds * sample_rate), full scale at +-1.

    Raises:
        AudioError: the file cannot be used (see `audio_info`), starts after `start`, is truncated inside the window,
            or the window holds NaN or infinity.
        ValueError: an argument is out of range.
    """
    if sample_rate <= 0 or not start >= 0 or not (seconds is None or seconds > 0):
        raise ValueError(
            f"sample_rate and seconds must be above 0 and start at least 0, got {sample_rate}, {seconds} and {start}"
        )
    with _opened(path) as file:
        return _window(file, path, sample_rate, start, seconds)


def load_crop(
    path: str | Path, sample_rate: int, seconds: float, position: float, content: bytes | None = None
) -> Tensor:
    """Read the crop that starts at `position * (length - seconds)` of a file; shorter files are taken whole.

    The file is opened once, for its length and its samples.

    Args:
        path: as for `load_audio`.
        sample_rate: of the result, in Hz.
        seconds: length of the crop.
        position: 0 for the start of the file .. 1 for its end.
        content: the bytes of a file that is not on the disk by itself; `path` then only names it.

    Returns:
        float32 `[samples]`, as `load_audio`.

    Raises:
        AudioError: as `load_audio`.
        ValueError: an argument is out of range.
    """
    if sample_rate <= 0 or not seconds > 0 or not 0 <= position <= 1:
        raise ValueError(
            "sample_rate and seconds must be above 0 and position in 0 .. 1, "
            f"got {sample_rate}, {seconds} and {position}"
        )
    with _opened(path, content) as file:
        start = position * max(0.0, file.frames / file.samplerate - seconds)
        return _window(file, path, sample_rate, start, seconds)


def find_audio(folder: str | Path) -> list[Path]:
    """The wav, flac, ogg, oga and mp3 files below a folder, in any letter case, sorted; hidden ones are left out.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name) for name in files if name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


@contextmanager
def _opened(path: str | Path, content: bytes | None = None) -> Iterator[soundfile.SoundFile]:
    """The file, or its content from memory, open and with at least one sample."""
    if (_size(path) if content is None else len(content)) == 0:
        raise AudioError(path, "empty file (0 bytes)")
    try:
        file = soundfile.SoundFile(os.fsencode(path) if content is None else io.BytesIO(content))
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"not readable as audio ({error.error_string.rstrip('.')})") from None
    except TypeError:  # soundfile takes the suffix .raw as headerless
        raise AudioError(path, "not readable as audio (headerless)") from None
    with file:
        _check_length(file, path)
        yield file


def _size(path: str | Path) -> int:
    """Bytes of a regular file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise AudioError(path, "no such file") from None
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        raise AudioError(path, getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(path, "not a file")
    return status.st_size


def _check_length(file: soundfile.SoundFile, path: str | Path) -> None:
    if file.frames <= 0:
        raise AudioError(path, "holds no samples")
    if file.frames >= _UNKNOWN_FRAMES:
        raise AudioError(path, "its header does not say how long it is; encode it again")
    if not file.format.startswith("WAV"):
        return
    # libsndfile takes what is there for the whole; only its log tells.
    data = _WAV_DATA.search(file.extra_info)
    if data is None:
        return
    stated, there = int(data[1]), int(data[2])
    if there + _SLOPPY_BYTES < stated < _WAV_STREAMED:
        raise AudioError(path, f"truncated: the header says {stated} bytes of samples, {there} are there")


def _window(
    file: soundfile.SoundFile, path: str | Path, sample_rate: int, start: float, seconds: float | None
) -> Tensor:
    """The window of an open file, mono and resampled: float32 `[samples]`."""
    rate, first = file.samplerate, round(start * file.samplerate)
    if first >= file.frames:
        raise AudioError(path, f"ends at {file.frames / rate:.3f} s, before the window at {start:.3f} s")
    count = file.frames - first
    if seconds is not None:
        count = min(count, max(1, math.ceil(seconds * rate - 1e-6)))
    audio = _read(file, path, first, count)
    if rate != sample_rate:
        ratio = Fraction(rate, sample_rate).limit_denominator(_MAX_PHASES)
        audio = _resampler(ratio.numerator, ratio.denominator)(audio)
    return audio if seconds is None else audio[: max(1, round(seconds * sample_rate))]


def _read(file: soundfile.SoundFile, path: str | Path, first: int, count: int) -> Tensor:
    """`count` frames from frame `first`, mean over channels: float32 `[count]`."""
    try:
        file.seek(first)
        audio = file.read(count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        raise AudioError(path, f"damaged or truncated: fails after {first / file.samplerate:.3f} s") from None
    missing = count - len(audio)
    if len(audio) == 0 or missing > (_SLOPPY_MP3_FRAMES if file.format == "MPEG" else 0):
        end = (first + len(audio)) / file.samplerate
        raise AudioError(path, f"truncated: ends at {end:.3f} s of {file.frames / file.samplerate:.3f} s")
    channels = audio.shape[1]
    mono = audio[:, 0] if channels == 1 else np.einsum("nc->n", audio) / np.float32(channels)  # twice as fast as mean
    if not np.isfinite(mono).all():
        at = (first + int(np.argmin(np.isfinite(mono)))) / file.samplerate
        raise AudioError(path, f"holds NaN or infinite samples (first at {at:.3f} s)")
    return torch.from_numpy(np.ascontiguousarray(mono))


@lru_cache(maxsize=16)
def _resampler(numerator: int, denominator: int) -> nn.Module:
    """Takes waveforms at `numerator` Hz to `denominator` Hz; holds its kernels."""
    from atk.data.torchaudio_shim import transforms

    return transforms.Resample(numerator, denominator)
