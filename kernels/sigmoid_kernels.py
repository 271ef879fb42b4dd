"""Kernels of the streaming sigmoid loss (Zhai et al. 2023): the summed loss of each clip, and the logits' gradients.

Shapes: audio [N_a, D], text [N_t, D]; logits S = scale * X + bias with X = audio @ text^T, computed one tile at a time
as in `info_nce_kernels`. The positive of clip i is caption `positive[i]` [N_a] int64, where caption `first_column + j`
is column j; any other value means none, and a None tensor that no clip has one. With T = -S for positives and S
elsewhere, the loss of a pair is softplus(T), and its gradient with respect to S is sigmoid(T), negative for positives.
"""

import math

import triton
import triton.language as tl

from atk.kernels.info_nce_kernels import products, store_weights
from atk.kernels.scalars import scalar_sum

_LOG2_E = tl.constexpr(math.log2(math.e))
_MAX_WEIGHT = tl.constexpr(2.0**14)  # half precision flushes weights below 2^-38 of this to 0


@triton.jit
def _log1p(u):
    """log(1 + u) for u in [0, 1], to 2e-7 of its value also for tiny u: a minimax polynomial for log(1 + u) / u."""
    p = 0.005232669413089752 * u - 0.029505260288715363
    p = p * u + 0.07822622358798981
    p = p * u - 0.13663294911384583
    p = p * u + 0.19106046855449677
    p = p * u - 0.24842998385429382
    p = p * u + 0.33319100737571716
    p = p * u - 0.4999949336051941
    p = p * u + 0.9999999403953552
    return p * u


@triton.jit
def _sigmoid(t):
    """1 / (1 + e^-t); 0 where e^-t overflows."""
    return 1.0 / (1.0 + tl.exp2(-t * _LOG2_E))


@triton.jit
def _is_positive(positive, row, row_ok, first_column, column):
    """Whether each pair [ROWS, COLUMNS] is a positive; `column` counts from `first_column`, a caption."""
    of_row = tl.load(positive + row, mask=row_ok, other=-1) - first_column
    return of_row.to(tl.int32)[:, None] == column[None, :]


@triton.jit(do_not_specialize=["N_a", "N_t", "span"])
def sigmoid_loss_kernel(
    audio, text, scale, bias, positive, loss_parts, N_a, N_t, D, span,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The sum of softplus(T) of each row over `span` tiles of captions.

    loss_parts is [parts of the captions, N_a] float32. Programs are ordered in groups of GROUP tiles of clips, which
    stay in the L2 cache while the group runs.
    """
    row_tiles = tl.cdiv(N_a, ROWS)
    column_tiles = tl.cdiv(N_t, COLUMNS)
    members = GROUP * tl.cdiv(column_tiles, span)
    first = tl.program_id(0) // members * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    row0 = (first + tl.program_id(0) % members % height) * ROWS
    part = tl.program_id(0) % members // height
    row = row0 + tl.arange(0, ROWS)
    factor = tl.load(scale).to(tl.float32)
    shift = tl.load(bias).to(tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for tile in range(part * span, tl.minimum((part + 1) * span, column_tiles)):
        column0 = tile * COLUMNS
        column = column0 + tl.arange(0, COLUMNS)
        t = products(audio, text, row0, column0, N_a, N_t, D, ROWS, COLUMNS, CHANNELS) * factor + shift
        if positive is not None:
            t = tl.where(_is_positive(positive, row, row < N_a, 0, column), -t, t)
        loss = tl.maximum(t, 0.0) + _log1p(tl.exp2(-tl.abs(t) * _LOG2_E))
        total += tl.sum(tl.where((column < N_t)[None, :], loss, 0.0), 1)
    tl.store(loss_parts + part.to(tl.int64) * N_a + row, total, mask=row < N_a)


@triton.jit(do_not_specialize=["N_a", "N_t", "first_column"])
def sigmoid_grad_kernel(
    audio, text, scale, bias, positive, grad_losses, largest, weights, scale_parts, bias_parts,
    N_a, N_t, D, stride, first_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """weights = 2^14 / largest * dS, dS = grad_losses_i sigmoid(T_ij), negative for positives.

    `weights` is [N_a, stride] of the dtype of the inputs (`store_weights`). `largest` is an upper bound on |dS|, so
    that weights neither overflow nor underflow in half precision. `scale_parts` and `bias_parts` [tiles] float32 are
    the sums of X * weights and of weights over each tile.
    """
    column_tiles = tl.cdiv(N_t, COLUMNS)
    row0 = tl.program_id(0) // column_tiles * ROWS
    column0 = tl.program_id(0) % column_tiles * COLUMNS
    x = products(audio, text, row0, column0, N_a, N_t, D, ROWS, COLUMNS, CHANNELS)
    t = x * tl.load(scale).to(tl.float32) + tl.load(bias).to(tl.float32)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    row_ok = row0 + row < N_a
    row_grad = tl.load(grad_losses + row0 + row, mask=row_ok, other=0.0) * (_MAX_WEIGHT / tl.load(largest))
    if positive is None:
        w = _sigmoid(t)
    else:
        is_positive = _is_positive(positive, row0 + row, row_ok, first_column, column0 + column)
        w = _sigmoid(tl.where(is_positive, -t, t))
        w = tl.where(is_positive, -w, w)
    w *= row_grad[:, None]
    ok = row_ok[:, None] & (column0 + column < N_t)[None, :]
    tl.store(scale_parts + tl.program_id(0), scalar_sum(tl.sum(tl.where(ok, w * x, 0.0), 1)))
    tl.store(bias_parts + tl.program_id(0), scalar_sum(tl.sum(tl.where(ok, w, 0.0), 1)))
    store_weights(weights, w, row0, column0, N_a, stride, ROWS, COLUMNS)
