"""Table layouts and helpers shared by the max-mean kernels.

Captions are sorted by length class, and each gets a slot. `slots` [SLOT_FIELDS, N_t] int32 describes the slots, one
column per slot. `tiles` [., TILE_FIELDS] int32 describes the frame tiles, and `text_tiles` [., TEXT_TILE_FIELDS] int32
the tiles of packed text, one row per tile.
"""

import triton
import triton.language as tl

SLOT_CAPTION = tl.constexpr(0)  # caption in this slot
SLOT_LENGTH = tl.constexpr(1)  # its valid tokens
SLOT_FIRST_ROW = tl.constexpr(2)  # its first row of packed text
SLOT_NUM_ROWS = tl.constexpr(3)  # rows of packed text it occupies, padding included
SLOT_FIELDS = tl.constexpr(4)

TILE_FIRST_ROW = tl.constexpr(0)  # first row of packed frames
TILE_NUM_ROWS = tl.constexpr(1)  # frames in the tile, plus LAST_OF_CLIP for the last tile of a clip
TILE_CLIP = tl.constexpr(2)  # clip the frames belong to
TILE_COLUMN = tl.constexpr(3)  # first column of the winner indices, a multiple of COLUMN_MULTIPLE
TILE_FIELDS = tl.constexpr(4)
LAST_OF_CLIP = tl.constexpr(2**16)

COLUMN_MULTIPLE = tl.constexpr(16)  # so that winner indices and weights are copied 4 bytes or more at a time

TEXT_TILE_SLOT = tl.constexpr(0)  # first slot of the tile
TEXT_TILE_POSITION = tl.constexpr(1)  # position of the tile's first token within its caption
TEXT_TILE_FIELDS = tl.constexpr(2)


@triton.jit
def load_rows(base, row_ok, d0, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Loads channels d0 to d0 + BLOCK_D of ROWS rows of D channels: [ROWS, BLOCK_D].

    Rows where `row_ok` is False load as 0; None loads every row.
    """
    pointers = base + tl.arange(0, ROWS)[:, None] * D + (d0 + tl.arange(0, BLOCK_D))[None, :]
    return tl.load(pointers) if row_ok is None else tl.load(pointers, mask=row_ok[:, None], other=0.0)


@triton.jit
def slot_range(bounds, class_index, offset, size):
    """Range of the slots from `offset` to `offset + size` within a length class, clipped to the class: (begin, end)."""
    low = tl.load(bounds + class_index) + offset
    return low, tl.minimum(tl.load(bounds + class_index + 1), low + size)


@triton.jit
def text_tile_range(slots, low, high, N_t, W: tl.constexpr):
    """Range of the tiles of packed text for slots low to high: (begin, end), equal if there are no slots."""
    last = tl.maximum(high - 1, low)
    nonempty = low < high
    begin = tl.load(slots + SLOT_FIRST_ROW * N_t + low, mask=nonempty, other=0) // W
    rows = tl.maximum(tl.load(slots + SLOT_LENGTH * N_t + last, mask=nonempty, other=0), 1)
    last_row = tl.load(slots + SLOT_FIRST_ROW * N_t + last, mask=nonempty, other=0)
    return begin, tl.where(nonempty, tl.cdiv(last_row + rows, W), begin)


@triton.jit
def tile_slot(text_tiles, tile, begin, low, C: tl.constexpr):
    """First slot of a tile of packed text, relative to `low`, and the position of its first token in its caption."""
    slot = (tile - begin) * C
    position = 0
    if C == 1:  # a long caption spans several tiles
        slot = tl.load(text_tiles + tile * TEXT_TILE_FIELDS + TEXT_TILE_SLOT) - low
        position = tl.load(text_tiles + tile * TEXT_TILE_FIELDS + TEXT_TILE_POSITION)
    return slot, position


@triton.jit
def frame_tile(tiles, tile):
    """Of a frame tile: first row, number of rows, first column of the winner indices, whether it is a clip's last."""
    entry = tiles + tile * TILE_FIELDS
    rows = tl.load(entry + TILE_NUM_ROWS)
    column = tl.multiple_of(tl.load(entry + TILE_COLUMN), COLUMN_MULTIPLE)
    return tl.load(entry + TILE_FIRST_ROW), rows % LAST_OF_CLIP, column, rows >= LAST_OF_CLIP


@triton.jit
def visited(active, step, end):
    """The tile that `step` visits, from the list `active` (None: all tiles); past the end, any tile."""
    inside = step < end
    return tl.where(inside, step, 0) if active is None else tl.load(active + step, mask=inside, other=0)


@triton.jit
def part_range(count, part, parts):
    """Start and end of slice `part` when `count` items are split into `parts` slices of equal size."""
    size = tl.cdiv(count, parts)
    return tl.minimum(part * size, count), tl.minimum((part + 1) * size, count)


@triton.jit
def clip_start(tile, count, tiles, first_tile):
    """The first tile at or after `tile` that starts a clip, or `count` if there is none."""
    clip = tl.load(tiles + tl.minimum(tile, count - 1) * TILE_FIELDS + TILE_CLIP)
    first = tl.load(first_tile + clip)
    return tl.where(tile >= count, count, tl.where(first == tile, tile, tl.load(first_tile + clip + 1)))
