"""Packing for the max-mean kernels: keeps valid rows only, sorts captions into tiles by length, tabulates frame tiles.

Everything is computed on the device without synchronizing, so the host knows only upper bounds on the sizes.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from atk.kernels.launch import Device, cdiv, next_power_of_two
from atk.kernels.pack_kernels import GATHER_ROWS, PLAN_BLOCK, count_kernel, gather_kernel, place_kernel, plan_kernel
from atk.kernels.sequences import Packed, Sequences, frame_sizes, packed_rows, table_sections, tile_width
from atk.kernels.tiles import COLUMN_MULTIPLE, LAST_OF_CLIP, TILE_FIELDS

_SHORTEST = 8  # tokens of the first length class


class Frames(NamedTuple):
    """Packed frames of N_a clips: valid rows first within each clip, zero-padded to `packed_width` channels."""

    rows: Tensor  # [T_a, packed width], dtype of the input
    length: Tensor  # [N_a] int32: valid rows of each clip
    source_row: Tensor | None  # [T_a] int32: row of the caller's tensor, -1 after a clip's valid rows; None: same row
    count: int  # N_a


class FrameTiles(NamedTuple):
    """Tiles of up to `size` frames of one clip each. Every clip has at least one tile, even an empty one."""

    table: Tensor  # [bound, TILE_FIELDS] int32; the winner indices of each clip begin at a multiple of 16
    first: Tensor  # [N_a + 1] int32: first tile of each clip, then the total
    bound: int  # upper bound on the number of tiles


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
    """Packed valid tokens of N_t captions, in tiles of `width` rows, sorted by length class into slots."""

    rows: Tensor  # [R, packed width], dtype of the input: each caption, its first token repeated as padding, or zeros
    source_row: Tensor  # [R] int32: row of the caller's tensor; -2 - row if repeated as padding; -1 for zeros
    slots: Tensor  # [SLOT_FIELDS, N_t] int32
    bounds: Tensor  # [classes + 1] int32: first slot of each class, then N_t
    tiles: Tensor  # [R / width, TEXT_TILE_FIELDS] int32
    positions: Tensor  # int32: 0, 1, 2, ... for the tokens of the longest caption, in whole tiles
    classes: tuple[LengthClass, ...]
    count: int  # N_t


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
        return cdiv(min(self.size, self.length_class.bound), self.length_class.captions)

    @property
    def text_tiles(self) -> int:
        """Upper bound on the number of tiles of packed text, every chunk of a caption included."""
        return self.length_class.tile_bound if self.length_class.chunked else self.caption_tiles

    @property
    def range_arguments(self) -> tuple[int, int, int]:
        """`class_index`, `offset` and `size`, the kernel arguments that select the slots."""
        return self.length_class.index, self.offset, self.size


@lru_cache(maxsize=1024)
def length_classes(
    N: int, total: int, longest: int, has_mask: bool, width: int, pairs: bool
) -> tuple[LengthClass, ...]:
    """The length classes that N captions of `total` tokens, padding included, can have, for tiles of `width` rows.

    There is a single class for `pairs`, and when all captions are known to have the same length.
    """
    same_length = not has_mask and total == N * longest
    longest = max(1, min(longest, total))
    widest = min(width, max(_SHORTEST, next_power_of_two(longest)))
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
    return tuple(classes)


def pack(
    audio: Sequences, text: Sequences, pairs: bool, packed: Packed, fill: bool
) -> tuple[Frames, Captions, dict[int, FrameTiles]]:
    """Packs the frames and captions of a problem into `packed`, or only describes what it holds.

    Args:
        audio: N_a clips, rows [T_a, D].
        text: N_t captions, rows [T_t, D] of the same dtype.
        pairs: whether clip i is compared with caption i only; then slot i holds caption i.
        packed: buffers of `sequences.empty_packed`.
        fill: whether to write the buffers; otherwise they were written for the same inputs.

    Returns:
        The packed frames and captions, and the tables of frame tiles by size.

    Raises:
        ValueError: the packed rows could exceed 2^31 - 1.
    """
    width = tile_width(text.rows.dtype)
    N_a, T_a = audio.num_sequences, audio.rows.shape[0]
    N_t, T_t = text.num_sequences, text.rows.shape[0]
    R = packed_rows(T_t, N_t, text.longest, text.mask is not None, width, pairs)
    if R >= 2**31:
        raise ValueError(f"text has too many tokens for the triton backend: {R} packed rows, at most {2**31 - 1}")
    sections = table_sections(N_a, T_a, audio.mask is not None, N_t, text.longest, R, text.rows.dtype)
    tables = dict(zip(sections, packed.tables.split(list(sections.values())), strict=True))
    moved = packed.frames.shape[0] > 0
    frame_source = None if audio.mask is None else tables["frame_source"]
    frames = Frames(packed.frames if moved else audio.rows, tables["clip_length"], frame_source, N_a)
    classes = length_classes(N_t, T_t, text.longest, text.mask is not None, width, pairs)
    captions = Captions(
        packed.tokens, tables["token_source"], tables["slots"], tables["bounds"], tables["text_tiles"],
        tables["positions"], classes, N_t,
    )  # fmt: skip
    small, large = frame_sizes(text.rows.dtype)
    tiles = {
        small: FrameTiles(tables["tiles_small"], tables["first_small"], T_a // small + N_a),
        large: FrameTiles(tables["tiles_large"], tables["first_large"], T_a // large + N_a),
    }
    if fill:
        _fill(audio, text, tables, frames, captions, moved)
    return frames, captions, tiles


def _fill(
    audio: Sequences, text: Sequences, tables: dict[str, Tensor], frames: Frames, captions: Captions, moved: bool
) -> None:
    audio_mask = None if audio.mask is None else as_bytes(audio.mask)
    text_mask = None if text.mask is None else as_bytes(text.mask)
    N_a, N_t = frames.count, captions.count
    small, large = frame_sizes(text.rows.dtype)
    sizes = {"SMALL": small, "LARGE": large, "W": captions.classes[0].width}
    first = tables["first_small"], tables["first_large"]
    count_kernel[(N_a + N_t,)](
        audio_mask, text_mask, audio.cu_seqlens, text.cu_seqlens, frames.length, tables["caption_length"], N_a
    )
    P = len(captions.positions)
    plan_kernel[(cdiv(max(N_a, N_t, P), PLAN_BLOCK),)](
        frames.length, tables["column"], *first, tables["caption_length"], captions.slots, captions.bounds,
        captions.positions, N_a, N_t, P, captions.classes[0].tokens, len(captions.classes), **sizes, BLOCK=PLAN_BLOCK,
    )  # fmt: skip
    place_kernel[(N_a + N_t,)](
        audio_mask, text_mask, audio.cu_seqlens, text.cu_seqlens, frames.length, tables["column"],
        first[0], tables["tiles_small"], first[1], tables["tiles_large"],
        frames.source_row, captions.slots, captions.bounds, captions.source_row, captions.tiles, N_a, N_t,
        len(captions.classes), **sizes, **place_launch(Device.of(text.rows.device)),
    )  # fmt: skip
    audio_programs = cdiv(frames.rows.shape[0], GATHER_ROWS) if moved else 0
    D, D_out = text.rows.shape[1], captions.rows.shape[1]
    gather_kernel[(audio_programs + cdiv(captions.rows.shape[0], GATHER_ROWS),)](
        audio.rows, frames.source_row, frames.rows, text.rows, captions.source_row, captions.rows, captions.slots,
        frames.rows.shape[0], N_t, audio_programs, D, D_out, W=captions.classes[0].width, BLOCK_D=gather_block(D),
    )  # fmt: skip


def frame_tiles(audio: Sequences, frames: Frames, size: int) -> FrameTiles:
    """The table of tiles of up to `size` frames, for other sizes than `frame_sizes`: waits for the GPU."""
    rows, length = audio.cu_seqlens.tolist(), frames.length.tolist()
    entries, first, column = [], [0], 0
    for clip in range(frames.count):
        count = max(1, -(-length[clip] // size))
        for t in range(count):
            last = LAST_OF_CLIP.value * (t == count - 1)
            entries.append([rows[clip] + t * size, min(size, length[clip] - t * size) + last, clip, column + t * size])
        first.append(first[-1] + count)
        column += length[clip] + -length[clip] % COLUMN_MULTIPLE.value
    table = frames.length.new_tensor(entries)
    assert table.shape[1] == TILE_FIELDS.value
    return FrameTiles(table, frames.length.new_tensor(first), len(entries))


def as_bytes(mask: Tensor) -> Tensor:
    """A uint8 view of a bool mask, so that kernels load it as integers."""
    return mask.view(torch.uint8)


def gather_block(D: int) -> int:
    """Channels that `gather_kernel` copies at a time."""
    return min(128, next_power_of_two(D))


def place_launch(device: Device) -> dict[str, int]:
    """Options of the compiler for `place_kernel`."""
    # Without a limit ptxas of Triton 3.8 aims at 40 registers and spills one.
    return {"maxnreg": 64} if device.is_desktop_blackwell else {}
