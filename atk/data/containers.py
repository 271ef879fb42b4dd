"""Corrected views of audio files whose headers mislead libsndfile about where the samples are or how many there are."""

import mmap
import os
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO, Literal, NamedTuple

from atk.data import mpeg

_SLOPPY_BYTES = 4096  # some writers overstate the size of the samples by the size of the header
_STREAMED = 0x7FFFF000  # streaming writers leave a size of about 2^31 or 2^32
_ID3 = b"ID3\x04\0\0\0\0\0\x40" + bytes(0x40)  # libsndfile recognizes MPEG audio without a name only behind a tag
_MOST_CHUNKS = 4096


class Unusable(ValueError):  # noqa: N818 (becomes an AudioError with the name of the file)
    """What is wrong with a file, without its name."""


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


class View:
    """`prefix`, then the bytes of `file` from offset `start` on, as a file to read."""

    def __init__(self, file: BinaryIO, prefix: bytes, start: int):
        self.file = file
        self.prefix = prefix
        self.start = start
        self.position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As `io.IOBase.seek`."""
        if whence == os.SEEK_END:
            offset += self.file.seek(0, os.SEEK_END) - self.start + len(self.prefix)
        self.position = max(0, offset + self.position if whence == os.SEEK_CUR else offset)
        return self.position

    def tell(self) -> int:
        """As `io.IOBase.tell`."""
        return self.position

    def read(self, count: int) -> bytes:
        """As `io.BufferedIOBase.read`."""
        content = self.prefix[self.position : self.position + count]
        if len(content) < count:
            self.file.seek(max(0, self.position - len(self.prefix)) + self.start)
            content += self.file.read(count - len(content))
        self.position += len(content)
        return content


def corrected(file: BinaryIO, size: int, named_mp3: bool) -> View | None:
    """A view of an audio file with a header that libsndfile understands; None if it understands the file as it is.

    - MPEG audio without a length, or with more audio behind what its length covers, gets a Xing frame with the number
      of its frames.
    - If a recorder never filled in the size of the samples, or filled it in only once early on, the samples last until
      the end of the file (WAV, AIFF, CAF, Wave64, AU).
    - An ID3 tag before other audio than MPEG is left out.

    Args:
        file: the file, or its content in memory.
        size: its size in bytes.
        named_mp3: libsndfile will see that its name ends with `.mp3`.

    Raises:
        Unusable: the header states a larger size than the file has.
    """
    start = mpeg.id3_size(file.read(10))
    file.seek(start)
    magic = file.read(12)
    if magic[:4] in _LAYOUTS:
        prefix = _with_true_size(file, size, start, _LAYOUTS[magic[:4]])
    elif magic[:4] == b".snd":
        prefix = _au_header(file, size, start)
    elif magic[:4] in (b"fLaC", b"OggS", b"RF64"):
        prefix = b""
    else:
        return _mpeg_view(file, size, start, named_mp3)
    if prefix:
        return View(file, prefix, start + len(prefix))
    return View(file, b"", start) if start else None


def _chunks(file: BinaryIO, size: int, position: int, layout: _Layout) -> Iterator[_Chunk]:
    """The chunks from `position` on whose headers lie in the file."""
    header = layout.id_bytes + layout.size_bytes
    for _ in range(_MOST_CHUNKS):
        if position + header > size:
            return
        file.seek(position)
        name, stated = file.read(layout.id_bytes), file.read(layout.size_bytes)
        length = int.from_bytes(stated, layout.order)
        content = max(0, length - header) if layout.counts_header else length
        yield _Chunk(name, position + layout.id_bytes, position + header, content)
        position += -(-(header + content) // layout.align) * layout.align


def _with_true_size(file: BinaryIO, size: int, start: int, layout: _Layout) -> bytes:
    """The header up to the samples with their true size; empty if it is right or libsndfile corrects it."""
    chunks = _chunks(file, size, start + layout.first, layout)
    chunk = next((chunk for chunk in chunks if chunk.id.startswith(layout.samples)), None)
    if chunk is None:
        return b""
    available = size - chunk.start
    unknown = chunk.size >= (_STREAMED if layout.size_bytes == 4 else 1 << 62)
    if not unknown and chunk.size > available + _SLOPPY_BYTES:
        raise Unusable(f"truncated: the header says {chunk.size} bytes of samples, the file has {available}")
    covered = chunk.size + -chunk.size % layout.align
    if available - covered <= chunk.size and not (unknown and layout.size_bytes == 8):
        return b""
    if not unknown and _are_chunks(file, size, chunk.start + covered, layout):
        return b""
    true = available + (layout.id_bytes + layout.size_bytes if layout.counts_header else 0)
    field = min(true, (1 << 8 * layout.size_bytes) - 1).to_bytes(layout.size_bytes, layout.order)
    file.seek(start)
    return file.read(chunk.size_at - start) + field


def _are_chunks(file: BinaryIO, size: int, position: int, layout: _Layout) -> bool:
    """Whether the rest of the file consists of chunks."""
    end = position
    for chunk in _chunks(file, size, position, layout):
        end = chunk.start + chunk.size
        if not (chunk.id[:4].isascii() and chunk.id[:4].decode().isprintable()) or end > size + _SLOPPY_BYTES:
            return False
    return end > position


def _au_header(file: BinaryIO, size: int, start: int) -> bytes:
    """The header of an AU file with the true size of the samples; empty if it is right."""
    file.seek(start)
    head = file.read(12)
    available = size - start - int.from_bytes(head[4:8], "big")
    stated = int.from_bytes(head[8:12], "big")
    unknown = stated == 0 or stated >= _STREAMED
    if stated > available + _SLOPPY_BYTES and not unknown:
        raise Unusable(f"truncated: the header says {stated} bytes of samples, the file has {available}")
    return head[:8] + b"\xff\xff\xff\xff" if unknown and available > 0 else b""


def _mpeg_view(file: BinaryIO, size: int, start: int, named_mp3: bool) -> View | None:
    """A view of MPEG audio that libsndfile recognizes, with its length; None for other data or if there is no need."""
    if isinstance(file, BytesIO):
        return _tagged(file, file.getvalue(), start, named_mp3)
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        return _tagged(file, content, start, named_mp3)


def _tagged(file: BinaryIO, content: bytes | mmap.mmap, start: int, named_mp3: bool) -> View | None:
    tag = mpeg.length_tag(content, start)
    if tag is not None:
        frame, audio = tag
        return View(file, _ID3 + frame, audio)
    if start or named_mp3 or not mpeg.is_mpeg(content, start):
        return None
    return View(file, _ID3, 0)
