"""Load audio files as mono waveforms at a given sample rate, reading only the requested window."""

import io
import math
import os
import re
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atk.extras import optional_imports

with optional_imports:
    import soundfile

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3")

_MAX_PHASES = 1000  # bounds the resampling kernel: 44101 Hz to 16000 Hz would take gigabytes
_SLOPPY_BYTES = 4096  # some writers overstate the data size of a WAV file by the size of its header
_SLOPPY_MP3_FRAMES = 2 * 1152  # encoder delay and padding make the stated length of an MP3 file inexact
_WAV_DATA = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_WAV_STREAMED = 0x7FFFF000  # streaming writers leave a data size of about 2^31 or 2^32
_UNKNOWN_FRAMES = 1 << 62


class AudioError(ValueError):
    """An audio file that cannot be used.

    Attributes:
        file: the file name as given.
        reason: what is wrong with the file.
    """

    def __init__(self, file: str | Path, reason: str):
        super().__init__(str(file), reason)  # both in args, so that the error can be pickled
        self.file = str(file)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class AudioInfo:
    """Contents of a file header.

    Attributes:
        frames: samples per channel.
        sample_rate: samples per second.
        channels: channel count.
    """

    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """Duration of the file in seconds."""
        return self.frames / self.sample_rate


def audio_info(path: str | Path) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        AudioError: the file is missing, empty, not audio, has no samples, or (WAV) is shorter than its header says.
    """
    with _opened(path) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels)


def load_audio(path: str | Path, sample_rate: int, start: float = 0.0, seconds: float | None = None) -> Tensor:
    """Load a window of an audio file, downmixed to mono (mean over channels) and resampled.

    The reader seeks to the window, so a window of an hours-long file costs no more than one of a short file. The ratio
    of the two sample rates is rounded to a fraction with a denominator of at most 1000. This shifts the pitch by less
    than 1e-5 for pairs of standard rates (most are exact), and by up to about 5e-4 for others, such as 15992 and 16000.

    Args:
        path: wav, flac, ogg or mp3 file with any sample rate and channel count.
        sample_rate: sample rate of the result, in Hz.
        start: start of the window, in seconds.
        seconds: length of the window, clipped to the end of the file; None reads to the end.

    Returns:
        float32 `[samples]` with 1 <= samples <= round(seconds * sample_rate); full scale is +-1.

    Raises:
        AudioError: the file cannot be used (see `audio_info`), ends before `start`, is truncated inside the window, or
            has NaN or infinite samples in the window.
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
    """Load the crop of a file that starts at `position * (length - seconds)`; shorter files are returned whole.

    The file is opened only once, for both its length and its samples.

    Args:
        path: audio file, as in `load_audio`.
        sample_rate: sample rate of the result, in Hz.
        seconds: length of the crop.
        position: 0 for the start of the file to 1 for its end.
        content: bytes of a file that is already in memory; `path` is then only used in error messages.

    Returns:
        float32 `[samples]`, as from `load_audio`.

    Raises:
        AudioError: as for `load_audio`.
        ValueError: an argument is out of range.
    """
    if sample_rate <= 0 or not seconds > 0 or not 0 <= position <= 1:
        raise ValueError(
            "sample_rate and seconds must be above 0 and position in [0, 1], "
            f"got {sample_rate}, {seconds} and {position}"
        )
    with _opened(path, content) as file:
        start = position * max(0.0, file.frames / file.samplerate - seconds)
        return _window(file, path, sample_rate, start, seconds)


def find_audio(folder: str | Path) -> list[Path]:
    """Find the wav, flac, ogg, oga and mp3 files below a folder, sorted; suffixes match in upper and lower case.

    Hidden files and folders are ignored.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [
            Path(parent, name) for name in files if name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(paths)


@contextmanager
def _opened(path: str | Path, content: bytes | None = None) -> Generator[soundfile.SoundFile, None, None]:
    """Open a file, or its content in memory, and check that it has samples."""
    if (_size(path) if content is None else len(content)) == 0:
        raise AudioError(path, "empty file (0 bytes)")
    try:
        source = os.fsencode(path) if content is None else io.BytesIO(content)
        file = soundfile.SoundFile(source)  # pyrefly: ignore[bad-argument-type]  # bytes: names need not be UTF-8
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"not readable as audio ({error.error_string.rstrip('.')})") from None
    except TypeError:  # soundfile treats the suffix .raw as headerless
        raise AudioError(path, "not readable as audio (headerless)") from None
    with file:
        _check_length(file, path)
        yield file


def _size(path: str | Path) -> int:
    """Size of a regular file in bytes."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise AudioError(path, "no such file") from None
    except (OSError, ValueError) as error:  # the name is too long or contains a null character
        raise AudioError(path, getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(path, "not a file")
    return status.st_size


def _check_length(file: soundfile.SoundFile, path: str | Path) -> None:
    """Raise AudioError unless the file has samples and is as long as its header says."""
    if file.frames <= 0:
        raise AudioError(path, "contains no samples")
    if file.frames >= _UNKNOWN_FRAMES:
        raise AudioError(path, "the header does not give the length; re-encode the file")
    if not file.format.startswith("WAV"):
        return
    # libsndfile silently accepts a truncated WAV file; only its log shows both sizes.
    data = _WAV_DATA.search(file.extra_info)
    if data is None:
        return
    stated = int(data[1])
    actual = int(data[2])
    if actual + _SLOPPY_BYTES < stated < _WAV_STREAMED:
        raise AudioError(path, f"truncated: the header says {stated} bytes of samples, the file has {actual}")


def _window(
    file: soundfile.SoundFile, path: str | Path, sample_rate: int, start: float, seconds: float | None
) -> Tensor:
    """Read a window of an open file, downmixed to mono and resampled: float32 `[samples]`."""
    rate = file.samplerate
    first = round(start * rate)
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
    """Read `count` frames from frame `first` and average the channels: float32 `[count]`."""
    try:
        file.seek(first)
        audio = file.read(count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        raise AudioError(path, f"damaged or truncated: decoding fails after {first / file.samplerate:.3f} s") from None
    missing = count - len(audio)
    if len(audio) == 0 or missing > (_SLOPPY_MP3_FRAMES if file.format == "MPEG" else 0):
        end = (first + len(audio)) / file.samplerate
        raise AudioError(path, f"truncated: ends at {end:.3f} s of {file.frames / file.samplerate:.3f} s")
    channels = audio.shape[1]
    # einsum is twice as fast as mean.
    mono = audio[:, 0] if channels == 1 else np.einsum("nc->n", audio) / np.float32(channels)
    if not np.isfinite(mono).all():
        position = (first + int(np.argmin(np.isfinite(mono)))) / file.samplerate
        raise AudioError(path, f"contains NaN or infinite samples (first at {position:.3f} s)")
    return torch.from_numpy(np.ascontiguousarray(mono))


@lru_cache(maxsize=16)
def _resampler(numerator: int, denominator: int) -> nn.Module:
    """Build a cached module that resamples waveforms from `numerator` Hz to `denominator` Hz."""
    from atk.data.torchaudio_shim import transforms

    return transforms.Resample(numerator, denominator)
