"""What the max-mean kernels share: loads of rows, and the tiles and slots that a program works on."""

import triton
import triton.language as tl


@triton.jit
def load_rows(base, row_ok, d0, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Channels d0 to d0 + BLOCK_D of ROWS rows of D channels from `base`, 0 where not `row_ok` (None: all are)."""
    at = base + tl.arange(0, ROWS)[:, None] * D + (d0 + tl.arange(0, BLOCK_D))[None, :]
    return tl.load(at) if row_ok is None else tl.load(at, mask=row_ok[:, None], other=0.0)


@triton.jit
def slot_range(bounds, number, skip, room):
    """First slot meant and the end of those meant."""
    low = tl.load(bounds + number) + skip
    return low, tl.minimum(tl.load(bounds + number + 1), low + room)


@triton.jit
def text_tile_range(slots, low, high, N_t, W: tl.constexpr):
    """First tile of packed text of the slots from low to high, and the end; equal where there is no slot."""
    last = tl.maximum(high - 1, low)
    some = low < high
    begin = tl.load(slots + 2 * N_t + low, mask=some, other=0) // W
    rows = tl.maximum(tl.load(slots + N_t + last, mask=some, other=0), 1)
    return begin, tl.where(some, tl.cdiv(tl.load(slots + 2 * N_t + last, mask=some, other=0) + rows, W), begin)


@triton.jit
def tile_slot(text_tiles, tile, begin, low, C: tl.constexpr):
    """First slot of a tile of packed text, and the position of its first token."""
    slot, position = low + (tile - begin) * C, 0
    if C == 1:  # of a longer caption it may be one of several chunks
        slot, position = tl.load(text_tiles + tile * 2), tl.load(text_tiles + tile * 2 + 1)
    return slot, position


@triton.jit
def share(count, part, parts):
    """The part of `count` items that falls to one of `parts` programs."""
    each = tl.cdiv(count, parts)
    return tl.minimum(part * each, count), tl.minimum((part + 1) * each, count)


@triton.jit
def clip_start(tile, count, tiles, first_tile):
    """The first tile from `tile` on that begins a clip."""
    clip = tl.load(tiles + tl.minimum(tile, count - 1) * 4 + 2)
    first = tl.load(first_tile + clip)
    return tl.where(tile >= count, count, tl.where(first == tile, tile, tl.load(first_tile + clip + 1)))
