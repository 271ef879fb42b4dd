"""Tar shards in WebDataset layout: locate each member in the file, so that it can be read without the others."""

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from atk.data.audio import AudioError
from atk.data.remote import RemoteFile, RemoteReader, is_url

SHARD_SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
COMPRESSED = "a compressed tar has no random access; decompress it to a plain .tar"

_COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_ZEROS_BYTES = 1 << 16  # read at a time
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_braces(pattern: str) -> list[str]:
    """Expand `a-{008..010}.tar` to a-008.tar, a-009.tar, a-010.tar; several ranges give all combinations."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    if int(first) > int(last):
        raise ValueError(f"{pattern}: the range {match[0]} is empty because its start is above its end")
    heads = [f"{pattern[: match.start()]}{index:0{len(first)}d}" for index in range(int(first), int(last) + 1)]
    return [head + rest for head in heads for rest in expand_braces(pattern[match.end() :])]


def tar_members(shard: str | Path) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, offset, and size in bytes of each regular file in a tar file, in order.

    Only the headers are read, and none are kept in memory. Several archives in one file, as from `cat a.tar b.tar`, are
    read one after the other. Members of the same name are all yielded.

    Raises:
        AudioError: the shard cannot be opened, is compressed, or is not a tar file; or, raised after the intact
            members, the shard is truncated or damaged, or has links in place of files.
    """
    try:
        with _opened(str(shard)) as file:
            yield from _members(file, shard)
    except AudioError:
        raise
    except OSError as error:
        raise AudioError(shard, error.strerror or str(error)) from None
    except (tarfile.TarError, ValueError) as error:
        raise AudioError(shard, f"not an intact tar file ({error})") from None


class Shard(NamedTuple):
    """A tar file, its size in bytes when it was listed, and what changes along with it if it is remote."""

    path: str
    size: int
    stamp: str = ""

    @classmethod
    def find(cls, path: str) -> "Shard":
        """Look for a shard on disk, or at an address.

        Raises:
            FileNotFoundError: it does not exist.
            OSError: it cannot be reached.
        """
        if is_url(path):
            file = RemoteFile.find(path)
            return cls(path, file.size, file.stamp)
        try:
            status = Path(path).stat()
        except FileNotFoundError:
            hint = "; write a range as {000..099}" if "*" in path else ""
            raise FileNotFoundError(f"{path}: no such shard{hint}") from None
        return cls(path, status.st_size, str(status.st_mtime_ns))

    def read_ahead(self) -> None:
        """If the shard is remote, bring it into the cache as a whole; raises OSError."""
        if is_url(self.path):
            RemoteFile(*self).read_ahead()


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a shard; `str()` gives the path of the shard, a colon, and the name.

    Attributes:
        shard: the tar file.
        name: name in the tar file.
        offset: byte offset of the content.
        size: size of the content in bytes.
    """

    shard: Shard
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard.path}:{self.name}"

    def read(self) -> bytes:
        """Read the content.

        Raises:
            AudioError: the shard no longer exists, or its size has changed.
        """
        try:
            if is_url(self.shard.path):
                return self._read_remote()
            with Path(self.shard.path).open("rb") as file:
                if os.fstat(file.fileno()).st_size != self.shard.size:
                    raise AudioError(str(self), "its shard has changed since it was listed")
                file.seek(self.offset)
                return file.read(self.size)
        except FileNotFoundError:
            raise AudioError(str(self), "no such shard") from None
        except OSError as error:
            raise AudioError(str(self), error.strerror or str(error)) from None

    def _read_remote(self) -> bytes:
        file = RemoteFile(*self.shard) if self.shard.stamp else RemoteFile.find(self.shard.path)
        if file.size != self.shard.size:
            raise AudioError(str(self), "its shard has changed since it was listed")
        return file.read(self.offset, self.size)


def _opened(path: str) -> BinaryIO:
    """Open a shard for reading."""
    if is_url(path):
        return io.BufferedReader(RemoteReader(RemoteFile.find(path)))
    return Path(path).open("rb")


def _members(file: BinaryIO, shard: str | Path) -> Iterator[tuple[bytes, int, int]]:
    start = file.read(8)
    if start.startswith(_COMPRESSED_STARTS):
        raise AudioError(shard, COMPRESSED)
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        raise AudioError(shard, "empty file (0 bytes)")
    links = 0
    archive = 0  # offset of the current archive; a shard may consist of several, one after the other
    while archive < end:
        file.seek(archive)
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                # tarfile keeps every header, which would take gigabytes for millions of members.
                tar.members.clear()  # pyrefly: ignore[missing-attribute]  # public attribute that typeshed lacks
                if member.offset_data + member.size > end:
                    raise AudioError(shard, f"truncated inside {member.name}")
                if member.isreg() and not member.issparse():
                    yield os.fsencode(member.name), member.offset_data, member.size
                links += member.islnk() or member.issym() or member.issparse()
            # tarfile stops at an unreadable header as if it were the end; the true end is a block of zeros.
            archive = _after_zeros(file, tar.offset, end)
            if archive == tar.offset < end:
                raise AudioError(shard, f"damaged at byte {tar.offset}")
    if links:
        raise AudioError(shard, f"{links} links or sparse files left out; a shard must contain the files themselves")


def _after_zeros(file: BinaryIO, start: int, end: int) -> int:
    """Offset of the first block from `start` on that is not all zeros."""
    file.seek(start)
    while start < end:
        content = file.read(_ZEROS_BYTES)
        remaining = len(content.lstrip(b"\0"))
        if remaining:
            return start + (len(content) - remaining) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        start += len(content)
    return end
