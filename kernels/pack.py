"""Packing before the max-mean kernels: valid rows only, captions in tiles by length, a table of frame tiles.

Everything is computed on the device, without waiting for it: the host knows upper bounds only.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from atk.kernels.launch import next_power_of_two, packed_width
from atk.kernels.sequences import Sequences

_ROWS = 32  # rows that one program copies
_SHORTEST = 8  # tokens of the first length class
_OPEN = tl.constexpr(2**31 - 1)  # the last length class has no upper end


class Frames(NamedTuple):
    """The valid rows of N clips, moved to the front of each clip, with zeros up to `packed_width` channels."""

    rows: Tensor  # [T, packed width]
    start: Tensor  # [N] int32: first row of a clip
    length: Tensor  # [N] int32: its valid rows
    home: Tensor | None  # [T] int32: row of the caller's tensor, -1 behind a clip's valid rows; None: rows stayed


class FrameTiles(NamedTuple):
    """Tiles of up to `size` frames of one clip each; at least one tile a clip, so that each is visited."""

    table: Tensor  # [bound, 4] int32: first row, rows, clip, 1 at the last tile of a clip
    first: Tensor  # [N + 1] int32: first tile of a clip, then the number of tiles
    size: int

    @property
    def bound(self) -> int:
        """Upper bound on the number of tiles."""
        return self.table.shape[0]


class LengthClass(NamedTuple):
    """Captions of at most `tokens` valid tokens (`chunked`: of more, in chunks of `tokens`), `width` rows a tile."""

    number: int
    tokens: int
    width: int
    chunked: bool
    bound: int  # upper bound on the number of captions
    tile_bound: int  # and on the number of tiles

    @property
    def captions(self) -> int:
        """Captions in a tile."""
        return self.width // self.tokens


class Captions(NamedTuple):
    """The valid rows of N captions in tiles of `width` rows, ordered by length class; a caption's place is its slot."""

    rows: Tensor  # [R, packed width]; behind a caption's tokens its first one again, elsewhere zeros
    home: Tensor  # [R] int32: row of the caller's tensor; -2 - that row where it is repeated, -1 where nothing is
    slots: Tensor  # [4, N] int32: caption, valid tokens, first row in `rows`, rows taken
    bounds: Tensor  # [classes + 1] int32: first slot of each class
    tiles: Tensor  # [R / width, 2] int32: first slot of a tile, position of its first token
    classes: list[LengthClass]


@triton.jit
def count_kernel(mask, cu_seqlens, length, BLOCK: tl.constexpr = 1024):
    """length[s] = number of valid rows of sequence s; a program a sequence."""
    s = tl.program_id(0)
    begin = tl.load(cu_seqlens + s).to(tl.int64)
    rows = tl.load(cu_seqlens + s + 1) - begin
    lane = tl.arange(0, BLOCK)
    valid = tl.zeros((BLOCK,), tl.int32)
    for r0 in range(0, rows, BLOCK):
        valid += tl.load(mask + begin + r0 + lane, mask=r0 + lane < rows, other=0).to(tl.int32)
    tl.store(length + s, tl.sum(valid, 0))


@triton.jit(do_not_specialize=["N", "shortest", "classes"])
def order_kernel(length, slots, bounds, N, shortest, classes, W: tl.constexpr, BLOCK: tl.constexpr = 512):
    """Slots by length class, then by number; one program. Class k holds up to min(shortest << k, W) tokens.

    The last class is open. A caption takes whole multiples of its class's tokens in packed rows; each class begins a
    new tile of W rows.
    """
    lane = tl.arange(0, BLOCK)
    slot, row, below = 0, 0, -1
    for k in range(0, classes):
        tokens = tl.minimum(shortest << k, W)
        most = tl.where(k == classes - 1, _OPEN, tokens)
        tl.store(bounds + k, slot)
        for n0 in range(0, N, BLOCK):
            valid = tl.load(length + n0 + lane, mask=n0 + lane < N, other=0)
            member = (n0 + lane < N) & (valid > below) & (valid <= most)
            rank = slot + tl.cumsum(member.to(tl.int32), 0) - 1
            rows = tl.where(member, tl.cdiv(tl.maximum(valid, 1), tokens) * tokens, 0)
            tl.store(slots + rank, n0 + lane, mask=member)
            tl.store(slots + N + rank, valid, mask=member)
            tl.store(slots + 2 * N + rank, row + tl.cumsum(rows, 0) - rows, mask=member)
            tl.store(slots + 3 * N + rank, rows, mask=member)
            slot += tl.sum(member.to(tl.int32), 0)
            row += tl.sum(rows, 0)
        row = tl.cdiv(row, W) * W
        below = most
    tl.store(bounds + classes, slot)


@triton.jit(do_not_specialize=["N"])
def place_kernel(mask, cu_seqlens, slots, home, tiles, N, W: tl.constexpr, BLOCK: tl.constexpr = 256):
    """home[packed row] = row of the caller's tensor, for the valid rows of a sequence in order; a program a sequence.

    Without `slots` a sequence stays where it begins; with them it goes to its slot's rows, its first row is repeated in
    those left over, and `tiles` is filled too.
    """
    slot = tl.program_id(0)
    s = slot if slots is None else tl.load(slots + slot)
    begin = tl.load(cu_seqlens + s).to(tl.int64)
    rows = tl.load(cu_seqlens + s + 1) - begin
    place = begin if slots is None else tl.load(slots + 2 * N + slot).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    if tiles is not None and place % W == 0:  # the first of its tile: shorter captions fill one, longer ones several
        chunks = tl.cdiv(tl.maximum(tl.load(slots + N + slot), 1), W)
        for t0 in range(0, chunks, BLOCK):
            at = tiles + (place // W + t0 + lane) * 2
            tl.store(at, tl.zeros((BLOCK,), tl.int32) + slot, mask=t0 + lane < chunks)
            tl.store(at + 1, (t0 + lane) * W, mask=t0 + lane < chunks)
    head = begin + rows
    end = place
    for r0 in range(0, rows, BLOCK):
        row = begin + r0 + lane
        valid = r0 + lane < rows
        if mask is not None:
            valid = tl.load(mask + row, mask=valid, other=0) != 0
        rank = tl.cumsum(valid.to(tl.int32), 0) - 1
        tl.store(home + end + rank, row.to(tl.int32), mask=valid)
        end += tl.sum(valid.to(tl.int32), 0)
        head = tl.minimum(head, tl.min(tl.where(valid, row, head), 0))
    if slots is not None:
        repeated = tl.where(end > place, -2 - head, -1).to(tl.int32)
        place += tl.load(slots + 3 * N + slot)
        for r0 in range(0, (place - end).to(tl.int32), BLOCK):
            tl.store(home + end + r0 + lane, tl.zeros((BLOCK,), tl.int32) + repeated, mask=end + r0 + lane < place)


@triton.jit(do_not_specialize=["R"])
def gather_kernel(source, home, out, R, D, D_out, BLOCK_D: tl.constexpr, ROWS: tl.constexpr = _ROWS):
    """out[r] = source[home[r]], or source[-2 - home[r]] where that is not negative, else zeros; zeros behind D."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(home + r, mask=r < R, other=-1).to(tl.int64)
    row = tl.maximum(row, -2 - row)
    for d0 in range(0, D_out, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        values = tl.load(source + row[:, None] * D + d[None, :], mask=(row >= 0)[:, None] & (d < D)[None, :], other=0.0)
        tl.store(out + r[:, None] * D_out + d[None, :], values, mask=(r < R)[:, None] & (d < D_out)[None, :])


@triton.jit
def frame_tiles_kernel(start, length, first_tile, tiles, SIZE: tl.constexpr, BLOCK: tl.constexpr = 64):
    """Writes the tiles of one clip into the table; a program a clip."""
    clip = tl.program_id(0)
    row, rows = tl.load(start + clip), tl.load(length + clip)
    tile, end = tl.load(first_tile + clip), tl.load(first_tile + clip + 1)
    for t0 in range(0, end - tile, BLOCK):
        t = t0 + tl.arange(0, BLOCK)
        at = tiles + (tile + t).to(tl.int64) * 4
        inside = tile + t < end
        tl.store(at, row + t * SIZE, mask=inside)
        tl.store(at + 1, tl.minimum(rows - t * SIZE, SIZE), mask=inside)
        tl.store(at + 2, tl.zeros((BLOCK,), tl.int32) + clip, mask=inside)
        tl.store(at + 3, (tile + t + 1 == end).to(tl.int32), mask=inside)


def pack_frames(audio: Sequences) -> Frames:
    """The frames as the kernels take them; copied only where there is a mask, or rows are of another width."""
    start, length = audio.cu_seqlens[:-1], _lengths(audio)
    if audio.mask is None:
        missing = packed_width(audio.rows.shape[1]) - audio.rows.shape[1]
        return Frames(F.pad(audio.rows, (0, missing)) if missing else audio.rows, start, length, None)
    home = torch.full((len(audio.rows),), -1, dtype=torch.int32, device=audio.rows.device)
    place_kernel[(audio.number,)](as_bytes(audio.mask), audio.cu_seqlens, None, home, None, audio.number, W=1)
    return Frames(_gather(audio.rows, home), start, length, home)


def frame_tiles(frames: Frames, size: int) -> FrameTiles:
    """The table of tiles of up to `size` frames."""
    clips = len(frames.start)
    counts = (frames.length + (size - 1)).div(size, rounding_mode="floor").clamp(min=1)
    first = F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    table = first.new_empty(len(frames.rows) // size + clips, 4)
    frame_tiles_kernel[(clips,)](frames.start, frames.length, first, table, SIZE=size)
    return FrameTiles(table, first, size)


def length_classes(text: Sequences, width: int, pairs: bool) -> list[LengthClass]:
    """The classes of valid lengths that can occur. One class for `pairs`, or when every caption has equal length."""
    total = len(text.rows)
    longest = max(1, min(text.longest, total))
    widest = min(width, max(_SHORTEST, next_power_of_two(longest)))
    dense = text.mask is None and total == text.number * text.longest  # then no caption is shorter
    edges = [width] if pairs else [widest]
    while not (pairs or dense) and edges[0] > _SHORTEST:
        edges.insert(0, edges[0] // 2)
    chunked = longest > width
    if chunked and len(edges) > 1:
        edges.append(width)
    classes = []
    for k, tokens in enumerate(edges):
        last = chunked and k == len(edges) - 1
        shorter = edges[k - 1] if k else 0  # every member is longer
        bound = min(text.number, total // (shorter + 1)) if k else text.number
        tiles = total // width + bound if last else -(-bound * tokens // width)
        classes.append(LengthClass(k, tokens, width, last, bound, tiles))
    return classes


def pack_captions(text: Sequences, width: int, pairs: bool) -> Captions:
    """The captions in tiles of `width` rows. For `pairs` slot i is caption i.

    Raises:
        ValueError: the packed rows could pass 2^31.
    """
    classes = length_classes(text, width, pairs)
    number, device = text.number, text.rows.device
    # A caption takes at most twice its rows, or the smallest class's tokens; a class ends in a partial tile.
    bound = -(-(2 * len(text.rows) + classes[0].tokens * number) // width) * width + len(classes) * width
    if bound >= 2**31:
        raise ValueError(f"text has too many tokens for the triton backend: {bound} packed rows, at most {2**31 - 1}")
    length = _lengths(text)
    slots = length.new_empty(4, number)
    bounds = length.new_empty(len(classes) + 1)
    order_kernel[(1,)](length, slots, bounds, number, classes[0].tokens, len(classes), W=width)
    home = torch.full((bound,), -1, dtype=torch.int32, device=device)
    tiles = length.new_empty(bound // width, 2)
    mask = None if text.mask is None else as_bytes(text.mask)
    place_kernel[(number,)](mask, text.cu_seqlens, slots, home, tiles, number, W=width)
    return Captions(_gather(text.rows, home), home, slots, bounds, tiles, classes)


def as_bytes(mask: Tensor) -> Tensor:
    """The same memory as 0 and 1: Triton has no pointers to booleans of one byte."""
    return mask.view(torch.uint8)


def gather_block(D: int) -> int:
    """Channels that a copying program moves at a time."""
    return min(128, next_power_of_two(D))


def _lengths(sequences: Sequences) -> Tensor:
    if sequences.mask is None:
        return sequences.cu_seqlens.diff()
    length = torch.empty_like(sequences.cu_seqlens[1:])
    count_kernel[(sequences.number,)](as_bytes(sequences.mask), sequences.cu_seqlens, length)
    return length


def _gather(source: Tensor, home: Tensor) -> Tensor:
    R, D = len(home), source.shape[1]
    out = source.new_empty(R, packed_width(D))
    gather_kernel[(triton.cdiv(R, _ROWS),)](source, home, out, R, D, out.shape[1], BLOCK_D=gather_block(D))
    return out
