"""Load audio files as mono waveforms at a given sample rate, reading only the requested window."""

import io
import itertools
import math
import os
import stat
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atk.data.codecs import open_sound
from atk.data.containers import Content, Stored, Unusable, corrected
from atk.data.samples import Sound, read_mono

SAMPLE_RATES = (100, 1_000_000)  # Hz; damaged headers claim other rates, which would take gigabytes to resample

_MAX_PHASES = 1280  # makes all pairs of standard rates exact
_MAX_KERNEL = 2_000_000  # entries of a resampling kernel
_UNKNOWN_FRAMES = 1 << 62
_MOST_FRAMES_PER_BYTE = 64  # codecs pack fewer frames into a byte, except for silence


class DataWarning(UserWarning):
    """Data that are changed or ignored, such as a corrected waveform or a table with other columns."""


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


def audio_info(path: str | Path | Stored, content: bytes | None = None) -> AudioInfo:
    """Read the header of an audio file. If its length is missing or impossible, the rest of the file is examined.

    Args:
        path: audio file, or audio inside a larger file.
        content: as in `load_crop`.

    Raises:
        AudioError: the file is missing, empty, or not audio, has no samples, has a sample rate outside 100 Hz to 1 MHz,
            or, in an uncompressed format, is shorter than its header says.
    """
    with _opened(path, content) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels)


def load_audio(
    path: str | Path | Stored,
    sample_rate: int,
    start: float = 0.0,
    seconds: float | None = None,
    notes: list[str] | None = None,
) -> Tensor:
    """Load a window of an audio file, downmixed to mono (mean over channels) and resampled.

    The reader seeks to the window, so a window of an hours-long file costs no more than one of a short file. The ratio
    of the two sample rates is rounded to a fraction with a denominator of at most 1280. Pairs of standard rates up
    to 96 kHz are exact; for others, such as 15994 and 16000, this shifts the pitch by up to about 4e-4.

    If the channels cancel each other, the loudest one is used instead of their mean. Samples of float files at integer
    scale are divided by 2^15, 2^23, or 2^31. Otherwise, samples are not changed, even if they are clipped or
    exceed full scale.

    Args:
        path: audio file with any channel count that libsndfile reads, or FFmpeg if PyAV is installed, or such audio
            inside a larger file.
        sample_rate: sample rate of the result, in Hz.
        start: start of the window, in seconds.
        seconds: length of the window, clipped to the end of the file; None reads to the end.
        notes: list that receives notes on these changes; None issues a `DataWarning` instead.

    Returns:
        float32 `[samples]` with 1 <= samples <= round(seconds * sample_rate); full scale is +-1.

    Raises:
        AudioError: the file cannot be used (see `audio_info`), ends before `start`, is truncated inside the window, or
            has samples in the window that are NaN, infinite, or above 64.
        ValueError: an argument is out of range.
    """
    _check_rate(sample_rate)
    if not 0 <= start < math.inf or not (seconds is None or 0 < seconds < math.inf):
        raise ValueError(f"start must be at least 0 and seconds above 0, both finite, got {start} and {seconds}")
    with _opened(path) as file:
        return _window(file, path, sample_rate, start, seconds, notes)


def load_crop(
    path: str | Path | Stored,
    sample_rate: int,
    seconds: float,
    position: float,
    content: bytes | None = None,
    notes: list[str] | None = None,
) -> Tensor:
    """Load the crop of a file that starts at `position * (length - seconds)`; shorter files are returned whole.

    The file is opened only once, for both its length and its samples.

    Args:
        path: audio file, as in `load_audio`.
        sample_rate: sample rate of the result, in Hz.
        seconds: length of the crop.
        position: from 0 (start of the file) to 1 (end).
        content: bytes of a file that is already in memory; `path` is then only used in messages.
        notes: as in `load_audio`.

    Returns:
        float32 `[samples]`, as from `load_audio`.

    Raises:
        AudioError: as for `load_audio`.
        ValueError: an argument is out of range.
    """
    _check_rate(sample_rate)
    if not 0 < seconds < math.inf or not 0 <= position <= 1:
        raise ValueError(f"seconds must be above 0 and finite, and position in [0, 1], got {seconds} and {position}")
    with _opened(path, content) as file:
        start = position * max(0.0, file.frames / file.samplerate - seconds)
        return _window(file, path, sample_rate, start, seconds, notes)


def decode_audio(path: str | Path | Stored) -> list[str]:
    """Decode a whole file, half a minute at a time, and return the notes on it (see `load_audio`), without repeats.

    Raises:
        AudioError: the file cannot be used, or cannot be decoded to its end.
    """
    notes: dict[str, None] = {}
    with _opened(path) as file:
        windows = math.ceil(file.frames / (30 * file.samplerate))
        bounds = np.linspace(0, file.frames, windows + 1).astype(np.int64).tolist()
        for first, end in itertools.pairwise(bounds):
            _, note = read_mono(file, first if file.seekable() else 0, end - first)  # others continue where they are
            if note:
                notes[note] = None
    return list(notes)


def _check_rate(sample_rate: int) -> None:
    if not 0 < sample_rate <= SAMPLE_RATES[1]:
        raise ValueError(f"sample_rate must be in 1..{SAMPLE_RATES[1]} Hz, got {sample_rate}")


@contextmanager
def _opened(path: str | Path | Stored, content: bytes | None = None) -> Generator[Sound, None, None]:
    """Open a file, or its content in memory, and check its header."""
    name = path if isinstance(path, (str, Path)) else str(path)
    if content is None and not isinstance(path, (str, Path)):
        content = path.read()
    try:
        with _content_of(name) if content is None else nullcontext(Content(content, len(content))) as raw:
            if raw.size == 0:
                raise Unusable("empty file (0 bytes)")
            view = corrected(raw, content is None and str(name).lower().endswith(".mp3"))
            plain = os.fsencode(name) if content is None else io.BytesIO(content)  # bytes: names need not be UTF-8
            with open_sound(view or plain, raw) as file:
                _check_header(file, raw.size)
                yield file
    except Unusable as error:
        raise AudioError(name, str(error)) from None
    except OSError as error:
        raise AudioError(name, error.strerror or str(error)) from None


@contextmanager
def _content_of(path: str | Path) -> Generator[Content, None, None]:
    """Open a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise Unusable("no such file") from None
    except (OSError, ValueError) as error:  # the name is too long or contains a null character
        raise Unusable(getattr(error, "strerror", None) or str(error)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unusable("not a file")
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        yield Content(descriptor, status.st_size, identity)
    finally:
        os.close(descriptor)


def _check_header(file: Sound, size: int) -> None:
    """Raise Unusable unless the file has samples, as many as its header says, at a usable rate."""
    if file.frames <= 0:
        raise Unusable("contains no samples")
    if file.frames >= _UNKNOWN_FRAMES:
        raise Unusable("the header does not give the length; re-encode the file")
    if not SAMPLE_RATES[0] <= file.samplerate <= SAMPLE_RATES[1]:
        low, high = SAMPLE_RATES
        raise Unusable(f"the header says {file.samplerate} Hz; sample rates from {low} to {high} Hz can be used")
    if file.frames > _MOST_FRAMES_PER_BYTE * size:
        read_mono(file, file.frames - 1, 1)


def _window(
    file: Sound,
    path: str | Path | Stored,
    sample_rate: int,
    start: float,
    seconds: float | None,
    notes: list[str] | None,
) -> Tensor:
    """Read a window of an open file, downmixed to mono and resampled: float32 `[samples]`."""
    rate = file.samplerate
    first = round(start * rate)
    if first >= file.frames:
        raise Unusable(f"ends at {file.frames / rate:.3f} s, before the window at {start:.3f} s")
    count = file.frames - first
    if seconds is not None:
        count = min(count, max(1, math.ceil(seconds * rate - 1e-6)))
    mono, note = read_mono(file, first, count)
    if note and notes is None:
        warnings.warn(f"{path}: {note}", DataWarning, stacklevel=4)
    elif note and notes is not None:
        notes.append(note)
    audio = torch.from_numpy(np.ascontiguousarray(mono))
    if rate != sample_rate:
        phases = min(_MAX_PHASES, max(1, math.isqrt(_MAX_KERNEL * sample_rate // rate)))
        phases = max(phases, -(-sample_rate // rate))
        ratio = Fraction(rate, sample_rate).limit_denominator(phases)
        audio = _resampler(ratio.numerator, ratio.denominator)(audio)
    return audio if seconds is None else audio[: max(1, round(seconds * sample_rate))]


@lru_cache(maxsize=16)
def _resampler(numerator: int, denominator: int) -> nn.Module:
    """Build a cached module that resamples waveforms from `numerator` Hz to `denominator` Hz."""
    from atk._torchaudio import transforms

    return transforms.Resample(numerator, denominator)
