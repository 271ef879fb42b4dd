"""Read samples of an open audio file as mono, in blocks, and decide what unusual samples mean."""

from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np

from atk.data.containers import Unusable
from atk.data.ffmpeg import DecodingError
from atk.extras import optional_imports

with optional_imports:
    import soundfile

_BLOCK_SAMPLES = 1 << 20  # read at a time, so that memory grows with the content of a file, not its stated length
_SLOPPY_FRAMES = {"MP3": 2 * 1152, "FFMPEG": 2 * 2048}  # encoder delay and padding make stated lengths inexact
_HEADROOM = 64.0  # 36 dB above full scale; larger samples of float files are integers that nobody scaled
_INTEGER_SCALES = (2.0**15, 2.0**23, 2.0**31)
_PROBES = 8  # places in a float file where its scale is measured
_PROBE_FRAMES = 1024
_CANCELED = 1e-2  # energy of the mean over channels, relative to that of unrelated channels


class Sound(Protocol):
    """An open audio file: the part of `soundfile.SoundFile` that reading needs."""

    @property
    def frames(self) -> int:
        """Samples per channel."""
        ...

    @property
    def samplerate(self) -> int:
        """Samples per second."""
        ...

    @property
    def channels(self) -> int:
        """Channel count."""
        ...

    @property
    def format(self) -> str:
        """Name of the container."""
        ...

    @property
    def subtype(self) -> str:
        """Name of the codec; "FLOAT" or "DOUBLE" if it stores float samples."""
        ...

    def seekable(self) -> bool:
        """Whether `seek` works."""
        ...

    def seek(self, frames: int, /) -> int:
        """Go to a frame, counted from the start."""
        ...

    def read(
        self, frames: int, dtype: Literal["float32", "float64"] = "float64", always_2d: bool = False
    ) -> np.ndarray:
        """The next samples, at most `frames` per channel: `[n, channels]`; `[n]` if mono, unless `always_2d`."""
        ...


def read_mono(file: Sound, first: int, count: int) -> tuple[np.ndarray, str]:
    """Read up to `count` frames from frame `first` and average the channels.

    - Channels that cancel each other (the mean is 20 dB below that of unrelated channels) are replaced by the loudest.
    - Float samples at integer scale (above 64, where full scale is 1) are divided by 2^15, 2^23, or 2^31.

    Returns:
        float32 `[frames]`, and a note on what was changed; "" if nothing was.

    Raises:
        Unusable: decoding fails, the file ends early, or a sample is NaN, infinite, or above 64.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # `_check` refuses what overflows
        return _read_mono(file, first, count)


def _read_mono(file: Sound, first: int, count: int) -> tuple[np.ndarray, str]:
    scale, note = _scale(file)
    blocks = []
    energy = np.zeros(file.channels)
    mean_energy = 0.0
    for block in _blocks(file, first, count):
        mono = block[:, 0] if file.channels == 1 else np.einsum("nc->n", block) / np.float32(file.channels)
        if file.channels > 1:
            energy += np.einsum("nc,nc->c", block, block)
            mean_energy += float(mono @ mono)
        blocks.append(mono)
    if file.channels > 1 and mean_energy < _CANCELED * energy.sum() / file.channels**2 and file.seekable():
        loudest = int(energy.argmax())
        blocks = [block[:, loudest].copy() for block in _blocks(file, first, count)]
        canceled = f"its channels cancel each other, so channel {loudest + 1} is used instead of their mean"
        note = f"{note}; {canceled}" if note else canceled
    audio = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if scale != 1:
        audio = audio / np.float32(scale)
    _check(audio, first, file.samplerate)
    return audio, note


def _blocks(file: Sound, first: int, count: int) -> Iterator[np.ndarray]:
    """Blocks `[n, channels]` of the window, in float32."""
    rate = file.samplerate
    size = max(1, _BLOCK_SAMPLES // file.channels)
    done = 0
    try:
        if file.seekable():
            file.seek(first)
        else:  # some codecs can only be decoded from the start
            for skipped in range(0, first, size):
                file.read(min(size, first - skipped), dtype="float32", always_2d=True)
        while done < count:
            block = file.read(min(size, count - done), dtype="float32", always_2d=True)
            done += len(block)
            if len(block) == 0:
                break
            yield block
    except (soundfile.LibsndfileError, DecodingError):
        raise Unusable(f"damaged or truncated: decoding fails after {(first + done) / rate:.3f} s") from None
    if done == 0 or count - done > _SLOPPY_FRAMES.get(file.format, 0):
        raise Unusable(f"truncated: ends at {(first + done) / rate:.3f} s of {file.frames / rate:.3f} s")


def _scale(file: Sound) -> tuple[float, str]:
    """The full scale of the file, and a note if it is not 1."""
    if file.subtype not in ("FLOAT", "DOUBLE") or not file.seekable():
        return 1.0, ""
    probes = []
    for first in np.linspace(0, max(0, file.frames - _PROBE_FRAMES), _PROBES).astype(int).tolist():
        file.seek(first)
        probes.append(np.abs(file.read(_PROBE_FRAMES, dtype="float64")).ravel())
    values = np.concatenate(probes)
    values = values[np.isfinite(values) & (values > 0)]
    peak = float(values.max(initial=0.0))
    scale = next((scale for scale in _INTEGER_SCALES if peak <= scale), 1.0)
    if peak <= _HEADROOM or scale == 1 or float(np.median(values)) <= 1:  # a few outliers do not define a scale
        return 1.0, ""
    return scale, f"its float samples are at integer scale (up to {peak:.0f}) and are divided by {scale:.0f}"


def _check(audio: np.ndarray, first: int, rate: int) -> None:
    """Raise Unusable for samples that cannot be sound."""
    low, high = float(audio.min()), float(audio.max())  # NaN if there is one
    if -_HEADROOM <= low <= high <= _HEADROOM:
        return
    if not np.isfinite(audio).all():
        position = (first + int(np.argmin(np.isfinite(audio)))) / rate
        raise Unusable(f"contains NaN or infinite samples (first at {position:.3f} s)")
    position = (first + int(np.argmax(np.abs(audio) > _HEADROOM))) / rate
    raise Unusable(f"contains samples up to {max(-low, high):.3g}, where full scale is 1 (first at {position:.3f} s)")
