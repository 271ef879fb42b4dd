"""An index on disk: a list of its parts that is replaced in one step, and the only writer that may change it."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atk.data.shards import expand_braces
from atk.eval.embed import EmbeddingModel
from atk.eval.index_parts import IndexDtype, Part, Row, write_part
from atk.eval.scores import Score
from atk.eval.sources import INDEX_LIST, is_index
from atk.ops.user_cache import replace_file

_FORMAT = 1
_PART_FRAMES = 1 << 18
_FLUSH_SECONDS = 60.0  # of encoding that are lost at most

Known = dict[bytes, tuple[str, int, int, int]]  # (part, row, size, mtime) of recordings, by name


def fingerprint(model: EmbeddingModel | nn.Module) -> str:
    """A hash of the weights and buffers of a model, by name: the same wherever it was loaded from, in float32."""
    assert isinstance(model, nn.Module)
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        if value.numel():
            digest.update(memoryview(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


@dataclass
class Header:
    """What an index is made from and how.

    Attributes:
        source, tokenizer: where its model is loaded from, as in `atk.load`.
        fingerprint: identifies the model's weights.
        folder: what was indexed.
        dtype: type of the frames.
        clip_seconds, context_seconds: windows, as in `atk.eval.long_audio.FrameStream`.
        frame_seconds: duration of a frame.
        score: similarity that ranks unless another one is asked for.
    """

    source: str
    tokenizer: str | None
    fingerprint: str
    folder: str
    dtype: IndexDtype
    clip_seconds: float
    context_seconds: float | None
    frame_seconds: float
    score: Score

    def relative(self, path: str) -> str:
        """A path without that of the indexed folder, which may be moved; other paths and names stay."""
        return path.removeprefix(self.folder + os.sep) if self._is_local else path

    def whole(self, name: str) -> str:
        """The path that `relative` shortened."""
        return os.path.join(self.folder, name) if self._is_local else name  # noqa: PTH118 (names need not be paths)

    @property
    def _is_local(self) -> bool:
        return self.folder.startswith(os.sep)

    def check(self, new: "Header", out: Path) -> None:
        """Check that `new` can continue this index.

        Raises:
            ValueError: the model, the windows, or the type differ, or the indexed folder is another one.
        """
        if new.fingerprint != self.fingerprint:
            raise ValueError(
                f"out: {out} was made by another model, or by {self.source} before its weights changed; choose another "
                "name, or remove it"
            )
        for name in ("dtype", "clip_seconds", "context_seconds"):
            if getattr(new, name) != getattr(self, name):
                before, now = getattr(self, name), getattr(new, name)
                raise ValueError(f"{name}: {out} was made with {before}, got {now}; choose another out, or remove it")
        if new.folder != self.folder and any(Path(place).exists() for place in expand_braces(self.folder)):
            raise ValueError(f"out: {out} is the index of {self.folder}, not of {new.folder}; choose another name")


@dataclass
class Manifest:
    """The header of an index and its parts: (file name, rows that no longer count) of each."""

    header: Header
    parts: list[tuple[str, list[int]]] = field(default_factory=list)
    next: int = 0

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the list of an index.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version.
        """
        path = folder / INDEX_LIST
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: no such index; atk index makes one")
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = values["format"]
            if version == _FORMAT:
                parts = [(str(name), list(dropped)) for name, dropped in values["parts"]]
                return cls(Header(**values["header"]), parts, values["next"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the list of an index, or damaged ({error})") from None
        raise ValueError(f"{path}: format {version}, which this version cannot read; build the index again")

    def write(self, folder: Path) -> None:
        """Replace the list of an index.

        Raises:
            OSError: it cannot be written.
        """
        values = {"format": _FORMAT, "header": asdict(self.header), "parts": self.parts, "next": self.next}
        replace_file(folder / INDEX_LIST, (json.dumps(values, indent=1) + "\n").encode())

    def open(self, folder: Path) -> list[Part]:
        """Open all parts.

        Raises:
            FileNotFoundError: a part is missing.
            ValueError: a part is damaged.
        """
        return [Part(folder / name, dropped) for name, dropped in self.parts]


class Writer:
    """Changes an index; whatever is interrupted, its list names complete parts alone.

    Args:
        folder: where the index is.
        manifest: its list, or that of a new index.

    Attributes:
        rows: (part, row, size, mtime) of each recording that counts, by its name.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self.rows: Known = {}
        self._pending: list[Row] = []
        self._frames = 0
        self._last_flush = time.monotonic()
        for (name, _), part in zip(manifest.parts, manifest.open(folder), strict=True):
            self.rows |= {key: (name, row, size, mtime) for row, key, size, mtime in part.stamps()}
        self._remove_unlisted()

    def add(self, row: Row) -> None:
        """Add a recording, or replace it."""
        self._pending.append(row)
        self._frames += len(row.frames)
        if self._frames >= _PART_FRAMES or time.monotonic() - self._last_flush > _FLUSH_SECONDS:
            self.flush()

    def drop(self, names: Iterable[bytes]) -> None:
        """Drop recordings."""
        self._forget(names)
        self.manifest.write(self.folder)

    def flush(self) -> None:
        """Write what was added; it is part of the index from then on."""
        if self._pending:
            name, known = self._write(self._pending)
            self._forget(known)
            self.manifest.parts.append((name, []))
            self.rows |= known
            self._pending, self._frames = [], 0
        self.manifest.write(self.folder)
        self._last_flush = time.monotonic()

    def compact(self) -> None:
        """Merge the parts of which less than half is in use, so that there are few of them and little is wasted."""
        parts = self.manifest.open(self.folder)
        listed = [name for name, _ in self.manifest.parts]
        small = [
            (name, part)
            for name, part in zip(listed, parts, strict=True)
            if part.live_frames() < max(_PART_FRAMES, int(part.offsets[-1])) / 2
        ]
        wasted = any(not part.live.all() for _, part in small)
        if len(small) < 2 and not wasted:
            return
        merged = [self._write(rows) for rows in _grouped(part for _, part in small)]
        old = {name for name, _ in small}
        others = [entry for entry in self.manifest.parts if entry[0] not in old]
        self.manifest.parts = others + [(name, []) for name, _ in merged]  # in one step, for `flush` after an interrupt
        for _, known in merged:
            self.rows |= known
        self.manifest.write(self.folder)
        self._remove_unlisted()

    def _write(self, rows: list[Row]) -> tuple[str, Known]:
        """Write a part that is not listed yet; returns its name and its recordings."""
        name = f"{self.manifest.next:06d}.arrow"
        self.manifest.next += 1
        write_part(self.folder / name, rows, self.manifest.header.dtype)
        return name, {row.name: (name, place, row.size, row.mtime) for place, row in enumerate(rows)}

    def _forget(self, names: Iterable[bytes]) -> None:
        dropped = dict(self.manifest.parts)
        for name in names:
            if (known := self.rows.pop(name, None)) is not None:
                dropped[known[0]].append(known[1])

    def _remove_unlisted(self) -> None:
        listed = {name for name, _ in self.manifest.parts}
        for path in [*self.folder.glob("*.arrow"), *self.folder.glob(".part-*"), *self.folder.glob(".atk-*")]:
            if path.name not in listed:
                path.unlink(missing_ok=True)


def _grouped(parts: Iterable[Part]) -> Iterator[list[Row]]:
    """The rows of parts that count, as many at a time as make a part."""
    group: list[Row] = []
    frames = 0
    for part in parts:
        for place in part.live.nonzero()[:, 0].tolist():
            group.append(part.row(place))
            frames += len(group[-1].frames)
            if frames >= _PART_FRAMES:
                yield group
                group, frames = [], 0
    if group:
        yield group


@contextmanager
def writing(folder: str | Path, header: Header) -> Generator[Writer, None, None]:
    """A context that changes an index, or makes one; what was added is kept if an error ends it.

    Raises:
        ValueError: the folder is not empty and no index, is being written by another process, or is the index of
            another model or folder.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not is_index(folder) and (not folder.is_dir() or any(folder.glob("[!.]*"))):
        raise ValueError(f"out: {folder} exists and is not an index; choose another name or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"out: {folder} is being written by another process") from None
        manifest = Manifest(header)
        if is_index(folder):
            manifest = Manifest.read(folder)
            if manifest.parts:
                manifest.header.check(header, folder)
            manifest.header = header
        writer = Writer(folder, manifest)
        try:
            yield writer
        finally:
            writer.flush()
