"""Kernels that pack frames and captions for max-mean similarity: counting, sorting, placing and copying rows."""

import triton
import triton.language as tl

from atk.kernels.tiles import (
    COLUMN_MULTIPLE,
    LAST_OF_CLIP,
    SLOT_CAPTION,
    SLOT_FIRST_ROW,
    SLOT_LENGTH,
    SLOT_NUM_ROWS,
    TEXT_TILE_FIELDS,
    TEXT_TILE_POSITION,
    TEXT_TILE_SLOT,
    TILE_CLIP,
    TILE_COLUMN,
    TILE_FIELDS,
    TILE_FIRST_ROW,
    TILE_NUM_ROWS,
)

GATHER_ROWS = 32  # rows copied by one program of `gather_kernel`
_UNBOUNDED = tl.constexpr(2**31 - 1)  # the last length class has no upper limit


@triton.jit
def count_kernel(mask, cu_seqlens, length, BLOCK: tl.constexpr = 1024):
    """length[s] = number of valid rows of sequence s. One program per sequence."""
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
    """Assigns the N captions to slots, sorted by length class and then by caption. Runs as a single program.

    Class k holds captions of up to min(shortest << k, W) tokens; the last class has no upper limit. The packed rows of
    a caption are a multiple of its class's tokens, and each class begins a new tile of W rows.
    """
    lane = tl.arange(0, BLOCK)
    slot = 0
    row = 0
    lower = -1
    for k in range(classes):
        tokens = tl.minimum(shortest << k, W)
        upper = tl.where(k == classes - 1, _UNBOUNDED, tokens)
        tl.store(bounds + k, slot)
        for n0 in range(0, N, BLOCK):
            valid = tl.load(length + n0 + lane, mask=n0 + lane < N, other=0)
            member = (n0 + lane < N) & (valid > lower) & (valid <= upper)
            rank = slot + tl.cumsum(member.to(tl.int32), 0) - 1
            rows = tl.where(member, tl.cdiv(tl.maximum(valid, 1), tokens) * tokens, 0)
            tl.store(slots + SLOT_CAPTION * N + rank, n0 + lane, mask=member)
            tl.store(slots + SLOT_LENGTH * N + rank, valid, mask=member)
            tl.store(slots + SLOT_FIRST_ROW * N + rank, row + tl.cumsum(rows, 0) - rows, mask=member)
            tl.store(slots + SLOT_NUM_ROWS * N + rank, rows, mask=member)
            slot += tl.sum(member.to(tl.int32), 0)
            row += tl.sum(rows, 0)
        row = tl.cdiv(row, W) * W
        lower = upper
    tl.store(bounds + classes, slot)


@triton.jit(do_not_specialize=["N"])
def place_kernel(mask, cu_seqlens, slots, source_row, text_tiles, N, W: tl.constexpr, BLOCK: tl.constexpr = 256):
    """source_row[packed row] = row of the caller's tensor. One program per sequence moves its valid rows to the front.

    Without `slots`, a sequence keeps its first row. With `slots`, it moves to the rows of its slot, the remaining rows
    of the slot repeat its first valid row, and `text_tiles` is filled in too.
    """
    slot = tl.program_id(0)
    s = slot if slots is None else tl.load(slots + SLOT_CAPTION * N + slot)
    begin = tl.load(cu_seqlens + s).to(tl.int64)
    rows = tl.load(cu_seqlens + s + 1) - begin
    packed = begin if slots is None else tl.load(slots + SLOT_FIRST_ROW * N + slot).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    # The first slot of a tile fills in its entry. A caption longer than a tile fills in the entries of all its tiles.
    if text_tiles is not None and packed % W == 0:
        chunks = tl.cdiv(tl.maximum(tl.load(slots + SLOT_LENGTH * N + slot), 1), W)
        for t0 in range(0, chunks, BLOCK):
            fields = text_tiles + (packed // W + t0 + lane) * TEXT_TILE_FIELDS
            tl.store(fields + TEXT_TILE_SLOT, tl.zeros((BLOCK,), tl.int32) + slot, mask=t0 + lane < chunks)
            tl.store(fields + TEXT_TILE_POSITION, (t0 + lane) * W, mask=t0 + lane < chunks)
    first_valid = begin + rows
    packed_end = packed
    for r0 in range(0, rows, BLOCK):
        row = begin + r0 + lane
        valid = r0 + lane < rows
        if mask is not None:
            valid = tl.load(mask + row, mask=valid, other=0) != 0
        rank = tl.cumsum(valid.to(tl.int32), 0) - 1
        tl.store(source_row + packed_end + rank, row.to(tl.int32), mask=valid)
        packed_end += tl.sum(valid.to(tl.int32), 0)
        first_valid = tl.minimum(first_valid, tl.min(tl.where(valid, row, first_valid), 0))
    if slots is not None:
        repeated = tl.where(packed_end > packed, -2 - first_valid, -1).to(tl.int32)
        packed += tl.load(slots + SLOT_NUM_ROWS * N + slot)
        for r0 in range(0, (packed - packed_end).to(tl.int32), BLOCK):
            value = tl.zeros((BLOCK,), tl.int32) + repeated
            tl.store(source_row + packed_end + r0 + lane, value, mask=packed_end + r0 + lane < packed)


@triton.jit(do_not_specialize=["R"])
def gather_kernel(source, source_row, out, R, D, D_out, BLOCK_D: tl.constexpr, ROWS: tl.constexpr = GATHER_ROWS):
    """out[r] = source[source_row[r]], padded with zeros from D to D_out channels.

    source_row[r] = -2 - s repeats row s; -1 gives zeros.
    """
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(source_row + r, mask=r < R, other=-1).to(tl.int64)
    row = tl.maximum(row, -2 - row)
    for d0 in range(0, D_out, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        values = tl.load(source + row[:, None] * D + d[None, :], mask=(row >= 0)[:, None] & (d < D)[None, :], other=0.0)
        tl.store(out + r[:, None] * D_out + d[None, :], values, mask=(r < R)[:, None] & (d < D_out)[None, :])


@triton.jit
def frame_tiles_kernel(start, length, first_tile, columns, tiles, SIZE: tl.constexpr, BLOCK: tl.constexpr = 64):
    """Fills in the entries of one clip in the table of frame tiles. One program per clip."""
    clip = tl.program_id(0)
    row = tl.load(start + clip)
    rows = tl.load(length + clip)
    column = (tl.load(columns + clip) - tl.cdiv(rows, COLUMN_MULTIPLE)) * COLUMN_MULTIPLE
    tile = tl.load(first_tile + clip)
    end = tl.load(first_tile + clip + 1)
    for t0 in range(0, end - tile, BLOCK):
        t = t0 + tl.arange(0, BLOCK)
        fields = tiles + (tile + t).to(tl.int64) * TILE_FIELDS
        inside = tile + t < end
        tl.store(fields + TILE_FIRST_ROW, row + t * SIZE, mask=inside)
        last = tl.where(tile + t + 1 == end, LAST_OF_CLIP, 0)
        tl.store(fields + TILE_NUM_ROWS, tl.minimum(rows - t * SIZE, SIZE) + last, mask=inside)
        tl.store(fields + TILE_COLUMN, column + t * SIZE, mask=inside)
        tl.store(fields + TILE_CLIP, tl.zeros((BLOCK,), tl.int32) + clip, mask=inside)
