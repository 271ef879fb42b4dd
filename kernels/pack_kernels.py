"""Kernels that prepare max-mean similarity: lengths, the order of the captions, tables of tiles, and packed rows.

Arguments: `cu_seqlens` [N + 1] int32 of packed sequences, `mask` [T] uint8 (None: every row is valid), `length` [N]
int32, the valid rows of each sequence. Table layouts: `tiles.py`.
"""

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

PLAN_BLOCK = 1024  # clips and captions of one program of `plan_kernel`
GATHER_ROWS = 16  # rows copied by one program of `gather_kernel`
_UNBOUNDED = tl.constexpr(2**31 - 1)  # the last length class has no upper limit


@triton.jit
def _count(mask, cu_seqlens, length, s, BLOCK: tl.constexpr):
    """length[s] = number of valid rows of sequence s."""
    begin = tl.load(cu_seqlens + s).to(tl.int64)
    rows = tl.load(cu_seqlens + s + 1) - begin
    if mask is not None:
        lane = tl.arange(0, BLOCK)
        valid = tl.zeros((BLOCK,), tl.int32)
        for r0 in range(0, rows, BLOCK):
            valid += tl.load(mask + begin + r0 + lane, mask=r0 + lane < rows, other=0).to(tl.int32)
        rows = tl.sum(valid, 0)
    tl.store(length + s, rows.to(tl.int32))


@triton.jit(do_not_specialize=["N_a"])
def count_kernel(
    audio_mask, text_mask, cu_audio, cu_text, clip_length, caption_length, N_a, BLOCK: tl.constexpr = 1024
):
    """Lengths of the N_a clips and of the captions. One program per sequence, clips first."""
    s = tl.program_id(0)
    if s < N_a:
        _count(audio_mask, cu_audio, clip_length, s, BLOCK)
    else:
        _count(text_mask, cu_text, caption_length, s - N_a, BLOCK)


@triton.jit
def _exclusive(before, counts):
    """Running sums up to each of `counts`, not including it, and the sum of all; `before` is added to both."""
    return before + tl.cumsum(counts, 0) - counts, before + tl.sum(counts, 0)


@triton.jit
def _clip_counts(clip_length, clip, N_a, SMALL: tl.constexpr, LARGE: tl.constexpr):
    """Of each `clip` below N_a: columns of the winner indices, and tiles of SMALL and of LARGE frames. Else 0."""
    inside = clip < N_a
    valid = tl.load(clip_length + clip, mask=inside, other=0)
    small = tl.where(inside, tl.maximum(tl.cdiv(valid, SMALL), 1), 0)
    large = tl.where(inside, tl.maximum(tl.cdiv(valid, LARGE), 1), 0)
    return tl.cdiv(valid, COLUMN_MULTIPLE) * COLUMN_MULTIPLE, small, large


@triton.jit
def _class_rows(caption_length, caption, N_t, lower, upper, tokens):
    """Valid tokens of each `caption`, and its packed rows; no rows unless the tokens exceed `lower` but not `upper`."""
    valid = tl.load(caption_length + caption, mask=caption < N_t, other=0)
    member = (caption < N_t) & (valid > lower) & (valid <= upper)
    return valid, tl.where(member, tl.cdiv(tl.maximum(valid, 1), tokens) * tokens, 0)


@triton.jit
def _class_totals(caption_length, begin, end, lower, upper, tokens, BLOCK: tl.constexpr):
    """The number of captions of a length class from `begin` to `end`, and the sum of their packed rows."""
    captions = tl.zeros((BLOCK,), tl.int32)
    rows = tl.zeros((BLOCK,), tl.int32)
    for n0 in range(begin, end, BLOCK):
        _, more = _class_rows(caption_length, n0 + tl.arange(0, BLOCK), end, lower, upper, tokens)
        captions += (more > 0).to(tl.int32)
        rows += more
    return tl.sum(captions, 0), tl.sum(rows, 0)


@triton.jit(do_not_specialize=["N_a", "N_t", "P", "shortest", "classes"])
def plan_kernel(
    clip_length, column, first_small, first_large, caption_length, slots, bounds, positions, N_a, N_t, P, shortest,
    classes, SMALL: tl.constexpr, LARGE: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr = PLAN_BLOCK,
):  # fmt: skip
    """Running sums over the clips, and the slots of the captions. Each program handles BLOCK clips and captions.

    positions [P]: 0, 1, 2, ... column [N_a]: first column of the winner indices of each clip. first_small, first_large
    [N_a + 1]: its first tile of SMALL or LARGE frames, then the total. Captions are sorted by length class and then by
    number. Class k holds captions of up to min(shortest << k, W) tokens; the last class has no upper limit. The packed
    rows of a caption are a multiple of its class's tokens, and each class begins a new tile of W rows. Rather than wait
    for other programs, each adds up everything that precedes its clips and captions itself.
    """
    lane = tl.arange(0, BLOCK)
    begin = tl.program_id(0) * BLOCK
    n = begin + lane
    tl.store(positions + n, n, mask=n < P)
    if begin < N_a:
        columns = tl.zeros((BLOCK,), tl.int32)
        small = tl.zeros((BLOCK,), tl.int32)
        large = tl.zeros((BLOCK,), tl.int32)
        for n0 in range(0, begin, BLOCK):
            more_columns, more_small, more_large = _clip_counts(clip_length, n0 + lane, N_a, SMALL, LARGE)
            columns += more_columns
            small += more_small
            large += more_large
        own_columns, own_small, own_large = _clip_counts(clip_length, n, N_a, SMALL, LARGE)
        start, _ = _exclusive(tl.sum(columns, 0), own_columns)
        tl.store(column + n, start, mask=n < N_a)
        start, small_end = _exclusive(tl.sum(small, 0), own_small)
        tl.store(first_small + n, start, mask=n < N_a)
        start, large_end = _exclusive(tl.sum(large, 0), own_large)
        tl.store(first_large + n, start, mask=n < N_a)
        if begin + BLOCK >= N_a:
            tl.store(first_small + N_a, small_end)
            tl.store(first_large + N_a, large_end)
    if begin >= N_t:
        return
    slot = 0
    row = 0
    lower = -1
    for k in range(classes):
        tokens = tl.minimum(shortest << k, W)
        upper = tl.where(k == classes - 1, _UNBOUNDED, tokens)
        if begin == 0:
            tl.store(bounds + k, slot)
        captions, rows = _class_totals(caption_length, 0, begin, lower, upper, tokens, BLOCK)
        valid, num_rows = _class_rows(caption_length, n, N_t, lower, upper, tokens)
        member = num_rows > 0
        rank, _ = _exclusive(slot + captions, member.to(tl.int32))
        first_row, _ = _exclusive(row + rows, num_rows)
        tl.store(slots + SLOT_CAPTION * N_t + rank, n, mask=member)
        tl.store(slots + SLOT_LENGTH * N_t + rank, valid, mask=member)
        tl.store(slots + SLOT_FIRST_ROW * N_t + rank, first_row, mask=member)
        tl.store(slots + SLOT_NUM_ROWS * N_t + rank, num_rows, mask=member)
        more_captions, more_rows = _class_totals(caption_length, begin, N_t, lower, upper, tokens, BLOCK)
        slot += captions + more_captions
        row = tl.cdiv(row + rows + more_rows, W) * W
        lower = upper
    if begin == 0:
        tl.store(bounds + classes, slot)


@triton.jit
def _place_rows(mask, begin, rows, source_row, packed, BLOCK: tl.constexpr):
    """Lists the valid rows of a sequence from `packed` on in `source_row`; its end there, and the first valid row."""
    lane = tl.arange(0, BLOCK)
    first_valid = begin + rows
    for r0 in range(0, rows, BLOCK):
        row = begin + r0 + lane
        valid = r0 + lane < rows
        if mask is not None:
            valid = tl.load(mask + row, mask=valid, other=0) != 0
        rank, packed_end = _exclusive(packed, valid.to(tl.int32))
        tl.store(source_row + rank, row.to(tl.int32), mask=valid)
        packed = packed_end
        first_valid = tl.minimum(first_valid, tl.min(tl.where(valid, row, first_valid), 0))
    return packed, first_valid


@triton.jit
def _fill(source_row, begin, end, value, BLOCK: tl.constexpr):
    """source_row[begin : end] = value."""
    lane = tl.arange(0, BLOCK)
    for r0 in range(0, (end - begin).to(tl.int32), BLOCK):
        tl.store(source_row + begin + r0 + lane, tl.zeros((BLOCK,), tl.int32) + value, mask=begin + r0 + lane < end)


@triton.jit
def _place_tiles(row, rows, column, first_tile, tiles, clip, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Fills in the entries of one clip in the table of tiles of SIZE frames."""
    tile = tl.load(first_tile + clip)
    end = tl.load(first_tile + clip + 1)
    for t0 in range(0, end - tile, BLOCK):
        t = t0 + tl.arange(0, BLOCK)
        fields = tiles + (tile + t).to(tl.int64) * TILE_FIELDS
        inside = tile + t < end
        last = tl.where(tile + t + 1 == end, LAST_OF_CLIP, 0)
        tl.store(fields + TILE_FIRST_ROW, row + t * SIZE, mask=inside)
        tl.store(fields + TILE_NUM_ROWS, tl.minimum(rows - t * SIZE, SIZE) + last, mask=inside)
        tl.store(fields + TILE_CLIP, tl.zeros((BLOCK,), tl.int32) + clip, mask=inside)
        tl.store(fields + TILE_COLUMN, column + t * SIZE, mask=inside)


@triton.jit(do_not_specialize=["N_a", "N_t", "classes"])
def place_kernel(
    audio_mask, text_mask, cu_audio, cu_text, clip_length, column, first_small, tiles_small, first_large, tiles_large,
    frame_source, slots, bounds, token_source, text_tiles, N_a, N_t, classes,
    SMALL: tl.constexpr, LARGE: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr = 256,
):  # fmt: skip
    """Fills in the tables of tiles, and which of the caller's rows each packed row is. One program per sequence.

    The first N_a programs move the valid frames of a clip to its front and list its tiles (`frame_source` None: frames
    stay where they are). The others move the valid tokens of a slot's caption to the rows of the slot. The remaining
    rows of the slot repeat its first token, and rows that belong to no slot are zeros.
    """
    if tl.program_id(0) < N_a:
        clip = tl.program_id(0)
        begin = tl.load(cu_audio + clip)
        end = tl.load(cu_audio + clip + 1)
        if frame_source is not None:
            packed_end, _ = _place_rows(audio_mask, begin.to(tl.int64), end - begin, frame_source, begin, BLOCK)
            _fill(frame_source, packed_end, end, -1, BLOCK)
        rows = tl.load(clip_length + clip)
        _place_tiles(begin, rows, tl.load(column + clip), first_small, tiles_small, clip, SMALL, BLOCK)
        _place_tiles(begin, rows, tl.load(column + clip), first_large, tiles_large, clip, LARGE, BLOCK)
    else:
        slot = tl.program_id(0) - N_a
        caption = tl.load(slots + SLOT_CAPTION * N_t + slot)
        begin = tl.load(cu_text + caption)
        rows = tl.load(cu_text + caption + 1) - begin
        packed = tl.load(slots + SLOT_FIRST_ROW * N_t + slot)
        # The first slot of a tile fills in its entry. A caption longer than a tile fills in the entries of its tiles.
        if packed % W == 0:
            chunks = tl.cdiv(tl.maximum(tl.load(slots + SLOT_LENGTH * N_t + slot), 1), W)
            for t0 in range(0, chunks, BLOCK):
                t = t0 + tl.arange(0, BLOCK)
                fields = text_tiles + (packed // W + t) * TEXT_TILE_FIELDS
                tl.store(fields + TEXT_TILE_SLOT, tl.zeros((BLOCK,), tl.int32) + slot, mask=t < chunks)
                tl.store(fields + TEXT_TILE_POSITION, t * W, mask=t < chunks)
        packed_end, first_valid = _place_rows(text_mask, begin.to(tl.int64), rows, token_source, packed, BLOCK)
        repeated = tl.where(packed_end > packed, -2 - first_valid, -1).to(tl.int32)
        slot_end = packed + tl.load(slots + SLOT_NUM_ROWS * N_t + slot)
        _fill(token_source, packed_end, slot_end, repeated, BLOCK)
        ends_class = 0
        for k in range(1, classes + 1):
            ends_class += (tl.load(bounds + k) == slot + 1).to(tl.int32)
        if ends_class > 0:
            _fill(token_source, slot_end, tl.cdiv(slot_end, W) * W, -1, BLOCK)


@triton.jit
def _gather(source, source_row, out, r, R, D, D_out, BLOCK_D: tl.constexpr):
    row = r
    if source_row is not None:
        row = tl.load(source_row + r, mask=r < R, other=-1).to(tl.int64)
        row = tl.maximum(row, -2 - row)
    ok = (r < R) & (row >= 0)
    for d0 in range(0, D_out, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        values = tl.load(source + row[:, None] * D + d[None, :], mask=ok[:, None] & (d < D)[None, :], other=0.0)
        tl.store(out + r[:, None] * D_out + d[None, :], values, mask=(r < R)[:, None] & (d < D_out)[None, :])


@triton.jit(do_not_specialize=["T_a", "N_t", "audio_programs"])
def gather_kernel(
    audio, frame_source, frames, text, token_source, tokens, slots, T_a, N_t, audio_programs, D, D_out,
    W: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr = GATHER_ROWS,
):  # fmt: skip
    """out[r] = source[source_row[r]] for frames and tokens, padded with zeros from D to D_out channels.

    source_row[r] = -2 - s repeats row s; -1 gives zeros. The first `audio_programs` programs copy frames. Tokens after
    the last tile in use are left as they are.
    """
    if tl.program_id(0) < audio_programs:
        r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        _gather(audio, frame_source, frames, r, T_a, D, D_out, BLOCK_D)
    else:
        end = tl.load(slots + SLOT_FIRST_ROW * N_t + N_t - 1) + tl.load(slots + SLOT_NUM_ROWS * N_t + N_t - 1)
        r = (tl.program_id(0) - audio_programs).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        _gather(text, token_source, tokens, r, tl.cdiv(end, W) * W, D, D_out, BLOCK_D)
