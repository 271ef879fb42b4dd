"""Kernels for the gradients of max-mean similarity (3.6): products with one-hot matrices of the winners.

Frames and captions arrive packed (`pack.py`). Each step of a program takes BLOCK_A frames of one clip and W = C * LT
rows of packed text: C captions of one length class with LT tokens each. Each output element is computed by a single
program, which accumulates in a fixed order without atomics, so results are bitwise reproducible.

The first pass of a kernel reads rows whatever their weight. 0 * inf is NaN, so if a sum is not finite, a second pass
leaves out the rows of weight 0. Each step of a pass reads what the next step needs to address its rows: if a copy
waited for a load of its own step, Triton would not start it ahead of the product.

Shared arguments (table layouts: `tiles.py`):
    tiles, first_tile: the frame tiles, and the first tile of each clip followed by the total, [N_a + 1].
    slots, bounds, text_tiles: the packed captions.
    class_index, offset, size: select slots `offset` to `offset + size` of length class `class_index`.
    local_index: 1 if row 0 of `index` belongs to the first selected slot, 0 if it belongs to slot 0.
    index_row: stride between slots in `index`, a multiple of COLUMN_MULTIPLE; 0 for pairs.
    active, active_count: the tiles to visit and their count; None visits all. active_row is the row stride of `active`.
    source_row: maps packed rows to rows of the caller's tensor; None for frames that were not moved.
    weight [N_a, N_t], peak [N_a]: see `weights.py`. grad_clip and grad_slot are the strides of weight.
    positions: 0, 1, 2, ... int32; loading positions rather than computing them keeps one-hot matrices in registers.
    D: channels, a multiple of BLOCK_D.
    PAIRS: clip i is compared only with caption i, which is in slot i.
    FRAME_WINNERS: winner indices copied per frame, a multiple of C, so that each thread copies at least 4 bytes.
"""

import triton
import triton.language as tl

from atk.kernels.one_hot import one_hot, token_positions
from atk.kernels.scalars import scalar_max
from atk.kernels.tiles import (
    LAST_OF_CLIP,
    TILE_CLIP,
    TILE_FIELDS,
    TILE_FIRST_ROW,
    TILE_NUM_ROWS,
    frame_tile,
    load_rows,
    part_range,
    slot_range,
    text_tile_range,
    tile_slot,
    visited,
)


@triton.jit
def _any_nonfinite(x):
    return scalar_max(tl.max((tl.abs(x) < float("inf")).to(tl.int32) ^ 1, 1)) != 0


@triton.jit(do_not_specialize=["N_a", "N_t", "grad_clip", "grad_slot", "active_row", "class_index", "offset", "size",
                               "local_index", "first", "last"])  # fmt: skip
def grad_audio_kernel(  # noqa: C901 - most branches are resolved at compile time
    weight, peak, tiles, first_tile, source_row, text, slots, bounds, text_tiles, active, active_count, index,
    positions, carry, grad_audio, N_a, N_t, D, index_row, grad_clip, grad_slot, active_row, class_index, offset, size,
    local_index, first, last,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr, FRAME_WINNERS: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """grad_audio[i, t] = sum over j of weight[i, j] * text[j, index[i, j, t]], with weight[i, j] = grad[i, j] / n_i.

    A program computes a frames x channels tile of one clip and streams the captions: P @ text, where row t of P holds
    weight[i, j] at column index[i, j, t] of caption j and 0 elsewhere. P has the dtype of text, so half precision
    rounds the weights. They are divided by peak[i] = max over j of |weight[i, j]| so that they do not underflow. The
    error is at most 2^-9 (bfloat16) or 2^-11 (float16) of the sum over j of |weight[i, j] * text|, the same as if the
    products had been stored in that dtype.

    GATHER: loads the winners instead of multiplying, one row per frame and caption, and weights them in float32.

    Launched once for each group of slots. `carry` [T_a, D] float32 holds the sum between launches; the `last` launch
    writes grad_audio. None: there is a single launch.
    """
    W: tl.constexpr = C * LT
    d_tiles = tl.cdiv(D, BLOCK_D)
    d0 = tl.program_id(0) % d_tiles * BLOCK_D
    tile = tl.program_id(0) // d_tiles
    if tile >= tl.load(first_tile + N_a):
        return
    row, rows, column, _ = frame_tile(tiles, tile)
    clip = tl.load(tiles + tile * TILE_FIELDS + TILE_CLIP).to(tl.int64)
    low, high = slot_range(bounds, class_index, offset, size)
    index += column + (low * (1 - local_index)).to(tl.int64) * index_row
    if PAIRS:
        low = clip.to(tl.int32)
        high = low + 1
    begin, end = text_tile_range(slots, low, high, N_t, W)
    steps = end - begin
    if active is not None:
        active += clip * active_row
        steps = tl.load(active_count + clip)
    if carry is not None and (steps == 0) & (first + last == 0):
        return
    lane = tl.arange(0, BLOCK_A)
    w = tl.arange(0, W)
    c = tl.arange(0, C)
    group = tl.arange(0, FRAME_WINNERS) // (FRAME_WINNERS // C)
    weight += clip * grad_clip + low.to(tl.int64) * grad_slot
    d = d0 + tl.arange(0, BLOCK_D)
    at_carry = carry
    carried = (lane < rows)[:, None] & (first == 0)
    total = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
    if carry is not None:
        at_carry = carry + (row + lane).to(tl.int64)[:, None] * D + d[None, :]
        total = tl.load(at_carry, mask=carried, other=0.0)
    position = token_positions(positions, 0, W, LT, text.dtype.element_ty)
    if GATHER:
        text_tile = begin + visited(active, 0, steps)
        slot, position0 = tile_slot(text_tiles, text_tile, begin, low, C)
        for step in range(steps):
            at_text = text + text_tile.to(tl.int64) * W * D + d[None, :]
            for caption in tl.static_range(C):
                one = tl.minimum(slot + caption, high - low - 1).to(tl.int64)
                value = tl.load(weight + one * grad_slot, mask=slot + caption < high - low, other=0.0)
                winner = tl.load(index + one * index_row + lane).to(tl.int32) - position0
                # Of a caption in several tiles, a frame's winner is in one. Past the frames, indices are arbitrary.
                inside = (lane < tl.where(value != 0, rows, 0)) & (winner >= 0) & (winner < LT)
                rows_of_winners = caption * LT + winner
                token = tl.load(at_text + rows_of_winners[:, None] * D, mask=inside[:, None], other=0.0)
                total += value * token.to(tl.float32)
            text_tile = begin + visited(active, step + 1, steps)
            slot, position0 = tile_slot(text_tiles, text_tile, begin, low, C)
    for exact in tl.static_range(0 if GATHER else 2):
        if exact == 1:
            redo = _any_nonfinite(total)
            steps = tl.where(redo, steps, 0)
            initial = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
            if carry is not None:
                initial = tl.load(at_carry, mask=carried & redo, other=0.0)
            total = tl.where(redo, initial, total)
        text_tile = begin + visited(active, 0, steps)
        slot, position0 = tile_slot(text_tiles, text_tile, begin, low, C)
        for step in range(steps):
            if C == 1:
                position = token_positions(positions, position0, W, LT, text.dtype.element_ty)
            pair_weight = tl.load(weight + (slot + c).to(tl.int64) * grad_slot, mask=slot + c < high - low, other=0.0)
            row_ok = None
            if exact == 1:
                at_weight = weight + (slot + w // LT).to(tl.int64) * grad_slot
                row_ok = tl.load(at_weight, mask=slot + w // LT < high - low, other=0.0) != 0
            tokens = load_rows(text + text_tile.to(tl.int64) * W * D, row_ok, d0, D, W, BLOCK_D)
            index_slot = tl.minimum(slot + group, high - low - 1).to(tl.int64)
            winner = tl.load(index + index_slot[None, :] * index_row + lane[:, None])  # [BLOCK_A, FRAME_WINNERS]
            winner = tl.broadcast_to(winner[:, :, None], (BLOCK_A, FRAME_WINNERS, W // FRAME_WINNERS))
            value = tl.broadcast_to(pair_weight[None, :, None], (BLOCK_A, C, LT))
            p = one_hot(
                tl.reshape(winner, (BLOCK_A, W)), tl.broadcast_to(position[None, :], (BLOCK_A, W)),
                tl.reshape(value, (BLOCK_A, W)), text.dtype.element_ty, index.dtype.element_ty,
            )  # fmt: skip
            total = tl.dot(p, tokens, total, input_precision="ieee")
            text_tile = begin + visited(active, step + 1, steps)
            slot, position0 = tile_slot(text_tiles, text_tile, begin, low, C)
    # Load these again: keeping the addresses live through the loop would cost its registers.
    entry = tiles + tile * TILE_FIELDS
    row = tl.load(entry + TILE_FIRST_ROW, volatile=True).to(tl.int64)
    rows = tl.load(entry + TILE_NUM_ROWS, volatile=True) % LAST_OF_CLIP
    ok = (lane < rows)[:, None]
    if carry is not None:
        tl.store(carry + (row + lane)[:, None] * D + d[None, :], total, mask=ok & (last == 0))
        ok = ok & (last != 0)
    out_row = row + lane
    if source_row is not None:
        out_row = tl.load(source_row + out_row, mask=lane < rows, other=0).to(tl.int64)
    pointers = grad_audio + out_row[:, None] * D + d[None, :]
    tl.store(pointers, (total * tl.load(peak + clip)).to(grad_audio.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["N_a", "N_t", "T_t", "grad_clip", "grad_slot", "active_row", "class_index", "offset",
                               "size", "local_index"])  # fmt: skip
def grad_text_kernel(
    weight, peak, audio, tiles, first_tile, source_row, slots, bounds, text_tiles, active, active_count, index,
    positions, grad_text, N_a, N_t, T_t, D, index_row, grad_clip, grad_slot, active_row, class_index, offset, size,
    local_index,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr, FRAME_WINNERS: tl.constexpr,
):  # fmt: skip
    """grad_text[j, l] = sum over i of weight[i, j] * sum over t with index[i, j, t] = l of audio[i, t].

    A program computes a tokens x channels tile and streams its part of the frames. The inner sum is P @ audio with an
    exact 0-1 matrix P; the weight is applied afterwards in float32. `grad_text` is [parts, T_t, D]. Unlike a gather, a
    non-finite frame or weight affects every token of the caption (0 * inf).
    """
    W: tl.constexpr = C * LT
    low, high = slot_range(bounds, class_index, offset, size)
    begin_tile, end_tile = text_tile_range(slots, low, high, N_t, W)
    d_tiles = tl.cdiv(D, BLOCK_D)
    d0 = tl.program_id(0) % d_tiles * BLOCK_D
    text_tile = begin_tile + tl.program_id(0) // d_tiles
    if text_tile >= end_tile:
        return
    slot, position0 = tile_slot(text_tiles, text_tile, begin_tile, low, C)
    if PAIRS:
        begin = tl.load(first_tile + low + slot)
        end = tl.load(first_tile + low + slot + 1)
    elif active is not None:
        active += (slot // C).to(tl.int64) * active_row
        begin, end = part_range(tl.load(active_count + slot // C), tl.program_id(1), tl.num_programs(1))
    else:
        begin, end = part_range(tl.load(first_tile + N_a), tl.program_id(1), tl.num_programs(1))
    lane = tl.arange(0, BLOCK_A)
    w = tl.arange(0, W)
    group_slot = tl.minimum(slot + tl.arange(0, FRAME_WINNERS) // (FRAME_WINNERS // C), high - low - 1) + low * (
        1 - local_index
    )
    index += group_slot.to(tl.int64)[:, None] * index_row + lane[None, :]
    row_slot = low + slot + w // LT
    weight += row_slot.to(tl.int64) * grad_slot
    position = token_positions(positions, position0, W, LT, audio.dtype.element_ty)[:, None]
    total = tl.zeros((W, BLOCK_D), tl.float32)
    for exact in tl.static_range(2):
        if exact == 1:
            redo = _any_nonfinite(total)
            end = tl.where(redo, end, begin)
            total = tl.where(redo, 0.0, total)
        tile = visited(active, begin, end)
        row, rows, column, _ = frame_tile(tiles, tile)
        clip = tl.load(tiles + tile * TILE_FIELDS + TILE_CLIP).to(tl.int64)
        pair_weight = tl.load(weight + clip * grad_clip, mask=row_slot < high, other=0.0)
        unit = tl.load(peak + clip)
        # The clip is read two steps ahead, because its weights are read one step ahead.
        clip = tl.load(tiles + visited(active, begin + 1, end) * TILE_FIELDS + TILE_CLIP).to(tl.int64)
        for step in range(begin, end):
            frames = load_rows(audio + row.to(tl.int64) * D, lane < rows, d0, D, BLOCK_A, BLOCK_D)
            winner = tl.load(index + column)  # [FRAME_WINNERS, BLOCK_A]
            winner = tl.broadcast_to(winner[:, None, :], (FRAME_WINNERS, W // FRAME_WINNERS, BLOCK_A))
            p = one_hot(
                tl.reshape(winner, (W, BLOCK_A)), tl.broadcast_to(position, (W, BLOCK_A)),
                tl.full((W, BLOCK_A), 1.0, tl.float32), audio.dtype.element_ty, index.dtype.element_ty,
            )  # fmt: skip
            inner = tl.dot(p, frames, input_precision="ieee")
            scale = (pair_weight * unit)[:, None]
            if exact == 1:
                inner = tl.where(scale != 0, inner, 0.0)
            total += scale * inner
            row, rows, column, _ = frame_tile(tiles, visited(active, step + 1, end))
            pair_weight = tl.load(weight + clip * grad_clip, mask=row_slot < high, other=0.0)
            unit = tl.load(peak + clip)
            clip = tl.load(tiles + visited(active, step + 2, end) * TILE_FIELDS + TILE_CLIP).to(tl.int64)
    row = text_tile.to(tl.int64) * W + w
    out_row = tl.load(source_row + row)
    d = d0 + tl.arange(0, BLOCK_D)
    offsets = (tl.program_id(1).to(tl.int64) * T_t + out_row)[:, None] * D + d[None, :]
    tl.store(grad_text + offsets, total.to(grad_text.dtype.element_ty), mask=(out_row >= 0)[:, None])
