"""The kernels of max-mean similarity (3.6): forward that keeps the winners, gradients by one-hot products, no atomics.

Frames and captions arrive packed (`pack.py`). A program works on BLOCK_A frames of one clip and W = C * LT rows of
packed text: C captions of one length class, LT tokens of each. Every output element belongs to one program, which adds
up in a fixed order: results repeat bit for bit.

Shared arguments: `tiles` [., 4], `first_tile` [N_a + 1] the frame tiles; `slots` [4, N_t], `bounds`, `text_tiles` the
packed captions; the captions meant are slots `skip` to `skip + room` of class `number`; `grouped`: row 0 of `index` is
the first of those slots, else slot 0; `index_row`: stride of a slot in `index`, 0 for pairs; `active`, `active_count`:
which tiles to visit, None for all; `D` channels, a multiple of BLOCK_D. PAIRS: clip i meets caption i = slot i alone.
"""

import os

import torch
import triton
import triton.language as tl

from atk.kernels.tiles import clip_start, load_rows, share, slot_range, text_tile_range, tile_slot

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_LOWEST = tl.constexpr(-torch.finfo(torch.float32).max)
_NONE = tl.constexpr(2**30)  # no winner yet


@triton.jit
def _nan_maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _token_max(scores):
    """Max over the last of three axes; NaN wins, as in torch.max."""
    if _INTERPRETED:  # which runs a reduction of one's own element by element
        nan = tl.max((scores != scores).to(tl.int32), 2)
        best = tl.where(nan != 0, float("nan"), tl.max(scores, 2))
    else:
        best = tl.reduce(scores, 2, _nan_maximum)
    return best


@triton.jit
def _position_of(scores, limit, position):
    """`position` where a score is neither less nor greater than the limit, as NaN is, else _NONE."""
    if _INTERPRETED or scores.shape[1] == 1:
        kept = tl.where((scores < limit) | (scores > limit), _NONE, position)
    else:  # of several captions LLVM would collect the comparisons in bit masks first: a quarter more instructions
        kept = tl.inline_asm_elementwise(
            "{ .reg .pred %p; setp.ne.f32 %p, $1, $2; selp.b32 $0, 0x40000000, $3, %p; }",
            "=r,f,f,r", [scores, limit, position], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    return kept


@triton.jit
def _winners(scores, l0, BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr):
    """Best score and its position among the tokens l0 to l0 + LT of each caption: [BLOCK_A, W] -> two [BLOCK_A, C].

    The first of equal scores wins, so padding, which repeats the caption's first token, does not; the first NaN wins
    over everything.
    """
    best = _token_max(tl.reshape(scores, (BLOCK_A, C, LT)))
    # A NaN best must not match every other score.
    limit = tl.where(best == best, best, _LOWEST)[:, :, None, None, None]
    # Position 8 k + 2 q + e: a thread of the matrix units holds all k and e of one q, so that 8 k + e are constants.
    scores = tl.reshape(scores, (BLOCK_A, C, LT // 8, 4, 2))
    constant = (8 * tl.arange(0, LT // 8)[:, None, None] + tl.arange(0, 2)[None, None, :])[None, None]
    first = tl.min(tl.min(_position_of(scores, limit, constant), 4), 2)  # [BLOCK_A, C, 4]
    return best, l0 + tl.min(first + 2 * tl.arange(0, 4)[None, None, :], 2)


@triton.jit(do_not_specialize=["N_a", "N_t", "index_row", "sim_clip", "sim_caption", "active_row", "number", "skip",
                               "room", "grouped"])  # fmt: skip
def forward_kernel(
    audio, tiles, first_tile, text, slots, bounds, active, active_count, sim, index,
    N_a, N_t, D, index_row, sim_clip, sim_caption, active_row, number, skip, room, grouped,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr,
    STATIONARY: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """sim[i, j] = mean over frames t of max over tokens l of <audio[i, t], text[j, l]>, and the winning l.

    A program owns C captions and a run of clips. It streams the clips' frames past the captions, tile after tile, and
    carries the sum over the tiles of a clip. STATIONARY: the captions fit one tile, which is loaded once. With `active`
    clips are incomplete: winners only, `sim` is None.
    """
    low, high = slot_range(bounds, number, skip, room)
    slot0 = low + tl.program_id(0) * C
    if slot0 >= high:
        return
    slot = slot0 + tl.arange(0, C)
    caption = tl.load(slots + slot, mask=slot < high, other=0)
    length = tl.load(slots + N_t + slot, mask=slot < high, other=0)  # [C]
    text_row = tl.load(slots + 2 * N_t + slot0).to(tl.int64)
    if STATIONARY:
        tokens = tl.trans(load_rows(text + text_row * D, None, 0, D, C * LT, BLOCK_D))  # [BLOCK_D, W]
    chunks = 1
    if C == 1:
        chunks = tl.maximum(tl.cdiv(tl.load(slots + N_t + slot0), LT), 1)
    count = tl.load(first_tile + N_a)
    if PAIRS:
        begin, end = tl.load(first_tile + slot0), tl.load(first_tile + slot0 + 1)
    elif active is not None:
        active += tl.program_id(0).to(tl.int64) * active_row
        begin, end = share(tl.load(active_count + tl.program_id(0)), tl.program_id(1), tl.num_programs(1))
    else:
        begin, end = share(count, tl.program_id(1), tl.num_programs(1))
        begin, end = clip_start(begin, count, tiles, first_tile), clip_start(end, count, tiles, first_tile)
    if index is not None:
        index += (slot - low * grouped).to(tl.int64) * index_row  # [C]

    lane = tl.arange(0, BLOCK_A)
    total = tl.zeros((C,), tl.float32)
    frames_seen = 0
    for step in range(begin, end):
        tile = step if active is None else tl.load(active + step)
        entry = tiles + tile * 4
        row, rows = tl.load(entry).to(tl.int64), tl.load(entry + 1)
        if STATIONARY:
            frames = load_rows(audio + row * D, lane < rows, 0, D, BLOCK_A, BLOCK_D)  # [BLOCK_A, BLOCK_D]
            scores = tl.dot(frames, tokens, input_precision="ieee")  # [BLOCK_A, W]
            best, winner = _winners(scores, 0, BLOCK_A, C, LT)
        else:
            best = tl.full((BLOCK_A, C), float("-inf"), tl.float32)
            winner = tl.full((BLOCK_A, C), _NONE, tl.int32)
            for chunk in range(0, chunks):
                scores = tl.zeros((BLOCK_A, C * LT), tl.float32)
                rows_at = text + (text_row + chunk * LT) * D
                for d0 in range(0, D, BLOCK_D):
                    frames = load_rows(audio + row * D, lane < rows, d0, D, BLOCK_A, BLOCK_D)
                    tokens = tl.trans(load_rows(rows_at, None, d0, D, C * LT, BLOCK_D))
                    scores = tl.dot(frames, tokens, scores, input_precision="ieee")
                chunk_best, chunk_winner = _winners(scores, chunk * LT, BLOCK_A, C, LT)
                better = (chunk_best > best) | ((chunk_best != chunk_best) & (best == best)) | (winner == _NONE)
                best = tl.where(better, chunk_best, best)
                winner = tl.where(better, chunk_winner, winner)
        if index is not None:
            at = index[None, :] + (row + lane)[:, None]
            tl.store(at, winner.to(index.dtype.element_ty), mask=(lane < rows)[:, None] & (slot < high)[None, :])
        if sim is not None:
            last = tl.load(entry + 3) != 0
            total += tl.sum(tl.where((lane < rows)[:, None], best, 0.0), 0)
            frames_seen += rows
            mean = tl.where(length > 0, total / tl.maximum(frames_seen, 1).to(tl.float32), 0.0)
            at = sim + tl.load(entry + 2).to(tl.int64) * sim_clip + caption.to(tl.int64) * sim_caption
            tl.store(at, mean, mask=(slot < high) & last)
            total = tl.where(last, 0.0, total)
            frames_seen = tl.where(last, 0, frames_seen)


@triton.jit(do_not_specialize=["N_a", "N_t", "index_row", "grad_clip", "grad_slot", "active_row", "number", "skip",
                               "room", "grouped", "first", "last"])  # fmt: skip
def grad_audio_kernel(
    weight, peak, tiles, first_tile, home, text, slots, bounds, text_tiles, active, active_count, index, carry,
    grad_audio, N_a, N_t, D, index_row, grad_clip, grad_slot, active_row, number, skip, room, grouped,
    first, last,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """grad_audio[i, t] = sum over j of weight[i, j] * text[j, index[i, j, t]], with weight[i, j] = grad[i, j] / n_i.

    A program owns a tile of frames by channels of one clip and streams the captions: P @ text, where row t of P holds
    weight[i, j] at column index[i, j, t] of caption j, else 0. P has the dtype of text: half precision rounds the
    weight, divided by peak[i] = max over j of |weight[i, j]| lest it underflow. The error is at most 2^-9 (bfloat16) or
    2^-11 (float16) of the sum over j of |weight[i, j] * text|, as if the products had been stored in that dtype.

    Called once for each class and group of captions: `carry` [T_a, D] float32 takes the sum from the `first` call to
    the `last`, which writes grad_audio; None: there is one call.
    """
    d_tiles = tl.cdiv(D, BLOCK_D)
    d0 = tl.program_id(0) % d_tiles * BLOCK_D
    tile = tl.program_id(0) // d_tiles
    if tile >= tl.load(first_tile + N_a):
        return
    entry = tiles + tile * 4
    row, rows, clip = tl.load(entry).to(tl.int64), tl.load(entry + 1), tl.load(entry + 2).to(tl.int64)
    low, high = slot_range(bounds, number, skip, room)
    base = low * grouped
    if PAIRS:
        low, high = clip.to(tl.int32), clip.to(tl.int32) + 1
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
    index += row + (0 - base).to(tl.int64) * index_row
    weight += clip * grad_clip
    largest = tl.load(peak + clip)
    d = d0 + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
    if carry is not None:
        at = carry + (row + lane)[:, None] * D + d[None, :]
        total = tl.load(at, mask=(lane < rows)[:, None] & (first == 0), other=0.0)
    for step in range(0, steps):
        text_tile = begin + (step if active is None else tl.load(active + step))
        slot0, position0 = tile_slot(text_tiles, text_tile, begin, low, C)
        # Captions of weight 0 must not count even where they hold inf.
        row_weight = tl.load(
            weight + (slot0 + w // LT).to(tl.int64) * grad_slot, mask=slot0 + w // LT < high, other=0.0
        )
        tokens = load_rows(text + text_tile.to(tl.int64) * (C * LT) * D, row_weight != 0, d0, D, C * LT, BLOCK_D)
        pair = tl.load(weight + (slot0 + c).to(tl.int64) * grad_slot, mask=slot0 + c < high, other=0.0) / largest
        at_index = index + (slot0 + c).to(tl.int64)[None, :] * index_row + lane[:, None]
        winner = tl.load(at_index, mask=(lane < rows)[:, None] & (slot0 + c < high)[None, :], other=0).to(tl.int32)
        position = position0 + tl.arange(0, LT)
        hot = tl.where(winner[:, :, None] == position[None, None, :], pair[None, :, None], 0.0)
        hot = tl.reshape(hot.to(text.dtype.element_ty), (BLOCK_A, C * LT))
        total = tl.dot(hot, tokens, total, input_precision="ieee")
    # Read again: kept through the loop, the addresses would take its registers.
    row, rows = tl.load(entry, volatile=True).to(tl.int64), tl.load(entry + 1, volatile=True)
    ok = (lane < rows)[:, None]
    if carry is not None:
        tl.store(carry + (row + lane)[:, None] * D + d[None, :], total, mask=ok & (last == 0))
        ok = ok & (last != 0)
    place = row + lane
    if home is not None:
        place = tl.load(home + place, mask=lane < rows, other=0).to(tl.int64)
    at = grad_audio + place[:, None] * D + d[None, :]
    tl.store(at, (total * largest).to(grad_audio.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["N_a", "N_t", "T_t", "index_row", "grad_clip", "grad_slot", "active_row", "number",
                               "skip", "room", "grouped"])  # fmt: skip
def grad_text_kernel(
    weight, audio, tiles, first_tile, home, slots, bounds, text_tiles, active, active_count, index, grad_text,
    N_a, N_t, T_t, D, index_row, grad_clip, grad_slot, active_row, number, skip, room, grouped,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """grad_text[j, l] = sum over i of weight[i, j] * sum over t with index[i, j, t] = l of audio[i, t].

    A program owns a tile of tokens by channels and streams its part of the frames: the inner sum is P @ audio with an
    exact 0-1 matrix P, weighted afterwards in float32. `grad_text` is [parts, T_t, D]. Unlike in a gather, a non-finite
    frame or weight reaches every token of the caption (0 * inf).
    """
    low, high = slot_range(bounds, number, skip, room)
    begin_tile, end_tile = text_tile_range(slots, low, high, N_t, C * LT)
    d_tiles = tl.cdiv(D, BLOCK_D)
    d0 = tl.program_id(0) % d_tiles * BLOCK_D
    text_tile = begin_tile + tl.program_id(0) // d_tiles
    if text_tile >= end_tile:
        return
    slot0, position0 = tile_slot(text_tiles, text_tile, begin_tile, low, C)
    if PAIRS:
        begin, end = tl.load(first_tile + slot0), tl.load(first_tile + slot0 + 1)
    elif active is not None:
        active += ((slot0 - low) // C).to(tl.int64) * active_row
        begin, end = share(tl.load(active_count + (slot0 - low) // C), tl.program_id(1), tl.num_programs(1))
    else:
        begin, end = share(tl.load(first_tile + N_a), tl.program_id(1), tl.num_programs(1))
    lane = tl.arange(0, BLOCK_A)
    slot = slot0 + tl.arange(0, C)
    row_slot = slot0 + tl.arange(0, C * LT) // LT
    index += (slot - low * grouped).to(tl.int64)[:, None] * index_row + lane[None, :]
    weight += row_slot.to(tl.int64) * grad_slot
    position = (position0 + tl.arange(0, LT))[None, :, None]
    total = tl.zeros((C * LT, BLOCK_D), tl.float32)
    for step in range(begin, end):
        tile = step if active is None else tl.load(active + step)
        entry = tiles + tile * 4
        row, rows, clip = tl.load(entry).to(tl.int64), tl.load(entry + 1), tl.load(entry + 2).to(tl.int64)
        frames = load_rows(audio + row * D, lane < rows, d0, D, BLOCK_A, BLOCK_D)  # [BLOCK_A, BLOCK_D]
        winner = tl.load(index + row, mask=(slot < high)[:, None] & (lane < rows)[None, :], other=0).to(tl.int32)
        hot = tl.where(winner[:, None, :] == position, 1.0, 0.0).to(audio.dtype.element_ty)  # [C, LT, BLOCK_A]
        pair = tl.load(weight + clip * grad_clip, mask=row_slot < high, other=0.0)[:, None]
        inner = tl.dot(tl.reshape(hot, (C * LT, BLOCK_A)), frames, input_precision="ieee")
        total += pair * tl.where(pair != 0, inner, 0.0)  # a weight of 0 must not count even against inf
    row = text_tile.to(tl.int64) * (C * LT) + tl.arange(0, C * LT)
    place = tl.load(home + row)
    d = d0 + tl.arange(0, BLOCK_D)
    at = (tl.program_id(1).to(tl.int64) * T_t + place)[:, None] * D + d[None, :]
    tl.store(grad_text + at, total.to(grad_text.dtype.element_ty), mask=(place >= 0)[:, None])
