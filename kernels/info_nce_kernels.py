"""The kernels of streaming InfoNCE (3.3)-(3.5): log-sum-exp of logits in both directions, and their gradient by tiles.

Shapes: audio [N_a, D], text [N_t, D], logits S = scale * X with X = audio @ text^T, never held whole. D is that of
packed rows: a multiple of CHANNELS. A tile is ROWS clips by COLUMNS captions; rows and columns beyond the last repeat
it, so they change no maximum, and are left out of sums and stores. Sums run in a fixed order: results repeat bit for
bit. Where the logits of a whole tile lie near each other, one exponential of an element serves both directions.
"""

import math

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(math.log2(math.e))
_LARGEST = tl.constexpr(3.4028234663852886e38)  # in place of infinite maxima: inf - inf would be NaN
# Of e^x in one tile: beyond, what the exponential flushes to 0 could show in a sum (forward), or a weight (backward).
_FORWARD_RANGE = tl.constexpr(64.0)
_BACKWARD_RANGE = tl.constexpr(55.0)
_WEIGHT_RANGE = tl.constexpr(2.0**14)  # the largest weight: what half precision flushes to 0 is 2^-38 of it


@triton.jit
def _products(
    audio, text, row0, column0, N_a, N_t, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr
):
    """X [ROWS, COLUMNS] of the tile at row0, column0."""
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
    """Infinities as the largest numbers."""
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

    row_parts [parts of the captions, N_a], column_parts [tiles of clips, N_t] (None: rows only), both float32. Programs
    that run at the same time share GROUP tiles of clips, which stay in the L2 cache.
    """
    row_tiles, column_tiles = tl.cdiv(N_a, ROWS), tl.cdiv(N_t, COLUMNS)
    members = GROUP * tl.cdiv(column_tiles, span)
    first = tl.program_id(0) // members * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    row_tile = first + tl.program_id(0) % members % height
    part = tl.program_id(0) % members // height
    row0 = row_tile * ROWS
    row = row0 + tl.arange(0, ROWS)
    factor = tl.load(scale).to(tl.float32)
    k = factor * _LOG2_E
    upward = factor >= 0  # the largest logit is the largest product, or the smallest one
    peak = tl.full((ROWS,), 0.0, tl.float32) + tl.where(upward, -_LARGEST, _LARGEST)
    total = tl.zeros((ROWS,), tl.float32)
    for tile in range(part * span, tl.minimum((part + 1) * span, column_tiles)):
        column0 = tile * COLUMNS
        column = column0 + tl.arange(0, COLUMNS)
        x = _products(audio, text, row0, column0, N_a, N_t, D, ROWS, COLUMNS, CHANNELS)
        high, low = tl.max(x, 1), tl.min(x, 1)
        row_peak = _bounded(tl.where(upward, high, low))
        if column_parts is None:
            e = tl.exp2((x - row_peak[:, None]) * k)
            row_total = tl.sum(tl.where((column < N_t)[None, :], e, 0.0), 1)
        else:
            most, least = tl.max(high, 0), tl.min(low, 0)
            near = (most - least) * tl.abs(factor) <= _FORWARD_RANGE
            if near & (row0 + ROWS <= N_a) & (column0 + COLUMNS <= N_t):
                shared = tl.where(upward, most, least)
                e = tl.exp2((x - shared) * k)
                row_peak = tl.zeros((ROWS,), tl.float32) + shared
                row_total = tl.sum(e, 1)
                column_lse = _log_sum(shared, tl.sum(e, 0), factor)
            else:
                e = tl.exp2((x - row_peak[:, None]) * k)
                row_total = tl.sum(tl.where((column < N_t)[None, :], e, 0.0), 1)
                column_peak = _bounded(tl.where(upward, tl.max(x, 0), tl.min(x, 0)))
                e = tl.exp2((x - column_peak[None, :]) * k)
                column_lse = _log_sum(column_peak, tl.sum(tl.where((row < N_a)[:, None], e, 0.0), 0), factor)
            tl.store(column_parts + row_tile.to(tl.int64) * N_t + column, column_lse, mask=column < N_t)
        beyond = tl.where(upward, tl.maximum(peak, row_peak), tl.minimum(peak, row_peak))
        total = total * tl.exp2((peak - beyond) * k) + row_total * tl.exp2((row_peak - beyond) * k)
        peak = beyond
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
        beyond = tl.maximum(peak, _bounded(tl.max(value, 0)))
        total = total * tl.exp(peak - beyond) + tl.sum(tl.exp(value - beyond[None, :]), 0)
        peak = beyond
    tl.store(lse + n, peak + tl.log(total), mask=n < N)


@triton.jit(do_not_specialize=["N_a", "N_t", "stride", "first_column"])
def grad_logits_kernel(
    audio, text, scale, rows, columns, grad_rows, grad_columns, positive, grad_positive, largest, weights, scale_parts,
    N_a, N_t, D, stride, first_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """weights = 2^14 / largest * dS, dS = g_rows e^(S - rows) + g_columns e^(S - columns) + g_positive at positives.

    weights [N_a, stride], of the inputs' dtype; `largest` is a bound on |dS|, so that half precision neither overflows
    nor loses small ones. scale_parts [tiles]: the sum over the tile of X * weights, float32. `columns` and
    `grad_columns` None: rows only. Caption `first_column + j` is column j to `positive` [N_a], int64; None: no
    positives.
    """
    column_tiles = tl.cdiv(N_t, COLUMNS)
    row0 = tl.program_id(0) // column_tiles * ROWS
    column0 = tl.program_id(0) % column_tiles * COLUMNS
    x = _products(audio, text, row0, column0, N_a, N_t, D, ROWS, COLUMNS, CHANNELS)
    factor = tl.load(scale).to(tl.float32)
    unit = _WEIGHT_RANGE / tl.load(largest)
    at_row = tl.minimum(row0 + tl.arange(0, ROWS), N_a - 1)
    row_lse = tl.load(rows + at_row)
    row_grad = tl.load(grad_rows + at_row) * unit
    if columns is None:
        w = tl.exp2((x * factor - row_lse[:, None]) * _LOG2_E) * row_grad[:, None]
    else:
        at_column = tl.minimum(column0 + tl.arange(0, COLUMNS), N_t - 1)
        column_lse = tl.load(columns + at_column)
        column_grad = tl.load(grad_columns + at_column) * unit
        # No logit is beyond the log-sum-exp of its row, or of its column.
        peak = tl.minimum(tl.max(row_lse, 0), tl.max(column_lse, 0))
        if peak - tl.minimum(tl.min(row_lse, 0), tl.min(column_lse, 0)) <= _BACKWARD_RANGE:
            row_weight = row_grad * tl.exp2((peak - row_lse) * _LOG2_E)
            column_weight = column_grad * tl.exp2((peak - column_lse) * _LOG2_E)
            w = tl.exp2((x * factor - peak) * _LOG2_E) * (row_weight[:, None] + column_weight[None, :])
        else:
            w = tl.exp2((x * factor - row_lse[:, None]) * _LOG2_E) * row_grad[:, None]
            w += tl.exp2((x * factor - column_lse[None, :]) * _LOG2_E) * column_grad[None, :]
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    row_ok = row0 + row < N_a
    if positive is not None:
        wanted = tl.load(positive + row0 + row, mask=row_ok, other=-1) - first_column - column0
        share = tl.load(grad_positive + row0 + row, mask=row_ok, other=0.0) * unit
        w += tl.where(wanted.to(tl.int32)[:, None] == column[None, :], share[:, None], 0.0)
    ok = row_ok[:, None] & (column0 + column < N_t)[None, :]
    weights += tl.cast(row0, tl.int64) * stride + column0
    tl.store(weights + (row[:, None] * stride + column[None, :]), w.to(weights.dtype.element_ty), mask=ok)
    tl.store(scale_parts + tl.program_id(0), tl.sum(tl.sum(tl.where(ok, w * x, 0.0), 1), 0))
