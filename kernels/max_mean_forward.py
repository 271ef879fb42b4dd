"""The kernel for max-mean similarity (3.6), which keeps the winner indices. Shared arguments: `max_mean_gradients.py`.

Frames and captions arrive packed (`pack.py`). Each step of a program takes BLOCK_A frames of one clip and W = C * LT
rows of packed text: C captions of one length class with LT tokens each. Each score is computed by a single program,
which accumulates in a fixed order, so results are bitwise reproducible.
"""

import triton
import triton.language as tl

from atk.kernels.scalars import scalar_max
from atk.kernels.tiles import (
    COLUMN_MULTIPLE,
    SLOT_CAPTION,
    SLOT_FIRST_ROW,
    SLOT_LENGTH,
    TILE_CLIP,
    TILE_FIELDS,
    clip_start,
    frame_tile,
    load_rows,
    part_range,
    slot_range,
    visited,
)
from atk.kernels.winners import NO_WINNER, best_scores, first_winners, first_winners_or_nan


@triton.jit
def _later_wins(best, winner, new_best, EXACT: tl.constexpr):
    """Whether the best of later tokens wins over the best so far."""
    if EXACT:
        wins = (new_best > best) | ((new_best != new_best) & (best == best)) | (winner == NO_WINNER)
    else:
        wins = new_best > best
    return wins


@triton.jit(do_not_specialize=["N_a", "N_t", "sim_clip", "sim_caption", "active_row", "class_index", "offset", "size",
                               "local_index"])  # fmt: skip
def forward_kernel(  # noqa: C901 - most branches are resolved at compile time
    audio, tiles, first_tile, text, slots, bounds, active, active_count, sim, index,
    N_a, N_t, D, index_row, sim_clip, sim_caption, active_row, class_index, offset, size, local_index,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr,
    STATIONARY: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """sim[i, j] = mean over frames t of max over tokens l of <audio[i, t], text[j, l]>, and the winning l.

    A program handles C captions and a run of clips. It streams the frame tiles past the captions and accumulates the
    sum over the tiles of each clip. STATIONARY: the captions fit in one tile, which is loaded once. If `active` is
    given, it may list only some of a clip's tiles, so `sim` must be None and only the winners are written. The first
    pass assumes that the best scores are finite. If a sum shows that they are not, a second pass finds the winners
    again.
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
        stationary_tokens = load_rows(text + text_row * D, None, 0, D, C * LT, BLOCK_D)  # [W, BLOCK_D]
    ONE_CHUNK: tl.constexpr = C > 1 or STATIONARY
    chunks = 1
    if not ONE_CHUNK:
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
    PASSES: tl.constexpr = 1 if index is None else 2
    for exact in tl.static_range(PASSES):
        total = tl.zeros((BLOCK_A, C), tl.float32)
        frames_seen = 0
        nonfinite = 0
        # Each step reads the table entry of the next: if a copy waited for a load of its own step, Triton would not
        # start it ahead of the product.
        row, rows, column, last = frame_tile(tiles, visited(active, begin, end))
        for step in range(begin, end):
            best = tl.full((BLOCK_A, C), float("-inf"), tl.float32)
            winner = tl.full((BLOCK_A, C), NO_WINNER, tl.int32)
            for chunk in range(chunks):
                if STATIONARY:
                    frames = load_rows(audio + row.to(tl.int64) * D, lane < rows, 0, D, BLOCK_A, BLOCK_D)
                    scores = tl.dot(frames, tl.trans(stationary_tokens), input_precision="ieee")  # [BLOCK_A, W]
                else:
                    scores = tl.zeros((BLOCK_A, C * LT), tl.float32)
                    chunk_text = text + (text_row + chunk * LT) * D
                    for d0 in range(0, D, BLOCK_D):
                        frames = load_rows(audio + row.to(tl.int64) * D, lane < rows, d0, D, BLOCK_A, BLOCK_D)
                        tokens = tl.trans(load_rows(chunk_text, None, d0, D, C * LT, BLOCK_D))
                        scores = tl.dot(frames, tokens, scores, input_precision="ieee")
                new_best = best_scores(scores, BLOCK_A, C, LT)
                if index is not None:
                    if exact == 1:
                        new_winner = chunk * LT + first_winners_or_nan(scores, new_best, BLOCK_A, C, LT)
                    else:
                        new_winner = chunk * LT + first_winners(scores, new_best, BLOCK_A, C, LT)
                    if ONE_CHUNK:
                        winner = new_winner
                    else:
                        winner = tl.where(_later_wins(best, winner, new_best, exact == 1), new_winner, winner)
                best = new_best if ONE_CHUNK else tl.maximum(best, new_best, propagate_nan=tl.PropagateNan.ALL)
            if index is not None:
                pointers = index[None, :] + (column + lane)[:, None]
                stored = lane < tl.cdiv(rows, COLUMN_MULTIPLE) * COLUMN_MULTIPLE  # padding columns too: wider stores
                tl.store(pointers, winner.to(index.dtype.element_ty), mask=stored[:, None] & (slot < high)[None, :])
            total += tl.where((lane < rows)[:, None], best, 0.0)
            frames_seen += rows
            if sim is not None and exact == 0:  # noqa: SIM102 - known at compile time, unlike the next condition
                if last:
                    sums = tl.sum(total, 0)
                    nonfinite |= scalar_max((tl.abs(sums) < float("inf")).to(tl.int32) ^ 1)
                    mean = tl.where(length > 0, sums / tl.maximum(frames_seen, 1).to(tl.float32), 0.0)
                    clip = tl.load(tiles + visited(active, step, end) * TILE_FIELDS + TILE_CLIP).to(tl.int64)
                    at_sim = sim + clip * sim_clip + caption.to(tl.int64) * sim_caption
                    tl.store(at_sim, mean, mask=slot < high)
                    total = tl.zeros((BLOCK_A, C), tl.float32)
                    frames_seen = 0
            row, rows, column, last = frame_tile(tiles, visited(active, step + 1, end))
        if sim is None:
            nonfinite = scalar_max(tl.max((tl.abs(total) < float("inf")).to(tl.int32) ^ 1, 1))
        end = tl.where(nonfinite != 0, end, begin)
