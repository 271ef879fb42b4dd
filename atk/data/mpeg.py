"""MPEG audio (MP3) frames, for files that do not say how many there are."""

import mmap
import re
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import NamedTuple, Protocol

_RATES = (44100, 48000, 32000)  # of MPEG 1; halved in MPEG 2, quartered in MPEG 2.5
_KBITS = {  # by (is MPEG 1, layer), ISO/IEC 11172-3 and 13818-3; index 0 is a free format, whose frames have any size
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_LARGEST_INDEX = 14  # of the tables above
_LAYER_3 = 1  # as headers encode it
_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_HEAD_BYTES = 4096  # two frames have at most 2882 bytes
_SEARCH_BYTES = 1 << 16  # give up after this many bytes that are not MPEG audio, as decoders do
_LEAST_KBITS, _MOST_KBITS = 4, 512  # average bit rates outside of these contradict the length in a tag
_SLOPPY_BYTES = 4096

_COUNTS: dict[tuple[int, ...], int] = {}  # frames by file and offset, so that a file is searched only once
_MOST_COUNTS = 10_000


class _Stream(NamedTuple):
    """What all frames of a stream share."""

    second_byte: int  # of a frame header, without the checksum bit
    samples: int  # per frame and channel
    sample_rate: int
    sizes: tuple[int, ...]  # of a frame in bytes, by the third byte of its header; 0 if it is not of this stream


def id3_size(head: bytes) -> int:
    """Size in bytes of the ID3v2 tag at the start of `head`; 0 if there is none."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    a, b, c, d = head[6:10]
    return 10 + (a << 21 | b << 14 | c << 7 | d)


class Content(Protocol):
    """The bytes of a file."""

    size: int
    identity: tuple[int, ...] | None

    def read_at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes from `position` on."""
        ...

    def whole(self) -> AbstractContextManager[bytes | mmap.mmap]:
        """All bytes."""
        ...


class Audio(NamedTuple):
    """MPEG audio in a file.

    Attributes:
        start: offset of its first frame.
        tag: a Xing frame with the length, if the file does not state its length or states a wrong one; else empty.
        frames_start: offset of the first frame after the file's own length tag, which `tag` replaces.
    """

    start: int
    tag: bytes = b""
    frames_start: int = 0


def find_audio(content: Content, start: int, search: bool) -> Audio | None:
    """The MPEG audio in a file; None if there is none.

    Args:
        content: the file.
        start: offset after the ID3 tag, if there is one.
        search: also look for a first frame that begins after `start`.
    """
    head = content.read_at(start, _SEARCH_BYTES if search else _HEAD_BYTES)
    location = _first_frame(head)
    if location is None:
        return None
    stream, first = location
    if first and not search:
        return None
    audio = start + first
    if head[first + 1] >> 1 & 3 != _LAYER_3:  # decoders read length tags only in MP3
        return Audio(audio)
    size = stream.sizes[head[first + 2]]
    stated = _tag(head[first : first + size])
    if stated is not None and _agrees(content, audio, stream, *stated):
        return Audio(audio)
    frames_start = audio if stated is None else audio + size
    key = None if content.identity is None else (*content.identity, frames_start)
    frames = None if key is None else _COUNTS.get(key)
    if frames is None:
        with content.whole() as data:
            frames = _count(data, frames_start, stream)
        if key is not None:
            if len(_COUNTS) >= _MOST_COUNTS:
                _COUNTS.clear()
            _COUNTS[key] = frames
    return Audio(audio, _xing_frame(head[first : first + 4], stream, frames), frames_start)


def _agrees(content: Content, audio: int, stream: _Stream, frames: int, size: int) -> bool:
    """Whether a length tag that states `frames` and `size` (0: not stated) agrees with the rest of the file."""
    seconds = frames * stream.samples / stream.sample_rate
    if not frames or (size and not _LEAST_KBITS < size * 8e-3 / seconds < _MOST_KBITS):
        return False
    end = audio + size
    rest = content.read_at(end, _SEARCH_BYTES) if size and end + _SLOPPY_BYTES < content.size else b""
    while skipped := id3_size(rest):
        end += skipped
        rest = content.read_at(end, _SEARCH_BYTES)
    return _next_frame(rest, 0, stream) is None


@lru_cache(maxsize=64)
def _stream(second_byte: int, rate_index: int) -> _Stream | None:
    """The stream of a frame with this second header byte and sample rate; None if no frame header has them."""
    version, layer = second_byte >> 3 & 3, 4 - (second_byte >> 1 & 3)
    if version == 1 or layer == 4 or rate_index == 3:
        return None
    mpeg1 = version == 3
    rate = _RATES[rate_index] >> (0 if mpeg1 else 1 if version == 2 else 2)
    samples = 384 if layer == 1 else 576 if layer == 3 and not mpeg1 else 1152
    sizes = [0] * 256
    for index, kbits in enumerate(_KBITS[mpeg1, layer]):
        for padding in (0, 1):
            size = samples // 8 * kbits * 1000 // rate + padding
            if layer == 1:
                size = 4 * (12 * kbits * 1000 // rate + padding)
            for private in (0, 1):
                sizes[index << 4 | rate_index << 2 | padding << 1 | private] = size if kbits else 0
    return _Stream(second_byte & 0xFE, samples, rate, tuple(sizes))


def _size(data: bytes | mmap.mmap, position: int, stream: _Stream) -> int:
    """Size in bytes of the frame at `position`; 0 if there is no complete one."""
    if position + 4 > len(data) or data[position] != 0xFF or data[position + 1] & 0xFE != stream.second_byte:
        return 0
    size = stream.sizes[data[position + 2]]
    return size if position + size <= len(data) else 0


def _first_frame(head: bytes) -> tuple[_Stream, int] | None:
    """Find the first two adjacent frames: their stream and the offset of the first one."""
    for match in _SYNC.finditer(head, 0, max(0, len(head) - 3)):
        at = match.start()
        stream = _stream(head[at + 1], head[at + 2] >> 2 & 3)
        size = 0 if stream is None else _size(head, at, stream)
        if stream is not None and size and (at + size == len(head) or _size(head, at + size, stream)):
            return stream, at
    return None


def _next_frame(data: bytes | mmap.mmap, position: int, stream: _Stream) -> int | None:
    """Offset of the next frame of the stream, past any tags and damage; None if there is none nearby."""
    while skipped := id3_size(data[position : position + 10]):
        position += skipped
    for match in _SYNC.finditer(data, position, min(len(data), position + _SEARCH_BYTES)):
        size = _size(data, match.start(), stream)
        if size and (match.start() + size == len(data) or _size(data, match.start() + size, stream)):
            return match.start()
    return None


def _count(data: bytes | mmap.mmap, position: int, stream: _Stream) -> int:
    """The number of frames from `position` on."""
    frames = 0
    while True:
        while size := _size(data, position, stream):
            frames += 1
            position += size
        following = _next_frame(data, position, stream)
        if following is None:
            return frames
        position = following


def _tag(frame: bytes) -> tuple[int, int] | None:
    """The number of frames and bytes that the length tag in a first frame states, 0 if unknown; None without a tag."""
    content = frame[:200]
    for name in (b"Xing", b"Info"):
        if (at := content.find(name, 4, 48)) > 0:
            flags, *fields = (int.from_bytes(content[at + i : at + i + 4], "big") for i in (4, 8, 12))
            frames = fields.pop(0) if flags & 1 else 0
            return frames, fields[0] if flags & 2 else 0
    if content[36:40] == b"VBRI":  # libsndfile ignores this one
        return 0, 0
    return None


def _xing_frame(header: bytes, stream: _Stream, frames: int) -> bytes:
    """A frame with a length tag. It has the largest bit rate, so that the tag fits."""
    third = _LARGEST_INDEX << 4 | header[2] & 0x0C
    content = bytearray(stream.sizes[third])
    content[:4] = bytes([0xFF, header[1] | 1, third, header[3]])
    mono = header[3] >> 6 == 3
    mpeg1 = header[1] >> 3 & 3 == 3
    at = 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
    content[at : at + 12] = b"Xing" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return bytes(content)
