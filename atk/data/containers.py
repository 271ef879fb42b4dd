"""Corrected views of audio files whose headers mislead libsndfile about where the samples are or how many there are."""

import contextlib
import io
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from tokenize import TokenError
from typing import Literal, NamedTuple, Protocol

import numpy as np

from atk.data import mpeg

_SLOPPY_BYTES = 4096  # some writers overstate the size of the samples by the size of the header
_STREAMED = 0x7FFFF000  # streaming writers leave a size of about 2^31 or 2^32
_LARGEST_SIZE = (1 << 32) - 1  # that 4 bytes can state
_ID3 = b"ID3\x04\0\0\0\0\0\x40" + bytes(0x40)  # libsndfile recognizes MPEG audio without a file name only after a tag
_MOST_CHUNKS = 4096
_HEAD_BYTES = 4096
ARRAY_RATE = 16_000  # Hz; NumPy files do not store a sample rate


class Unusable(ValueError):  # noqa: N818 (becomes an AudioError with the name of the file)
    """What is wrong with a file; the message does not name the file."""


class Stored(Protocol):
    """Audio that lies inside a larger file; `str()` gives its name for messages."""

    @property
    def name(self) -> str:
        """The name of the audio file; "" if it has none."""
        ...

    @property
    def size(self) -> int:
        """Its size in bytes."""
        ...

    def read(self) -> bytes:
        """The content of the audio file; raises AudioError."""
        ...


class _Layout(NamedTuple):
    """How a container stores its chunks."""

    first: int  # offset of the first chunk
    id_bytes: int
    size_bytes: int
    order: Literal["little", "big"]
    align: int
    samples: bytes  # first bytes of the id of the chunk with the samples
    counts_header: bool = False  # whether a chunk's size includes its id and size


_LAYOUTS = {
    b"RIFF": _Layout(12, 4, 4, "little", 2, b"data"),
    b"RIFX": _Layout(12, 4, 4, "big", 2, b"data"),
    b"FORM": _Layout(12, 4, 4, "big", 2, b"SSND"),  # AIFF
    b"caff": _Layout(8, 4, 8, "big", 1, b"data"),
    b"riff": _Layout(40, 16, 8, "little", 8, b"data", counts_header=True),  # Wave64
}


class _Chunk(NamedTuple):
    id: bytes
    size_at: int  # offset of the field with the size
    start: int  # of the content
    size: int  # of the content, as stated


class Content:
    """The bytes of a file; the first few thousand are read right away.

    Args:
        source: descriptor of an open file, or its content in memory.
        size: its size in bytes.
        identity: stays the same only while the file is unchanged; None if unknown.
    """

    def __init__(self, source: int | bytes, size: int, identity: tuple[int, ...] | None = None):
        self.source = source
        self.size = size
        self.identity = identity
        self.head = os.read(source, _HEAD_BYTES) if isinstance(source, int) else source

    def read_at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes from `position` on."""
        if isinstance(self.source, bytes) or position + count <= len(self.head):
            return self.head[position : position + count]
        if position >= self.size:
            return b""
        os.lseek(self.source, position, os.SEEK_SET)
        return os.read(self.source, count)

    def whole(self) -> AbstractContextManager[bytes | mmap.mmap]:
        """All bytes."""
        if isinstance(self.source, bytes):
            return contextlib.nullcontext(self.source)
        return mmap.mmap(self.source, self.size, access=mmap.ACCESS_READ)


class View:
    """`prefix`, then the bytes of `content` from offset `start` on, as a file to read."""

    def __init__(self, content: Content, prefix: bytes, start: int):
        self.content = content
        self.prefix = prefix
        self.start = start
        self.position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Like `io.IOBase.seek`."""
        if whence == os.SEEK_END:
            offset += len(self.prefix) + max(0, self.content.size - self.start)
        self.position = max(0, offset + self.position if whence == os.SEEK_CUR else offset)
        return self.position

    def tell(self) -> int:
        """Like `io.IOBase.tell`."""
        return self.position

    def read(self, count: int) -> bytes:
        """Like `io.BufferedIOBase.read`."""
        data = self.prefix[self.position : self.position + count]
        if len(data) < count:
            offset = self.position + len(data) - len(self.prefix)  # from the end of the prefix
            data += self.content.read_at(self.start + offset, count - len(data))
        self.position += len(data)
        return data


def corrected(content: Content, named_mp3: bool) -> View | None:
    """A view of an audio file with a header that libsndfile understands; None if it understands the file as it is.

    - MPEG audio that lacks a length, or that continues past its stated length, gets a Xing frame with the number of its
      frames.
    - If a recorder never filled in the size of the samples, or filled it in only once early on, the samples extend to
      the end of the file (WAV, AIFF, CAF, Wave64, AU).
    - An ID3 tag before audio other than MPEG is left out.
    - A NumPy file with float32 `[samples]` becomes a WAV file at `ARRAY_RATE`.

    Args:
        content: the file.
        named_mp3: whether libsndfile gets a name that ends in `.mp3`.

    Raises:
        Unusable: the header states a larger size than the file has, or a NumPy file holds anything else.
    """
    if content.head.startswith(np.lib.format.MAGIC_PREFIX):
        return _array_view(content)
    start = mpeg.id3_size(content.head[:10])
    magic = content.read_at(start, 4)
    if magic in _LAYOUTS:
        view = _with_true_size(content, start, _LAYOUTS[magic])
    elif magic == b".snd":
        view = _au_view(content, start)
    elif magic in (b"fLaC", b"OggS", b"RF64"):
        view = None
    else:
        return _mpeg_view(content, start, named_mp3)
    return view or (View(content, b"", start) if start else None)


def _chunks(content: Content, position: int, layout: _Layout) -> Iterator[_Chunk]:
    """The chunks from `position` on, until a header would extend past the end of the file."""
    header = layout.id_bytes + layout.size_bytes
    for _ in range(_MOST_CHUNKS):
        if position + header > content.size:
            return
        fields = content.read_at(position, header)
        stated = int.from_bytes(fields[layout.id_bytes :], layout.order)
        size = max(0, stated - header) if layout.counts_header else stated
        yield _Chunk(fields[: layout.id_bytes], position + layout.id_bytes, position + header, size)
        position += -(-(header + size) // layout.align) * layout.align


def _with_true_size(content: Content, start: int, layout: _Layout) -> View | None:
    """A view whose header states the true size of the samples; None if the size is right or libsndfile corrects it."""
    chunks = _chunks(content, start + layout.first, layout)
    chunk = next((chunk for chunk in chunks if chunk.id.startswith(layout.samples)), None)
    if chunk is None:
        return None
    available = content.size - chunk.start
    is_huge = layout.size_bytes == 4 and available > _LARGEST_SIZE
    unknown = chunk.size >= (_STREAMED if layout.size_bytes == 4 else 1 << 62)
    if not unknown and chunk.size > available + _SLOPPY_BYTES:
        raise Unusable(f"truncated: the header says {chunk.size} bytes of samples, the file has {available}")
    covered = chunk.size + -chunk.size % layout.align
    if available - covered <= chunk.size and not (unknown and (is_huge or layout.size_bytes == 8)):
        return None
    ends = {chunk.start + chunk.size, chunk.start + covered}  # some writers forget the padding
    if (is_huge or not unknown) and any(_is_chunk(content, end, layout) for end in ends):
        return None
    if chunk.size and not unknown and _is_zero(content, chunk.start + chunk.size):
        return None
    header = content.read_at(start, chunk.size_at - start)
    if is_huge:
        if not header.startswith(b"RIFF"):
            raise Unusable("has more than the 4 GiB of samples that its header can state; save it as CAF, for example")
        return View(content, _rf64_header(header[layout.first :], available), chunk.start)
    true_size = available + (layout.id_bytes + layout.size_bytes if layout.counts_header else 0)
    return View(content, header + true_size.to_bytes(layout.size_bytes, layout.order), chunk.start)


def _rf64_header(chunks: bytes, size: int) -> bytes:
    """A WAV header with a 64-bit size of the samples.

    Args:
        chunks: what precedes the size of the samples, without the first 12 bytes.
        size: of the samples, in bytes.
    """
    unknown = _LARGEST_SIZE.to_bytes(4, "little")
    riff_size = 4 + 36 + len(chunks) + 4 + size
    return b"RF64" + unknown + b"WAVEds64" + struct.pack("<IQQQI", 28, riff_size, size, 0, 0) + chunks + unknown


def _is_chunk(content: Content, position: int, layout: _Layout) -> bool:
    """Whether another chunk begins at `position`."""
    chunk = next(_chunks(content, position, layout), None)
    if chunk is None:
        return False
    readable = chunk.id[:4].isascii() and chunk.id[:4].decode().isprintable()
    return readable and chunk.start + chunk.size <= content.size + _SLOPPY_BYTES


def _is_zero(content: Content, position: int) -> bool:
    """Whether the file has nothing but zeros from `position` on."""
    while data := content.read_at(position, 1 << 20):
        if data.strip(b"\0"):
            return False
        position += len(data)
    return True


def _au_view(content: Content, start: int) -> View | None:
    """A view of an AU file with the size of the samples marked unknown; None if the stated size is right."""
    head = content.read_at(start, 12)
    available = content.size - start - int.from_bytes(head[4:8], "big")
    stated = int.from_bytes(head[8:12], "big")
    unknown = stated >= _STREAMED or stated < available - stated
    if stated > available + _SLOPPY_BYTES and not unknown:
        raise Unusable(f"truncated: the header says {stated} bytes of samples, the file has {available}")
    return View(content, head[:8] + b"\xff\xff\xff\xff", start + 12) if unknown and available > 0 else None


def _mpeg_view(content: Content, start: int, named_mp3: bool) -> View | None:
    """A view of MPEG audio that libsndfile recognizes, with its length; None for other data or if no view is needed."""
    audio = mpeg.find_audio(content, start, search=named_mp3)
    if audio is None:
        return None
    if audio.tag:
        return View(content, _ID3 + audio.tag, audio.frames_start)
    return None if start or named_mp3 else View(content, _ID3, 0)


def _array_view(content: Content) -> View:
    """A view of a NumPy file as a WAV file."""
    header = io.BytesIO(content.head)
    try:
        version = np.lib.format.read_magic(header)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(header)
    except (ValueError, SyntaxError, TokenError, RecursionError, MemoryError):  # what NumPy's parser raises
        raise Unusable("a NumPy file whose header is damaged") from None
    if len(shape) != 1 or shape[0] < 0 or dtype != np.dtype("<f4"):
        raise Unusable(f"a NumPy file must hold float32 [samples], got {dtype} {list(shape)}")
    available = content.size - header.tell()
    size = 4 * shape[0]
    if size > available:
        raise Unusable(f"truncated: the header says {size} bytes of samples, the file has {available}")
    chunks = struct.pack("<4sIHHIIHH4s", b"fmt ", 16, 3, 1, ARRAY_RATE, 4 * ARRAY_RATE, 4, 32, b"data")
    return View(content, _rf64_header(chunks, size), header.tell())
