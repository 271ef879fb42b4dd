"""Kernels of streaming InfoNCE (3.3)-(3.5): log-sum-exp of the logits in both directions, and the logits' gradients.

Shapes: audio [N_a, D], text [N_t, D]; logits S = scale * X with X = audio @ text^T, computed one tile at a time. D is
the width of packed rows, a multiple of CHANNELS. A tile is ROWS clips x COLUMNS captions. Tiles at the border repeat
the last row and column: that changes no maximum, and the repeats are left out of sums and stores. Sums run in a fixed
order, so results are bitwise reproducible. If all logits of a tile are close together, one exponential per element
serves both directions.
"""

import math

import triton
import triton.language as tl

from atk.kernels.scalars import scalar_max, scalar_min, scalar_sum

_LOG2_E = tl.constexpr(math.log2(math.e))
_LARGEST = tl.constexpr(3.4028234663852886e38)  # replaces infinite maxima, because inf - inf = NaN
# Range of the logits of a tile up to which they share a maximum. With a wider range, exponentials that underflow to 0
# could be noticeable in a sum (forward) or a weight (backward).
_FORWARD_RANGE = tl.constexpr(64.0)
_BACKWARD_RANGE = tl.constexpr(55.0)
_MAX_WEIGHT = tl.constexpr(2.0**14)  # half precision flushes weights below 2^-38 of this to 0


@triton.jit
def products(
    audio, text, row0, column0, N_a, N_t, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr
):
    """X [ROWS, COLUMNS] for the tile at (row0, column0)."""
    row = tl.minimum(tl.arange(0, ROWS), N_a - 1 - row0)
    column = tl.minimum(tl.arange(0, COLUMNS), N_t - 1 - column0)
    d = tl.arange(0, CHANNELS)
    a_at = audio + tl.cast(row0, tl.int64) * D + (row[:, None] * D + d[None, :])
    b_at = text + tl.cast(column0, tl.int64) * D + (column[:, None] * D + d[None, :])
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(0, D, CHANNELS):
        total = tl.dot(tl.load(a_at), tl.trans(tl.load(b_at)), total, input_precision="ieee")
        a_at += CHANNELS
        b_at += CHANNELS
    return total


@triton.jit
def _bounded(x):
    """Replaces infinities by the largest finite values."""
    return tl.minimum(tl.maximum(x, -_LARGEST), _LARGEST)


@triton.jit
def _log_sum(peak, total, scale):
    """log(total * e^(scale * peak))."""
    return scale * peak + tl.log(total)


@triton.jit(do_not_specialize=["N_a", "N_t", "span"])
def lse_kernel(
    audio, text, scale, row_parts, column_parts, N_a, N_t, D, span,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of the logits of each row over `span` tiles of captions, and of each column over one tile of clips.

    row_parts is [parts of the captions, N_a] and column_parts [tiles of clips, N_t] (None: rows only), both float32.
    Programs are ordered in groups of GROUP tiles of clips, which stay in the L2 cache while the group runs.
    """
    row_tiles = tl.cdiv(N_a, ROWS)
    column_tiles = tl.cdiv(N_t, COLUMNS)
    members = GROUP * tl.cdiv(column_tiles, span)
    first = tl.program_id(0) // members * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    row_tile = first + tl.program_id(0) % members % height
    part = tl.program_id(0) % members // height
    row0 = row_tile * ROWS
    row = row0 + tl.arange(0, ROWS)
    factor = tl.load(scale).to(tl.float32)
    k = factor * _LOG2_E
    ascending = factor >= 0  # the largest logit is the largest product, or with a negative scale the smallest
    peak = tl.full((ROWS,), 0.0, tl.float32) + tl.where(ascending, -_LARGEST, _LARGEST)
    total = tl.zeros((ROWS,), tl.float32)
    for tile in range(part * span, tl.minimum((part + 1) * span, column_tiles)):
        column0 = tile * COLUMNS
        column = column0 + tl.arange(0, COLUMNS)
        x = products(audio, text, row0, column0, N_a, N_t, D, ROWS, COLUMNS, CHANNELS)
        high = tl.max(x, 1)
        low = tl.min(x, 1)
        row_peak = _bounded(tl.where(ascending, high, low))
        if column_parts is None:
            e = tl.exp2((x - row_peak[:, None]) * k)
            row_total = tl.sum(tl.where((column < N_t)[None, :], e, 0.0), 1)
        else:
            largest = scalar_max(high)
            smallest = scalar_min(low)
            near = (largest - smallest) * tl.abs(factor) <= _FORWARD_RANGE
            if near & (row0 + ROWS <= N_a) & (column0 + COLUMNS <= N_t):
                shared = tl.where(ascending, largest, smallest)
                e = tl.exp2((x - shared) * k)
                row_peak = tl.zeros((ROWS,), tl.float32) + shared
                row_total = tl.sum(e, 1)
                column_lse = _log_sum(shared, tl.sum(e, 0), factor)
            else:
                e = tl.exp2((x - row_peak[:, None]) * k)
                row_total = tl.sum(tl.where((column < N_t)[None, :], e, 0.0), 1)
                column_peak = _bounded(tl.where(ascending, tl.max(x, 0), tl.min(x, 0)))
                e = tl.exp2((x - column_peak[None, :]) * k)
                column_lse = _log_sum(column_peak, tl.sum(tl.where((row < N_a)[:, None], e, 0.0), 0), factor)
            tl.store(column_parts + row_tile.to(tl.int64) * N_t + column, column_lse, mask=column < N_t)
        new_peak = tl.where(ascending, tl.maximum(peak, row_peak), tl.minimum(peak, row_peak))
        total = total * tl.exp2((peak - new_peak) * k) + row_total * tl.exp2((row_peak - new_peak) * k)
        peak = new_peak
    tl.store(row_parts + part.to(tl.int64) * N_a + row, _log_sum(peak, total, factor), mask=row < N_a)


@triton.jit(do_not_specialize=["parts", "N"])
def merge_kernel(partial, lse, parts, N, PARTS: tl.constexpr, SIZE: tl.constexpr):
    """lse [N] = log-sum-exp over the first axis of partial [parts, N], both float32."""
    n = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    peak = tl.full((SIZE,), -_LARGEST, tl.float32)
    total = tl.zeros((SIZE,), tl.float32)
    for part0 in range(0, parts, PARTS):
        part = part0 + tl.arange(0, PARTS)
        ok = (part < parts)[:, None] & (n < N)[None, :]
        value = tl.load(partial + part.to(tl.int64)[:, None] * N + n[None, :], mask=ok, other=float("-inf"))
        new_peak = tl.maximum(peak, _bounded(tl.max(value, 0)))
        total = total * tl.exp(peak - new_peak) + tl.sum(tl.exp(value - new_peak[None, :]), 0)
        peak = new_peak
    tl.store(lse + n, peak + tl.log(total), mask=n < N)


@triton.jit
def store_weights(weights, w, row0, column0, N_a, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Stores the tile w at (row0, column0) of weights [N_a, stride], with repeats of the last column up to `stride`.

    Because `stride` is a multiple of 16, so is the end of the mask, and a thread stores 16 bytes at once. A mask that
    ends at N_t would take an address and a store for each element, and so many registers that some spill.
    """
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    ok = (row0 + row < N_a)[:, None] & (column0 + column < stride)[None, :]
    weights += tl.cast(row0, tl.int64) * stride + column0
    tl.store(weights + (row[:, None] * stride + column[None, :]), w.to(weights.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["N_a", "N_t", "first_column"])
def grad_logits_kernel(
    audio, text, scale, rows, columns, grad_rows, grad_columns, positive, grad_positive, largest, weights, scale_parts,
    N_a, N_t, D, stride, first_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """weights = 2^14 / largest * dS, dS = g_rows e^(S - rows) + g_columns e^(S - columns) + g_positive at positives.

    `weights` is [N_a, stride] of the dtype of the inputs (`store_weights`). `largest` is an upper bound on |dS|, so
    that in half precision no weight overflows and only negligible ones underflow. `scale_parts` [tiles] float32 is the
    sum of X * weights over each tile. `columns` and `grad_columns` None: rows only. `positive` [N_a] int64 holds the
    positive caption of each clip, where caption `first_column + j` is column j; None: no positives.
    """
    column_tiles = tl.cdiv(N_t, COLUMNS)
    row0 = tl.program_id(0) // column_tiles * ROWS
    column0 = tl.program_id(0) % column_tiles * COLUMNS
    x = products(audio, text, row0, column0, N_a, N_t, D, ROWS, COLUMNS, CHANNELS)
    factor = tl.load(scale).to(tl.float32)
    unit = _MAX_WEIGHT / tl.load(largest)
    at_row = tl.minimum(row0 + tl.arange(0, ROWS), N_a - 1)
    row_lse = tl.load(rows + at_row)
    row_grad = tl.load(grad_rows + at_row) * unit
    if columns is None:
        w = tl.exp2((x * factor - row_lse[:, None]) * _LOG2_E) * row_grad[:, None]
    else:
        at_column = tl.minimum(column0 + tl.arange(0, COLUMNS), N_t - 1)
        column_lse = tl.load(columns + at_column)
        column_grad = tl.load(grad_columns + at_column) * unit
        # No logit exceeds the log-sum-exp of its row or of its column.
        peak = tl.minimum(tl.max(row_lse, 0), tl.max(column_lse, 0))
        if peak - tl.minimum(tl.min(row_lse, 0), tl.min(column_lse, 0)) <= _BACKWARD_RANGE:
            row_weight = row_grad * tl.exp2((peak - row_lse) * _LOG2_E)
            column_weight = column_grad * tl.exp2((peak - column_lse) * _LOG2_E)
            w = tl.exp2((x * factor - peak) * _LOG2_E) * (row_weight[:, None] + column_weight[None, :])
        else:
            # Two exponentials of the logit would keep it in registers beside x, and some registers spill. So the larger
            # one is computed, and how much smaller the other is.
            w = tl.exp2((x * factor - tl.minimum(row_lse[:, None], column_lse[None, :])) * _LOG2_E)
            distance = row_lse[:, None] - column_lse[None, :]
            ratio = tl.exp2(-tl.abs(distance) * _LOG2_E)
            row_is_larger = row_grad[:, None] + ratio * column_grad[None, :]
            w *= tl.where(distance < 0, row_is_larger, ratio * row_grad[:, None] + column_grad[None, :])
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    row_ok = row0 + row < N_a
    if positive is not None:
        positive_column = tl.load(positive + row0 + row, mask=row_ok, other=-1) - first_column - column0
        positive_grad = tl.load(grad_positive + row0 + row, mask=row_ok, other=0.0) * unit
        w += tl.where(positive_column.to(tl.int32)[:, None] == column[None, :], positive_grad[:, None], 0.0)
    ok = row_ok[:, None] & (column0 + column < N_t)[None, :]
    tl.store(scale_parts + tl.program_id(0), scalar_sum(tl.sum(tl.where(ok, w * x, 0.0), 1)))
    store_weights(weights, w, row0, column0, N_a, stride, ROWS, COLUMNS)
