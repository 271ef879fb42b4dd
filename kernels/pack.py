"""Packing for the max-mean kernels: keeps valid rows only, sorts captions into tiles by length, tabulates frame tiles.

Everything is computed on the device without synchronizing, so the host knows only upper bounds on the sizes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from atk.kernels.launch import next_power_of_two, packed_width
from atk.kernels.pack_kernels import (
    GATHER_ROWS,
    count_kernel,
    frame_tiles_kernel,
    gather_kernel,
    order_kernel,
    place_kernel,
)
from atk.kernels.sequences import Sequences
from atk.kernels.tiles import SLOT_FIELDS, TEXT_TILE_FIELDS, TILE_FIELDS

_SHORTEST = 8  # tokens of the first length class


class Frames(NamedTuple):
    """Packed frames of N clips: valid rows first within each clip, zero-padded to `packed_width` channels."""

    rows: Tensor  # [T, packed width], dtype of the input
    start: Tensor  # [N] int32: first row of each clip
    length: Tensor  # [N] int32: valid rows of each clip
    source_row: Tensor | None  # [T] int32: row of the caller's tensor, -1 after a clip's valid rows; None: same row


class FrameTiles(NamedTuple):
    """Tiles of up to `size` frames of one clip each. Every clip has at least one tile, even an empty one."""

    table: Tensor  # [bound, TILE_FIELDS] int32; the winner indices of each clip begin at a multiple of 16
    first: Tensor  # [N + 1] int32: first tile of each clip, then the total
    size: int

    @property
    def bound(self) -> int:
        """Upper bound on the number of tiles."""
        return self.table.shape[0]


class LengthClass(NamedTuple):
    """Captions of similar length: at most `tokens` valid tokens each, in tiles of `width` rows.

    If `chunked`, the captions are longer and are split into chunks of `tokens`.
    """

    index: int
    tokens: int
    width: int
    chunked: bool
    bound: int  # upper bound on the number of captions
    tile_bound: int  # upper bound on the number of tiles

    @property
    def captions(self) -> int:
        """Captions per tile."""
        return self.width // self.tokens


class Captions(NamedTuple):
    """Packed valid tokens of N captions, in tiles of `width` rows, sorted by length class into slots."""

    rows: Tensor  # [R, packed width], dtype of the input: each caption, its first token repeated as padding, or zeros
    source_row: Tensor  # [R] int32: row of the caller's tensor; -2 - row if repeated as padding; -1 for zeros
    slots: Tensor  # [SLOT_FIELDS, N] int32
    bounds: Tensor  # [classes + 1] int32: first slot of each class, then N
    tiles: Tensor  # [R / width, TEXT_TILE_FIELDS] int32
    classes: list[LengthClass]


@dataclass(frozen=True)
class SlotGroup:
    """Slots `offset` to `offset + size` of a length class.

    If `local_index`, row 0 of the winner indices belongs to the first slot of the group, otherwise to slot 0.
    """

    length_class: LengthClass
    offset: int
    size: int
    local_index: bool

    @property
    def caption_tiles(self) -> int:
        """Upper bound on the number of tiles when a chunked caption counts as one tile."""
        return triton.cdiv(min(self.size, self.length_class.bound), self.length_class.captions)

    @property
    def text_tiles(self) -> int:
        """Upper bound on the number of tiles of packed text, every chunk of a caption included."""
        return self.length_class.tile_bound if self.length_class.chunked else self.caption_tiles

    @property
    def range_arguments(self) -> tuple[int, int, int]:
        """`class_index`, `offset` and `size`, the kernel arguments that select the slots."""
        return self.length_class.index, self.offset, self.size


def pack_frames(audio: Sequences) -> Frames:
    """Packs the frames of `audio`. Copies them only if there is a mask or the rows need padding channels."""
    start = audio.cu_seqlens[:-1]
    length = _lengths(audio)
    if audio.mask is None:
        missing = packed_width(audio.rows.shape[1]) - audio.rows.shape[1]
        return Frames(F.pad(audio.rows, (0, missing)) if missing else audio.rows, start, length, None)
    source_row = torch.full((len(audio.rows),), -1, dtype=torch.int32, device=audio.rows.device)
    N = audio.num_sequences
    place_kernel[(N,)](as_bytes(audio.mask), audio.cu_seqlens, None, source_row, None, N, W=1)
    return Frames(_gather(audio.rows, source_row), start, length, source_row)


def frame_tiles(frames: Frames, size: int) -> FrameTiles:
    """The table of tiles of up to `size` frames."""
    clips = len(frames.start)
    counts = (frames.length + (size - 1)).div(size, rounding_mode="floor").clamp(min=1)
    first = F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    columns = ((frames.length + 15) // 16).cumsum(0, dtype=torch.int32)
    table = first.new_empty(len(frames.rows) // size + clips, TILE_FIELDS.value)
    frame_tiles_kernel[(clips,)](frames.start, frames.length, first, columns, table, SIZE=size)
    return FrameTiles(table, first, size)


def length_classes(text: Sequences, width: int, pairs: bool) -> list[LengthClass]:
    """The length classes that can occur in `text`, for tiles of `width` rows.

    There is a single class for `pairs`, and when all captions are known to have the same length.
    """
    N = text.num_sequences
    total = len(text.rows)
    longest = max(1, min(text.longest, total))
    widest = min(width, max(_SHORTEST, next_power_of_two(longest)))
    same_length = text.mask is None and total == N * text.longest
    limits = [width] if pairs else [widest]
    while not (pairs or same_length) and limits[0] > _SHORTEST:
        limits.insert(0, limits[0] // 2)
    chunked = longest > width
    if chunked and len(limits) > 1:
        limits.append(width)
    classes = []
    for k, tokens in enumerate(limits):
        last = chunked and k == len(limits) - 1
        lower = limits[k - 1] if k else 0  # every caption in the class is longer
        bound = min(N, total // (lower + 1)) if k else N
        tiles = total // width + bound if last else -(-bound * tokens // width)
        classes.append(LengthClass(k, tokens, width, last, bound, tiles))
    return classes


def pack_captions(text: Sequences, width: int, pairs: bool) -> Captions:
    """Packs the captions of `text` into tiles of `width` rows. For `pairs`, slot i holds caption i.

    Raises:
        ValueError: the packed rows could exceed 2^31 - 1.
    """
    classes = length_classes(text, width, pairs)
    N = text.num_sequences
    # A caption takes at most twice its rows, or the tokens of the first class. Each class can end in a partial tile.
    bound = -(-(2 * len(text.rows) + classes[0].tokens * N) // width) * width + len(classes) * width
    if bound >= 2**31:
        raise ValueError(f"text has too many tokens for the triton backend: {bound} packed rows, at most {2**31 - 1}")
    length = _lengths(text)
    slots = length.new_empty(SLOT_FIELDS.value, N)
    bounds = length.new_empty(len(classes) + 1)
    order_kernel[(1,)](length, slots, bounds, N, classes[0].tokens, len(classes), W=width)
    source_row = torch.full((bound,), -1, dtype=torch.int32, device=text.rows.device)
    tiles = length.new_empty(bound // width, TEXT_TILE_FIELDS.value)
    mask = None if text.mask is None else as_bytes(text.mask)
    place_kernel[(N,)](mask, text.cu_seqlens, slots, source_row, tiles, N, W=width)
    return Captions(_gather(text.rows, source_row), source_row, slots, bounds, tiles, classes)


def as_bytes(mask: Tensor) -> Tensor:
    """A uint8 view of a bool mask, so that kernels load it as integers."""
    return mask.view(torch.uint8)


def gather_block(D: int) -> int:
    """Channels that `gather_kernel` copies at a time."""
    return min(128, next_power_of_two(D))


def _lengths(sequences: Sequences) -> Tensor:
    """Valid rows of each sequence, [N] int32."""
    if sequences.mask is None:
        return sequences.cu_seqlens.diff()
    length = torch.empty_like(sequences.cu_seqlens[1:])
    count_kernel[(sequences.num_sequences,)](as_bytes(sequences.mask), sequences.cu_seqlens, length)
    return length


def _gather(source: Tensor, source_row: Tensor) -> Tensor:
    """Copies `source` [T, D] to packed rows [R, packed width], given `source_row` [R] int32."""
    R = len(source_row)
    D = source.shape[1]
    out = source.new_empty(R, packed_width(D))
    gather_kernel[(triton.cdiv(R, GATHER_ROWS),)](source, source_row, out, R, D, out.shape[1], BLOCK_D=gather_block(D))
    return out
