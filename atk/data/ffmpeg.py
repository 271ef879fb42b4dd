"""Audio decoded by FFmpeg through PyAV, with every window at the exact sample."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from atk.data.containers import Unusable
from atk.extras import optional_imports

if TYPE_CHECKING:
    from av import AudioFrame

_PREROLL = 0.5  # seconds to decode before a window, which codecs with a memory need
_NEAR = 1.0  # seconds ahead up to which decoding on is as fast as seeking
_GAP = 0.1  # seconds; where timestamps leave out more than this, packets were lost, which become silence
_INEXACT = ("vorbis",)  # its timestamps in other containers than Ogg do not tell where a frame starts
_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}  # the other formats are float

_LENGTHS: dict[tuple[int, ...], int] = {}  # frames by file, so that each end is looked for only once
_MOST_LENGTHS = 10_000


class DecodingError(Unusable):
    """A part of a file cannot be decoded."""


class CodecFile:
    """An open file, with the part of `soundfile.SoundFile` that reading needs.

    Frame 0 is the first one after the encoder's delay. The length does not include the encoder's padding if the file
    states it. `seek` finds a frame by its timestamp if timestamps are exact, else by decoding from the start.

    Args:
        source: path, or an object with `read`, `seek`, and `tell`.
        name: FFmpeg's name of the container.
        identity: stays the same only while the file is unchanged; None if unknown.

    Attributes:
        frames: samples per channel.
        samplerate: samples per second.
        channels: channel count.
        format: "FFMPEG".
        subtype: "FLOAT" for uncompressed float samples, else FFmpeg's name of the codec.

    Raises:
        Unusable: FFmpeg cannot read the file, or the file has no audio.
    """

    format = "FFMPEG"

    def __init__(self, source: Any, name: str, identity: tuple[int, ...] | None = None):
        with optional_imports:
            import av

        self._av = av
        self._source = f"file:{source}" if isinstance(source, str) else source  # else "a:b" is a URL
        self._name = name
        self._container: Any = None
        try:
            self._rewind()
            self._measure()
            known = None if identity is None else _LENGTHS.get(identity)
            self.frames = self._length() if known is None else known
            self.seek(0)
        except BaseException:
            self.close()
            raise
        if identity is not None:
            if len(_LENGTHS) >= _MOST_LENGTHS:
                _LENGTHS.clear()
            _LENGTHS[identity] = self.frames

    def __enter__(self) -> "CodecFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; an object passed as `source` stays open."""
        if self._container is not None:
            self._container.close()

    def seekable(self) -> bool:
        """True: `seek` can go anywhere."""
        return True

    def seek(self, frames: int) -> int:
        """Go to a frame, counted from the start, or to the end if that is earlier; returns where it went.

        Raises:
            DecodingError: what precedes the frame cannot be decoded.
        """
        frames = min(frames, self.frames)
        if not self._position <= frames <= self._position + _NEAR * self.samplerate:
            self._jump(frames)
        self._pass(frames)
        return self._position

    def read(
        self, frames: int, dtype: Literal["float32", "float64"] = "float64", always_2d: bool = False
    ) -> np.ndarray:
        """Up to `frames` samples of each channel, fewer at the end or before damage: `[n, channels]`.

        Without `always_2d`, the samples of a mono file are `[n]`.

        Raises:
            DecodingError: the next sample cannot be decoded.
        """
        end = min(self._position + frames, self.frames)
        blocks = [np.empty((0, self.channels), np.float32)]
        while self._position < end and self._fill():
            blocks.append(self._rest[: end - self._position])
            self._drop(len(blocks[-1]))
        if self._error is not None and len(blocks) == 1:
            raise self._error
        samples = np.concatenate(blocks).astype(dtype, copy=False)
        return samples if always_2d or self.channels > 1 else samples[:, 0]

    def _rewind(self) -> None:
        """Open the file at its start."""
        self.close()
        if not isinstance(self._source, str):
            self._source.seek(0)
        try:
            self._container = self._av.open(self._source, format=self._name, metadata_errors="replace")
        except self._av.FFmpegError as error:
            raise Unusable(f"not readable as audio ({error.strerror})") from None
        self._stream = self._container.streams.best("audio")
        if self._stream is None or self._stream.codec_context is None:  # no sound, or of an unknown codec
            raise Unusable("contains no audio")
        self._stream.codec_context.thread_count = 1  # workers share the cores
        self._continue(self._decoded(), 0)

    def _continue(self, frames: "Iterator[AudioFrame]", position: int) -> None:
        self._pieces = self._with_gaps(frames, position)
        self._position = position
        self._error: DecodingError | None = None
        self._rest = np.empty((0, 0), np.float32)  # decoded samples from the current position on

    def _decoded(self, lenient: bool = False) -> "Iterator[AudioFrame]":
        """The frames from the current packet on; `lenient` passes over damage before the first one."""
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except self._av.FFmpegError:
                    if not lenient:
                        raise
                    continue
                lenient = lenient and not frames
                yield from frames
        except self._av.FFmpegError as error:
            raise DecodingError(error.strerror) from None

    def _with_gaps(self, frames: "Iterable[AudioFrame]", position: int) -> "Iterator[AudioFrame | int]":
        """The frames, and between them the number of samples that were lost."""
        for frame in frames:
            lost = self._time(frame) - position
            if lost > _GAP * self.samplerate:
                place = self._place(frame)
                lost = int(lost) if place is None else place - position
                yield lost
                position += lost
            yield frame
            position += frame.samples

    def _measure(self) -> None:
        """Decode the first two frames, and find out how timestamps tell the position of the others."""
        try:
            start = list(itertools.islice(self._decoded(), 2))
        except DecodingError as error:
            raise Unusable(f"not readable as audio ({error})") from None
        if not start:
            raise Unusable("contains no samples")
        self.samplerate = start[-1].sample_rate
        self.channels = len(start[-1].layout.channels)
        codec = self._stream.codec_context.codec.name
        self.subtype = "FLOAT" if codec.startswith("pcm_f") else codec.upper()
        tick = self._stream.time_base * self.samplerate  # the unit of timestamps, in samples
        self._tick = float(tick)
        self._size = start[-1].samples  # of a frame
        self._delay = max(0, self._size - start[0].samples)  # what the decoder left out of the first one
        self._origin = 0.0 if start[0].pts is None else start[0].pts * self._tick
        in_steps = tick == 1 or (self._size / tick).denominator == 1 or 1 < 3 * tick < self._size
        self._has_times = start[0].pts is not None and codec not in _INEXACT and in_steps
        self._continue(itertools.chain(start, self._decoded()), 0)

    def _length(self) -> int:
        """The number of samples, as MPEG-4 states it; otherwise those up to the end of the last frame."""
        duration = self._stream.duration
        if duration and self._name == "mov":
            return round(duration * self._tick)
        if self._has_times:
            seconds = (self._container.duration or 0) / self._av.time_base or 1e6
            try:
                self._container.seek(int((seconds * self.samplerate + self._origin) / self._tick), stream=self._stream)
                last = max(map(self._time, self._decoded(lenient=True)), default=0.0)
            except (self._av.FFmpegError, DecodingError):
                last = 0.0
            self._jump(int(last) if last > 0 else 0)  # a NaN is not
        self._pass(1 << 62)
        return self._position

    def _time(self, frame: "AudioFrame") -> float:
        """The start of a frame in samples, by its timestamp, which may be rounded; NaN without a timestamp."""
        return math.nan if frame.pts is None else frame.pts * self._tick - self._origin

    def _place(self, frame: "AudioFrame") -> int | None:
        """The start of a frame in samples; None if its timestamp does not tell it."""
        time = self._time(frame)
        if not self._has_times or math.isnan(time):
            return None
        if self._tick == 1:
            return int(time)
        place = round((time + self._delay) / self._size) * self._size - self._delay
        return place if abs(time - place) <= max(1.0, self._tick) else None

    def _jump(self, position: int) -> None:
        """Go to `position`, or to an earlier one from which it can be reached by decoding on."""
        start = position - max(_PREROLL * self.samplerate, 2 * self._size)
        if start > 0 and self._has_times:
            frames = self._decoded(lenient=True)
            try:
                self._container.seek(int((start + self._origin) / self._tick), stream=self._stream)
                next(frames, None)  # its start may be cut off as if it were the first one of the file
                frame = next(frames, None)
            except (self._av.FFmpegError, DecodingError):
                frame = None
            place = None if frame is None else self._place(frame)
            if frame is not None and place is not None and 0 <= place <= position:
                self._continue(itertools.chain([frame], frames), place)
                return
        self._rewind()

    def _pass(self, end: int) -> None:
        """Decode up to position `end`, or to the end of the file."""
        while self._position < end:
            if not len(self._rest):
                piece = next(self._pieces, None)
                if piece is None:
                    return
                samples = piece if isinstance(piece, int) else piece.samples
                if samples <= end - self._position:
                    self._position += samples
                    continue
                self._rest = self._samples(piece)
            self._drop(end - self._position)

    def _fill(self) -> bool:
        """Decode more samples if none are left; False at the end of the file or at damage."""
        try:
            while not len(self._rest):
                piece = next(self._pieces, None)
                if piece is None:
                    return False
                self._rest = self._samples(piece)
        except DecodingError as error:
            self._error = error
            return False
        return True

    def _drop(self, count: int) -> None:
        count = min(count, len(self._rest))
        self._rest = self._rest[count:]
        self._position += count

    def _samples(self, piece: "AudioFrame | int") -> np.ndarray:
        """Float32 `[samples, channels]` of a frame or of silence."""
        if isinstance(piece, int):
            return np.broadcast_to(np.float32(0), (min(piece, 1 << 40), self.channels))
        if piece.sample_rate != self.samplerate:
            raise DecodingError("the sample rate changes")
        channels = len(piece.layout.channels)
        data = piece.to_ndarray()
        samples = (data.T if piece.format.is_planar else data.reshape(-1, channels)).astype(np.float32)
        sample_format = piece.format.packed.name
        if sample_format == "u8":
            samples -= 128
        samples /= _FULL_SCALE.get(sample_format, 1.0)
        return samples if channels == self.channels else np.repeat(samples.mean(1, keepdims=True), self.channels, 1)
