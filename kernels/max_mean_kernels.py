"""Kernels for max-mean similarity (3.6): a forward that keeps the winner indices, and gradients by one-hot products.

Frames and captions arrive packed (`pack.py`). Each step of a program takes BLOCK_A frames of one clip and W = C * LT
rows of packed text: C captions of one length class with LT tokens each. Each output element is computed by a single
program, which accumulates in a fixed order without atomics, so results are bitwise reproducible.

Shared arguments (table layouts: `tiles.py`):
    tiles, first_tile: the frame tiles, and the first tile of each clip followed by the total, [N_a + 1].
    slots, bounds, text_tiles: the packed captions.
    class_index, offset, size: select slots `offset` to `offset + size` of length class `class_index`.
    local_index: 1 if row 0 of `index` belongs to the first selected slot, 0 if it belongs to slot 0.
    index_row: stride between slots in `index`, 0 for pairs.
    active, active_count: the tiles to visit and their count; None visits all. active_row is the row stride of `active`.
    source_row: maps packed rows to rows of the caller's tensor; None for frames that were not moved.
    D: channels, a multiple of BLOCK_D.
    PAIRS: clip i is compared only with caption i, which is in slot i.
"""

import triton
import triton.language as tl

from atk.kernels.tiles import (
    SLOT_CAPTION,
    SLOT_FIRST_ROW,
    SLOT_LENGTH,
    TILE_CLIP,
    TILE_FIELDS,
    TILE_FIRST_ROW,
    TILE_IS_LAST,
    TILE_NUM_ROWS,
    clip_start,
    load_rows,
    part_range,
    slot_range,
    text_tile_range,
    tile_slot,
)
from atk.kernels.winners import NO_WINNER, winners


@triton.jit(do_not_specialize=["N_a", "N_t", "index_row", "sim_clip", "sim_caption", "active_row", "class_index",
                               "offset", "size", "local_index"])  # fmt: skip
def forward_kernel(  # noqa: C901 - most branches are resolved at compile time
    audio, tiles, first_tile, text, slots, bounds, active, active_count, sim, index,
    N_a, N_t, D, index_row, sim_clip, sim_caption, active_row, class_index, offset, size, local_index,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr,
    STATIONARY: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """sim[i, j] = mean over frames t of max over tokens l of <audio[i, t], text[j, l]>, and the winning l.

    A program handles C captions and a run of clips. It streams the frame tiles past the captions and accumulates the
    sum over the tiles of each clip. STATIONARY: the captions fit one tile, which is loaded once. `active` lists only
    part of a clip's tiles, so `sim` must be None then and only the winners are written.
    """
    low, high = slot_range(bounds, class_index, offset, size)
    slot0 = low + tl.program_id(0) * C
    if slot0 >= high:
        return
    slot = slot0 + tl.arange(0, C)
    caption = tl.load(slots + SLOT_CAPTION * N_t + slot, mask=slot < high, other=0)
    length = tl.load(slots + SLOT_LENGTH * N_t + slot, mask=slot < high, other=0)  # [C]
    text_row = tl.load(slots + SLOT_FIRST_ROW * N_t + slot0).to(tl.int64)
    stationary_tokens = None
    if STATIONARY:
        stationary_tokens = tl.trans(load_rows(text + text_row * D, None, 0, D, C * LT, BLOCK_D))  # [BLOCK_D, W]
    chunks = 1
    if C == 1:
        chunks = tl.maximum(tl.cdiv(tl.load(slots + SLOT_LENGTH * N_t + slot0), LT), 1)
    count = tl.load(first_tile + N_a)
    if PAIRS:
        begin = tl.load(first_tile + slot0)
        end = tl.load(first_tile + slot0 + 1)
    elif active is not None:
        active += tl.program_id(0).to(tl.int64) * active_row
        begin, end = part_range(tl.load(active_count + tl.program_id(0)), tl.program_id(1), tl.num_programs(1))
    else:
        begin, end = part_range(count, tl.program_id(1), tl.num_programs(1))
        begin = clip_start(begin, count, tiles, first_tile)
        end = clip_start(end, count, tiles, first_tile)
    if index is not None:
        index += (slot - low * local_index).to(tl.int64) * index_row  # [C]

    lane = tl.arange(0, BLOCK_A)
    total = tl.zeros((C,), tl.float32)
    frames_seen = 0
    for step in range(begin, end):
        tile = step if active is None else tl.load(active + step)
        entry = tiles + tile * TILE_FIELDS
        row = tl.load(entry + TILE_FIRST_ROW).to(tl.int64)
        rows = tl.load(entry + TILE_NUM_ROWS)
        if STATIONARY:
            frames = load_rows(audio + row * D, lane < rows, 0, D, BLOCK_A, BLOCK_D)  # [BLOCK_A, BLOCK_D]
            scores = tl.dot(frames, stationary_tokens, input_precision="ieee")  # [BLOCK_A, W]
            best, winner = winners(scores, 0, BLOCK_A, C, LT)
        else:
            best = tl.full((BLOCK_A, C), float("-inf"), tl.float32)
            winner = tl.full((BLOCK_A, C), NO_WINNER, tl.int32)
            for chunk in range(chunks):
                scores = tl.zeros((BLOCK_A, C * LT), tl.float32)
                chunk_text = text + (text_row + chunk * LT) * D
                for d0 in range(0, D, BLOCK_D):
                    frames = load_rows(audio + row * D, lane < rows, d0, D, BLOCK_A, BLOCK_D)
                    tokens = tl.trans(load_rows(chunk_text, None, d0, D, C * LT, BLOCK_D))
                    scores = tl.dot(frames, tokens, scores, input_precision="ieee")
                chunk_best, chunk_winner = winners(scores, chunk * LT, BLOCK_A, C, LT)
                better = (chunk_best > best) | ((chunk_best != chunk_best) & (best == best)) | (winner == NO_WINNER)
                best = tl.where(better, chunk_best, best)
                winner = tl.where(better, chunk_winner, winner)
        if index is not None:
            pointers = index[None, :] + (row + lane)[:, None]
            tl.store(pointers, winner.to(index.dtype.element_ty), mask=(lane < rows)[:, None] & (slot < high)[None, :])
        if sim is not None:
            last = tl.load(entry + TILE_IS_LAST) != 0
            total += tl.sum(tl.where((lane < rows)[:, None], best, 0.0), 0)
            frames_seen += rows
            mean = tl.where(length > 0, total / tl.maximum(frames_seen, 1).to(tl.float32), 0.0)
            pointers = sim + tl.load(entry + TILE_CLIP).to(tl.int64) * sim_clip + caption.to(tl.int64) * sim_caption
            tl.store(pointers, mean, mask=(slot < high) & last)
            total = tl.where(last, 0.0, total)
            frames_seen = tl.where(last, 0, frames_seen)


@triton.jit(do_not_specialize=["N_a", "N_t", "index_row", "grad_clip", "grad_slot", "active_row", "class_index",
                               "offset", "size", "local_index", "first", "last"])  # fmt: skip
def grad_audio_kernel(
    weight, peak, tiles, first_tile, source_row, text, slots, bounds, text_tiles, active, active_count, index, carry,
    grad_audio, N_a, N_t, D, index_row, grad_clip, grad_slot, active_row, class_index, offset, size, local_index,
    first, last,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """grad_audio[i, t] = sum over j of weight[i, j] * text[j, index[i, j, t]], with weight[i, j] = grad[i, j] / n_i.

    A program computes a frames x channels tile of one clip and streams the captions: P @ text, where row t of P holds
    weight[i, j] at column index[i, j, t] of caption j and 0 elsewhere. P has the dtype of text, so half precision
    rounds the weights. They are divided by peak[i] = max over j of |weight[i, j]| so that they do not underflow. The
    error is at most 2^-9 (bfloat16) or 2^-11 (float16) of the sum over j of |weight[i, j] * text|, the same as if the
    products had been stored in that dtype.

    Launched once for each group of slots. `carry` [T_a, D] float32 holds the sum between launches; the `last` launch
    writes grad_audio. None: there is a single launch.
    """
    d_tiles = tl.cdiv(D, BLOCK_D)
    d0 = tl.program_id(0) % d_tiles * BLOCK_D
    tile = tl.program_id(0) // d_tiles
    if tile >= tl.load(first_tile + N_a):
        return
    entry = tiles + tile * TILE_FIELDS
    row = tl.load(entry + TILE_FIRST_ROW).to(tl.int64)
    rows = tl.load(entry + TILE_NUM_ROWS)
    clip = tl.load(entry + TILE_CLIP).to(tl.int64)
    low, high = slot_range(bounds, class_index, offset, size)
    index_slot0 = low * local_index
    if PAIRS:
        low = clip.to(tl.int32)
        high = clip.to(tl.int32) + 1
    begin, end = text_tile_range(slots, low, high, N_t, C * LT)
    steps = end - begin
    if active is not None:
        active += clip * active_row
        steps = tl.load(active_count + clip)
    if carry is not None and (steps == 0) & (first + last == 0):
        return
    lane = tl.arange(0, BLOCK_A)
    c = tl.arange(0, C)
    w = tl.arange(0, C * LT)
    index += row + (0 - index_slot0).to(tl.int64) * index_row
    weight += clip * grad_clip
    largest = tl.load(peak + clip)
    d = d0 + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
    if carry is not None:
        pointers = carry + (row + lane)[:, None] * D + d[None, :]
        total = tl.load(pointers, mask=(lane < rows)[:, None] & (first == 0), other=0.0)
    for step in range(steps):
        text_tile = begin + (step if active is None else tl.load(active + step))
        slot0, position0 = tile_slot(text_tiles, text_tile, begin, low, C)
        # Do not load captions with weight 0: 0 * inf would be NaN.
        row_weight = tl.load(
            weight + (slot0 + w // LT).to(tl.int64) * grad_slot, mask=slot0 + w // LT < high, other=0.0
        )
        tokens = load_rows(text + text_tile.to(tl.int64) * (C * LT) * D, row_weight != 0, d0, D, C * LT, BLOCK_D)
        pair_weight = tl.load(weight + (slot0 + c).to(tl.int64) * grad_slot, mask=slot0 + c < high, other=0.0) / largest
        at_index = index + (slot0 + c).to(tl.int64)[None, :] * index_row + lane[:, None]
        winner = tl.load(at_index, mask=(lane < rows)[:, None] & (slot0 + c < high)[None, :], other=0).to(tl.int32)
        position = position0 + tl.arange(0, LT)
        p = tl.where(winner[:, :, None] == position[None, None, :], pair_weight[None, :, None], 0.0)
        p = tl.reshape(p.to(text.dtype.element_ty), (BLOCK_A, C * LT))
        total = tl.dot(p, tokens, total, input_precision="ieee")
    # Load the entry again: keeping the addresses live through the loop would cost its registers.
    row = tl.load(entry + TILE_FIRST_ROW, volatile=True).to(tl.int64)
    rows = tl.load(entry + TILE_NUM_ROWS, volatile=True)
    ok = (lane < rows)[:, None]
    if carry is not None:
        tl.store(carry + (row + lane)[:, None] * D + d[None, :], total, mask=ok & (last == 0))
        ok = ok & (last != 0)
    out_row = row + lane
    if source_row is not None:
        out_row = tl.load(source_row + out_row, mask=lane < rows, other=0).to(tl.int64)
    pointers = grad_audio + out_row[:, None] * D + d[None, :]
    tl.store(pointers, (total * largest).to(grad_audio.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["N_a", "N_t", "T_t", "index_row", "grad_clip", "grad_slot", "active_row", "class_index",
                               "offset", "size", "local_index"])  # fmt: skip
def grad_text_kernel(
    weight, audio, tiles, first_tile, source_row, slots, bounds, text_tiles, active, active_count, index, grad_text,
    N_a, N_t, T_t, D, index_row, grad_clip, grad_slot, active_row, class_index, offset, size, local_index,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """grad_text[j, l] = sum over i of weight[i, j] * sum over t with index[i, j, t] = l of audio[i, t].

    A program computes a tokens x channels tile and streams its part of the frames. The inner sum is P @ audio with an
    exact 0-1 matrix P; the weight is applied afterwards in float32. `grad_text` is [parts, T_t, D]. Unlike a gather, a
    non-finite frame or weight affects every token of the caption (0 * inf).
    """
    low, high = slot_range(bounds, class_index, offset, size)
    begin_tile, end_tile = text_tile_range(slots, low, high, N_t, C * LT)
    d_tiles = tl.cdiv(D, BLOCK_D)
    d0 = tl.program_id(0) % d_tiles * BLOCK_D
    text_tile = begin_tile + tl.program_id(0) // d_tiles
    if text_tile >= end_tile:
        return
    slot0, position0 = tile_slot(text_tiles, text_tile, begin_tile, low, C)
    if PAIRS:
        begin = tl.load(first_tile + slot0)
        end = tl.load(first_tile + slot0 + 1)
    elif active is not None:
        active += ((slot0 - low) // C).to(tl.int64) * active_row
        begin, end = part_range(tl.load(active_count + (slot0 - low) // C), tl.program_id(1), tl.num_programs(1))
    else:
        begin, end = part_range(tl.load(first_tile + N_a), tl.program_id(1), tl.num_programs(1))
    lane = tl.arange(0, BLOCK_A)
    slot = slot0 + tl.arange(0, C)
    row_slot = slot0 + tl.arange(0, C * LT) // LT
    index += (slot - low * local_index).to(tl.int64)[:, None] * index_row + lane[None, :]
    weight += row_slot.to(tl.int64) * grad_slot
    position = (position0 + tl.arange(0, LT))[None, :, None]
    total = tl.zeros((C * LT, BLOCK_D), tl.float32)
    for step in range(begin, end):
        tile = step if active is None else tl.load(active + step)
        entry = tiles + tile * TILE_FIELDS
        row = tl.load(entry + TILE_FIRST_ROW).to(tl.int64)
        rows = tl.load(entry + TILE_NUM_ROWS)
        clip = tl.load(entry + TILE_CLIP).to(tl.int64)
        frames = load_rows(audio + row * D, lane < rows, d0, D, BLOCK_A, BLOCK_D)  # [BLOCK_A, BLOCK_D]
        winner = tl.load(index + row, mask=(slot < high)[:, None] & (lane < rows)[None, :], other=0).to(tl.int32)
        one_hot = tl.where(winner[:, None, :] == position, 1.0, 0.0).to(audio.dtype.element_ty)  # [C, LT, BLOCK_A]
        pair_weight = tl.load(weight + clip * grad_clip, mask=row_slot < high, other=0.0)[:, None]
        inner = tl.dot(tl.reshape(one_hot, (C * LT, BLOCK_A)), frames, input_precision="ieee")
        total += pair_weight * tl.where(pair_weight != 0, inner, 0.0)  # with weight 0, inf must not give NaN
    row = text_tile.to(tl.int64) * (C * LT) + tl.arange(0, C * LT)
    out_row = tl.load(source_row + row)
    d = d0 + tl.arange(0, BLOCK_D)
    offsets = (tl.program_id(1).to(tl.int64) * T_t + out_row)[:, None] * D + d[None, :]
    tl.store(grad_text + offsets, total.to(grad_text.dtype.element_ty), mask=(out_row >= 0)[:, None])
