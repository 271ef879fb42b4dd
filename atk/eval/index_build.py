"""Build and update an index: the frames of all recordings of a folder, encoded once."""

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from atk.data import AudioError, Clip
from atk.data.captions import OnError
from atk.data.remote import is_url
from atk.data.sets import read_all
from atk.data.shards import Member, expand_braces
from atk.eval.embed import EmbeddingModel
from atk.eval.index_parts import DTYPES, IndexDtype, Row
from atk.eval.index_store import Header, Writer, fingerprint, writing
from atk.eval.long_audio import FrameStream
from atk.eval.scores import Score
from atk.models.saved import run_settings
from atk.ops.checks import one_of


class IndexChanges(NamedTuple):
    """Number of recordings that were `added`, `changed`, `dropped`, and `kept`; `skipped`: (file name, reason)."""

    added: int
    changed: int
    dropped: int
    kept: int
    skipped: list[tuple[str, str]]


def build_index(
    model: EmbeddingModel,
    folder: str | Path,
    out: str | Path,
    *,
    source: str | Path,
    tokenizer: str | None = None,
    dtype: IndexDtype = "int8",
    clip_seconds: float = 9.91,
    context_seconds: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
    on_error: OnError = "skip",
    progress: str | None = None,
) -> IndexChanges:
    """Build an index of all audio of a folder, or bring it up to date: only new and changed recordings are encoded.

    Recordings are changed if their size or modification time is, or in tables their content. Those that are gone, or
    can no longer be read, are dropped. At most a minute of work is lost if the process is killed; the next call
    continues.

    Args:
        model: embeds the recordings; an `nn.Module` in float32.
        folder: folder of audio files, or any other data set that `atk.data.sets.read_all` takes.
        out: folder of the index, which must be new, empty, or an index of the same model and folder.
        source, tokenizer: where the model was loaded from, and will be when the index is searched.
        dtype: "int8" or "float16", how frames are stored.
        clip_seconds, context_seconds: windows, as in `atk.eval.long_audio.FrameStream`.
        batch_size, workers, on_error, progress: as in `atk.eval.search.search_all`.

    Raises:
        FileNotFoundError: `folder` does not exist.
        ValueError: an argument is out of range, `out` is something else, or no file can be read.
        AudioError: a file cannot be read and `on_error="raise"`.
        OSError: the index cannot be written.
    """
    one_of("dtype", dtype, DTYPES)
    header = Header(
        _absolute(source),
        None if tokenizer is None else _absolute(tokenizer),
        fingerprint(model),
        _absolute(folder),
        dtype,
        clip_seconds,
        context_seconds,
        model.frame_seconds,
        default_score(source),
    )
    files = read_all(header.folder, on_error)
    with writing(out, header) as writer:
        skipped = list(files.skipped)
        named = _stamped(files.clips, header, skipped, on_error)
        gone = [name for name in writer.rows if name not in named]
        writer.drop(gone)
        known = {name: row[2:] for name, row in writer.rows.items()}
        new = {name: entry for name, entry in named.items() if known.get(name) != entry[1:]}
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "on_error": on_error}
        if new:
            clips = [clip for clip, *_ in new.values()]
            stream = FrameStream(model, clips, clip_seconds, context_seconds, **options)
            _encode(stream, writer, new, progress)
            skipped += stream.skipped
            bad = {name for name, _ in stream.skipped}
            unreadable = [name for name, (clip, *_) in new.items() if clip.file_name in bad]
            writer.drop(unreadable)  # what an earlier version of such a file left
        writer.flush()
        writer.compact()
        if not writer.rows:
            raise ValueError(f"{folder}: none of its {len(skipped)} audio files can be decoded")
        added = sum(name in writer.rows for name in new if name not in known)
        changed = sum(name in writer.rows for name in new if name in known)
        lost = sum(name not in writer.rows for name in known)
        return IndexChanges(added, changed, len(gone) + lost, len(writer.rows) - added - changed, skipped)


def _encode(stream: FrameStream, writer: Writer, new: dict[bytes, tuple[Clip, int, int]], progress: str | None) -> None:
    for clip, frames, pooled in stream.embedded(lambda part: part.half(), progress):
        name = _name(clip, writer.manifest.header)
        _, size, mtime = new[name]
        row = Row(name, isinstance(clip.path, Path), size, mtime, clip.seconds, pooled, frames.times, frames.frames)
        writer.add(row)


def default_score(source: str | Path) -> Score:
    """What to rank by: frames and tokens, if the model was trained to compare them, else global vectors."""
    loss = run_settings(source).get("loss")
    return "max_mean" if isinstance(loss, dict) and loss.get("aligned_weight") else "global"


def _stamped(
    clips: Sequence[Clip], header: Header, skipped: list[tuple[str, str]], on_error: OnError
) -> dict[bytes, tuple[Clip, int, int]]:
    """Clips by their names in the index, with sizes and modification times."""
    stamped = {}
    for clip in clips:
        name = _name(clip, header)
        try:
            if name in stamped:
                raise AudioError(clip.file_name, "another clip has this name, too")
            stamped[name] = (clip, *_stamp(clip))
        except AudioError as error:
            if on_error == "raise":
                raise
            skipped.append((clip.file_name, error.reason))
        except OSError as error:  # gone since it was listed
            skipped.append((clip.file_name, error.strerror or str(error)))
    return stamped


def _absolute(name: str | Path) -> str:
    exists = str(name) and any(Path(place).exists() for place in expand_braces(str(name)))
    return os.path.abspath(name) if exists else str(name)  # noqa: PTH100 (resolve() would follow links)


def _name(clip: Clip, header: Header) -> bytes:
    """The name of a clip in the index, which stays the same if the folder is moved."""
    path = os.path.abspath(clip.path) if isinstance(clip.path, Path) else str(clip.path)  # noqa: PTH100 (keeps links)
    return os.fsencode(header.relative(path))


def _stamp(clip: Clip) -> tuple[int, int]:
    """Size in bytes and modification time in ns, or a hash of what changes along with the content."""
    if isinstance(clip.path, Path):
        status = clip.path.stat()
        return status.st_size, status.st_mtime_ns
    if isinstance(clip.path, Member) and not is_url(clip.path.shard.path):
        return clip.path.size, Path(clip.path.shard.path).stat().st_mtime_ns
    if isinstance(clip.path, Member):
        return clip.path.size, _hash(clip.path.shard.stamp.encode())
    content = clip.path.read()
    return len(content), _hash(content)


def _hash(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big") >> 1  # a signed integer holds it
