"""Find audio files with the same content, on disk, in tar shards, and in tables, reading as little as possible."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import BinaryIO

from atk.data.audio import AudioError
from atk.data.captions import Clip
from atk.data.headers import map_files
from atk.data.progress import progress_bar

_EDGE_BYTES = 1 << 16  # at both ends of a file, which tell most files of the same size apart


def base_name(clip: Clip) -> str:
    """The name of a clip's audio file without its folder; "" if it has none, as in a table."""
    return clip.path.name.replace("\\", "/").rpartition("/")[2]


def size_of(clip: Clip) -> int | None:
    """The size of a clip's audio file in bytes; None if it cannot be read."""
    audio = clip.path
    try:
        return audio.stat().st_size if isinstance(audio, Path) else audio.size
    except OSError:
        return None


def content_keys(clips: Sequence[Clip], keys: Sequence[Hashable], progress: str | None = None) -> list[Hashable]:
    """A key for each clip, the same for equal contents only; None for unreadable files and those without an equal.

    Args:
        clips: the clips.
        keys: what equal clips certainly have in common, such as the size; None excludes a clip.
        progress: label of a progress bar; None = no bar.
    """
    keys = list(keys)
    for read in (_edges, _whole):
        repeated = {key for key, count in Counter(keys).items() if key is not None and count > 1}
        chosen = [index for index, key in enumerate(keys) if key in repeated]
        digests = map_files(read, [clips[index] for index in chosen])
        kept = dict(zip(chosen, progress_bar(digests, progress, len(chosen)), strict=True))
        keys = [(key, kept[index]) if kept.get(index) else None for index, key in enumerate(keys)]
    return keys


def _opened(clip: Clip) -> BinaryIO:
    audio = clip.path
    return audio.open("rb") if isinstance(audio, Path) else io.BytesIO(audio.read())


def _edges(clip: Clip) -> bytes | None:
    """Digest of both ends of a file; None if it cannot be read."""
    try:
        with _opened(clip) as file:
            digest = hashlib.blake2b(file.read(_EDGE_BYTES), digest_size=16)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _EDGE_BYTES))
            digest.update(file.read(_EDGE_BYTES))
    except (OSError, AudioError):
        return None
    return digest.digest()


def _whole(clip: Clip) -> bytes | None:
    """Digest of a file; None if it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with _opened(clip) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, AudioError):
        return None
    return digest.digest()
