"""Parts of an index: Arrow files with the frames, times, and global vectors of some recordings, mapped into memory."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from atk.extras import optional_imports
from atk.ops.max_mean import max_mean_similarity_varlen

with optional_imports:
    import pyarrow as pa

IndexDtype = Literal["int8", "float16"]
DTYPES = get_args(IndexDtype)
_LEVELS = 127
_SMALLEST = 2.0**-24
_CHUNK_VALUES = 1 << 22  # of frames that are scored at a time
_SCALES = b"atk_scales"  # in the schema: float32 [D], little-endian


class Row(NamedTuple):
    """A recording in an index.

    Attributes:
        name: its path, or the name of what lies inside a larger file, relative to the indexed folder if it lies there;
            bytes, as names need not be UTF-8.
        is_file: whether it is a file of its own in the folder.
        size: its size in bytes.
        mtime: its modification time in ns; that of its shard, if it lies in one; a hash, if it is remote or in a table.
        seconds: its length.
        pooled: global vector `[D]`, float32.
        times: centers of the frames `[T]` in seconds, float64.
        frames: `[T, D]` of unit length, float16.
    """

    name: bytes
    is_file: bool
    size: int
    mtime: int
    seconds: float
    pooled: Tensor
    times: Tensor
    frames: Tensor


class Queries(NamedTuple):
    """Tokens `[T_t, D]` of Q queries, float32, and where each begins and ends, `cu [Q + 1]`, int32."""

    tokens: Tensor
    cu: Tensor


def write_part(path: Path, rows: Sequence[Row], dtype: IndexDtype) -> None:
    """Write a part, in one step for its readers.

    int8 frames are multiples of a power of two for each channel, so that merging parts rounds again only where the
    power grows, however often they are merged.

    Raises:
        OSError: the file cannot be written.
    """
    dim = rows[0].frames.shape[1]
    metadata = {}
    frames = [row.frames for row in rows]
    if dtype == "int8":
        scales = _scales(frames)
        metadata[_SCALES] = scales.numpy().tobytes()
        frames = [(part.float() / scales).round().clamp(-_LEVELS, _LEVELS).to(torch.int8) for part in frames]
    ends = np.cumsum([0, *(len(row.frames) for row in rows)]).astype(np.int32)
    columns = {
        "name": pa.array([row.name for row in rows], pa.binary()),
        "is_file": pa.array([row.is_file for row in rows], pa.bool_()),
        "size": pa.array([row.size for row in rows], pa.int64()),
        "mtime": pa.array([row.mtime for row in rows], pa.int64()),
        "seconds": pa.array([row.seconds for row in rows], pa.float64()),
        "pooled": _vectors(torch.stack([row.pooled for row in rows]).float(), dim),
        "times": pa.ListArray.from_arrays(ends, torch.cat([row.times for row in rows]).double().numpy()),
        "frames": pa.ListArray.from_arrays(ends, _vectors(torch.cat(frames), dim)),
    }
    batch = pa.record_batch(columns)
    batch = batch.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=".part-", delete=False) as file:
        temporary = Path(file.name)
        try:
            with pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _vectors(rows: Tensor, dim: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1).numpy()), dim)


def _scales(frames: Sequence[Tensor]) -> Tensor:
    """The smallest power of two for each channel `[D]` with which all values fit into 7 bits."""
    zero = torch.zeros(frames[0].shape[1])  # what parts without any frame leave
    largest = torch.stack([zero, *(part.abs().amax(0).float() for part in frames if len(part))]).amax(0)
    return torch.exp2(torch.ceil(torch.log2((largest / _LEVELS).clamp(min=_SMALLEST))))


class Part:
    """A part that is open: nothing is read before it is used.

    Args:
        path: Arrow file.
        dropped: rows that no longer count.

    Attributes:
        offsets: first frame of each row, and the end, int64 `[rows + 1]`.
        pooled: global vectors `[rows, D]`, float32.
        frames: `[T, D]`, int8 or float16.
        times: `[T]`, float64, in seconds.
        scales: what int8 frames are multiplied by, float32 `[D]`; None for float16.
        live: which rows count, bool `[rows]`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """

    def __init__(self, path: Path, dropped: Sequence[int] = ()):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such part of an index")
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
            self.batch = batch
            frames = batch.column("frames")
            dim = frames.values.type.list_size
            self.offsets = torch.from_dlpack(frames.offsets).long()
            self.frames = torch.from_dlpack(frames.values.values).view(-1, dim)
            self.times = torch.from_dlpack(batch.column("times").values)
            self.pooled = torch.from_dlpack(batch.column("pooled").values).view(-1, dim)
        except (pa.ArrowException, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{path}: not a part of an index, or damaged ({error}); remove the index") from None
        scales = (batch.schema.metadata or {}).get(_SCALES)
        self.scales = None if scales is None else torch.from_numpy(np.frombuffer(scales, "<f4").copy())
        self.live = torch.ones(batch.num_rows, dtype=torch.bool)
        self.live[list(dropped)] = False

    def __len__(self) -> int:
        return self.batch.num_rows

    def name(self, row: int) -> bytes:
        """The name of a row."""
        return self.batch.column("name")[row].as_py()

    def is_file(self, row: int) -> bool:
        """Whether a row is a file of its own."""
        return self.batch.column("is_file")[row].as_py()

    def stamps(self) -> Iterator[tuple[int, bytes, int, int]]:
        """(row, name, size, mtime) of each row that counts."""
        columns = [self.batch.column(name).to_pylist() for name in ("name", "size", "mtime")]
        for row, (name, size, mtime) in enumerate(zip(*columns, strict=True)):
            if self.live[row]:
                yield row, name, size, mtime

    def live_frames(self) -> int:
        """Number of frames in the rows that count."""
        return int(self.offsets.diff()[self.live].sum())

    def decoded(self, first: int, end: int) -> Tensor:
        """Frames `[end - first, D]`, float32."""
        frames = self.frames[first:end].float()
        return frames if self.scales is None else frames * self.scales

    def row(self, row: int) -> Row:
        """A row, as it was given to `write_part`, except for the rounding to int8."""
        first, end = self.offsets[row : row + 2].tolist()
        size, mtime, seconds = (self.batch.column(name)[row].as_py() for name in ("size", "mtime", "seconds"))
        frames = self.decoded(first, end).half()
        times = self.times[first:end]
        return Row(self.name(row), self.is_file(row), size, mtime, seconds, self.pooled[row], times, frames)

    def scores(self, queries: Queries, rows: Tensor | None = None) -> Tensor:
        """Max-mean similarity (3.6) of rows and queries, `[R, Q]`, float32; memory does not depend on their lengths.

        Args:
            queries: their tokens.
            rows: R rows, in ascending order; None = all, whether they count or not.
        """
        rows = torch.arange(len(self)) if rows is None else rows
        starts, lengths = self.offsets[rows], self.offsets.diff()[rows]
        ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        # Integers up to 127 are exact in bfloat16, whose products are the fastest.
        dtype = torch.float16 if self.scales is None else torch.bfloat16
        tokens = (queries.tokens if self.scales is None else queries.tokens * self.scales).to(dtype)
        result = torch.zeros(len(rows), len(queries.cu) - 1)
        chunk = max(1, _CHUNK_VALUES // self.frames.shape[1])
        buffer = torch.empty(min(chunk, int(ends[-1])), self.frames.shape[1], dtype=dtype)
        for first in range(0, int(ends[-1]), chunk):
            end = min(first + chunk, int(ends[-1]))
            low = int(torch.searchsorted(ends, first, right=True)) - 1
            high = int(torch.searchsorted(ends, end))
            cu = (ends[low : high + 1].clamp(first, end) - first).int()
            frames = self._gathered(starts[low:high] - ends[low:high], cu, first, buffer)
            scores = max_mean_similarity_varlen(frames, tokens, cu, queries.cu)
            result[low:high] += scores * (cu.diff() / lengths[low:high].clamp(min=1))[:, None]
        return result

    def _gathered(self, shifts: Tensor, cu: Tensor, first: int, buffer: Tensor) -> Tensor:
        """The frames `first + cu[0]` to `first + cu[-1]` of chosen rows, in the type that they are scored in.

        Row i of them lies `shifts[i]` frames further on in this part; rows that follow each other have the same shift.
        """
        values, counts = torch.unique_consecutive(shifts, return_counts=True)
        bounds = cu[torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])].tolist()
        pieces = zip(bounds, bounds[1:], values.tolist(), strict=False)
        if len(values) == 1 and self.frames.dtype == buffer.dtype:
            return self.frames[first + bounds[0] + int(values[0]) : first + bounds[1] + int(values[0])]
        for low, high, shift in pieces:
            buffer[low:high] = self.frames[first + low + shift : first + high + shift]
        return buffer[: bounds[-1]]
