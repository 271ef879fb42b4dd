"""Tar shards in WebDataset layout: where in the file each member lies, so that one is read without the others."""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from atk.data.audio import AudioError

SHARD_SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
COMPRESSED = "a compressed tar has no random access; decompress it to a plain .tar"

_COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_braces(pattern: str) -> list[str]:
    """`a-{008..010}.tar` as a-008.tar, a-009.tar, a-010.tar; several ranges multiply, other text stays."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found[1], found[2]
    if int(first) > int(last):
        raise ValueError(f"{pattern}: the range {found[0]} is empty, it starts above its end")
    heads = [f"{pattern[: found.start()]}{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [head + rest for head in heads for rest in expand_braces(pattern[found.end() :])]


def tar_members(shard: str | Path) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and size in bytes of the content of each regular file in a tar, in its order.

    Nothing but the headers is read, and nothing is kept.

    Raises:
        AudioError: `shard` cannot be opened, is compressed or no tar; or, after its whole members, is cut or damaged.
    """
    try:
        with open(shard, "rb") as file:
            yield from _members(file, shard)
    except AudioError:
        raise
    except OSError as error:
        raise AudioError(shard, error.strerror or str(error)) from None
    except (tarfile.TarError, ValueError) as error:
        raise AudioError(shard, f"not a whole tar file ({error})") from None


def read_member(shard: str, shard_size: int, offset: int, size: int, name: str) -> bytes:
    """The bytes of one member.

    Args:
        shard: path of the tar.
        shard_size: its size in bytes when it was indexed.
        offset, size: of the member's content, in bytes.
        name: of the member in errors.

    Raises:
        AudioError: the shard is gone or has another size than it had.
    """
    try:
        with open(shard, "rb") as file:
            if os.fstat(file.fileno()).st_size != shard_size:
                raise AudioError(name, "its shard has changed since it was listed")
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        raise AudioError(name, "no such shard") from None
    except OSError as error:
        raise AudioError(name, error.strerror or str(error)) from None


def _members(file: BinaryIO, shard: str | Path) -> Iterator[tuple[bytes, int, int]]:
    start = file.read(8)
    if start.startswith(_COMPRESSED_STARTS):
        raise AudioError(shard, COMPRESSED)
    file.seek(0)
    end = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # tarfile keeps every header: gigabytes for millions
            if member.offset_data + member.size > end:
                raise AudioError(shard, f"truncated inside {member.name}")
            if member.isreg() and not member.issparse():
                yield os.fsencode(member.name), member.offset_data, member.size
        # A header that it cannot read ends tarfile's list as the end mark does, a block of zeros.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise AudioError(shard, f"damaged at byte {tar.offset}")
