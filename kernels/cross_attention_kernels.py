"""The kernels of the attention inside the cross-attention mask (4.11): online softmax, gradients from lse, no atomics.

Shapes: N clips of L_a frames, L_ref reference frames (keys), D channels, H heads; head h owns channels h * WIDTH to
(h + 1) * WIDTH of q, k, v and attended, each [N, L, D]; lse and delta are [N, H, L_a] float32, in binary logarithms.
Logits are in binary logarithms too, so that the softmax is a power of two. HEAD is WIDTH padded to a power of two.

A program owns ROWS queries (`attend`, `grad_query`) or keys (`grad_key`) of one head of one clip, streams the other
side in tiles of COLUMNS, and adds up in a fixed order: results repeat bit for bit. Products over the channels of a head
take CHANNELS at a time: all of them on the matrix units, few in float32, which holds whole operand rows in registers.

Shared arguments: `key_mask` [N, L_ref] bytes, `key_end` [N] one past the last valid key; both None: all are valid.
"""

import math

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def _load(base, row_ok, D, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """ROWS rows of CHANNELS channels at stride D, 0 where not `row_ok` and from channel WIDTH on."""
    d = tl.arange(0, CHANNELS)
    ok = row_ok[:, None]
    if WIDTH < CHANNELS:
        ok = ok & (d < WIDTH)[None, :]
    return tl.load(base + tl.arange(0, ROWS)[:, None] * D + d[None, :], mask=ok, other=0.0)


@triton.jit
def _store(base, value, row_ok, D, WIDTH: tl.constexpr, ROWS: tl.constexpr, HEAD: tl.constexpr):
    """The counterpart of `_load`."""
    d = tl.arange(0, HEAD)
    ok = row_ok[:, None] & (d < WIDTH)[None, :]
    tl.store(base + tl.arange(0, ROWS)[:, None] * D + d[None, :], value.to(base.dtype.element_ty), mask=ok)


@triton.jit
def _products(
    a, a_base, a_ok, b_base, b_ok, D,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A @ B^T [ROWS, COLUMNS] over the channels of a head; `a` is the tile at `a_base`, used when one chunk is all."""
    if CHANNELS == HEAD:
        total = tl.dot(a, tl.trans(_load(b_base, b_ok, D, WIDTH, COLUMNS, HEAD)), input_precision="ieee")
    else:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for d0 in tl.range(0, WIDTH, CHANNELS, num_stages=1):
            d = d0 + tl.arange(0, CHANNELS)
            d_ok = (d < WIDTH)[None, :]
            a_at = a_base + tl.arange(0, ROWS)[:, None] * D + d[None, :]
            b_at = b_base + tl.arange(0, COLUMNS)[:, None] * D + d[None, :]
            a_part = tl.load(a_at, mask=a_ok[:, None] & d_ok, other=0.0)
            b_part = tl.load(b_at, mask=b_ok[:, None] & d_ok, other=0.0)
            total = tl.dot(a_part, tl.trans(b_part), total, input_precision="ieee")
    return total


@triton.jit
def _tile(L, H, ROWS: tl.constexpr):
    """First row of this program's tile, its clip and its head."""
    tiles = tl.cdiv(L, ROWS)
    pair = tl.program_id(0) // tiles
    return tl.program_id(0) % tiles * ROWS, (pair // H).to(tl.int64), (pair % H).to(tl.int64)


@triton.jit
def _valid_keys(key_mask, clip, keys, end, L_ref):
    """Which of these keys are valid."""
    valid = keys < end
    if key_mask is not None:
        valid = tl.load(key_mask + clip * L_ref + keys, mask=valid, other=0) != 0
    return valid


@triton.jit
def key_count(key_end, clip, L_ref):
    """How many keys to look at: up to the last valid one, 0 when there is none."""
    return L_ref if key_end is None else tl.load(key_end + clip)


@triton.jit(do_not_specialize=["L_ref"])
def key_end_kernel(key_mask, key_end, L_ref, SIZE: tl.constexpr):
    """key_end[i] = one past the last valid key of clip i, 0 when it has none."""
    clip = tl.program_id(0).to(tl.int64)
    last = tl.zeros((SIZE,), tl.int32)
    for start in range(0, L_ref, SIZE):
        keys = start + tl.arange(0, SIZE)
        valid = tl.load(key_mask + clip * L_ref + keys, mask=keys < L_ref, other=0) != 0
        last = tl.where(valid, keys + 1, last)
    tl.store(key_end + clip, tl.max(last, 0))


@triton.jit(do_not_specialize=["L_a", "L_ref", "H"])
def attend_kernel(
    q, k, v, key_mask, key_end, attended, lse, L_a, L_ref, D, H,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """attended = softmax(q k^T / sqrt(WIDTH)) v for each head, and lse = log2 of the softmax's denominator.

    Clips without a valid key: attended 0, lse -inf.
    """
    start, clip, head = _tile(L_a, H, ROWS)
    row = start + tl.arange(0, ROWS)
    row_ok = row < L_a
    end = key_count(key_end, clip, L_ref)
    of_tile = (clip * L_a + start) * D + head * WIDTH
    q += of_tile
    queries = _load(q, row_ok, D, WIDTH, ROWS, HEAD)  # [ROWS, HEAD]
    of_keys = clip * L_ref * D + head * WIDTH
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    denominator = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, HEAD), tl.float32)
    for key0 in range(0, end, COLUMNS):
        keys = key0 + tl.arange(0, COLUMNS)
        valid = _valid_keys(key_mask, clip, keys, end, L_ref)
        at = of_keys + tl.cast(key0, tl.int64) * D
        logits = _products(queries, q, row_ok, k + at, keys < end, D, WIDTH, HEAD, ROWS, COLUMNS, CHANNELS)
        logits = tl.where(valid[None, :], logits * (_LOG2_E / WIDTH**0.5), float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # no valid key yet: -inf - -inf would be NaN
        weights = tl.exp2(logits - shift[:, None])
        decay = tl.exp2(peak - shift)
        denominator = denominator * decay + tl.sum(weights, 1)
        values = _load(v + at, valid, D, WIDTH, COLUMNS, HEAD)
        total = tl.dot(weights.to(v.dtype.element_ty), values, total * decay[:, None], input_precision="ieee")
        peak = higher
    mean = tl.where(end > 0, total / denominator[:, None], 0.0)
    _store(attended + of_tile, mean, row_ok, D, WIDTH, ROWS, HEAD)
    tl.store(lse + (clip * H + head) * L_a + row, peak + tl.log2(denominator), mask=row_ok)


@triton.jit(do_not_specialize=["L_a", "L_ref", "H"])
def grad_query_kernel(
    grad, q, k, v, key_mask, key_end, attended, lse, delta, grad_q, L_a, L_ref, D, H,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """grad_q = dS k / sqrt(WIDTH) with dS = P * (grad v^T - delta), P = 2^(logits - lse); `grad` is that of attended.

    Also writes delta = rowsum(grad * attended), for `grad_key_kernel`.
    """
    start, clip, head = _tile(L_a, H, ROWS)
    row = start + tl.arange(0, ROWS)
    row_ok = row < L_a
    end = key_count(key_end, clip, L_ref)
    of_tile = (clip * L_a + start) * D + head * WIDTH
    q, grad = q + of_tile, grad + of_tile
    queries = _load(q, row_ok, D, WIDTH, ROWS, HEAD)
    grads = _load(grad, row_ok, D, WIDTH, ROWS, HEAD)
    outputs = _load(attended + of_tile, row_ok, D, WIDTH, ROWS, HEAD)
    along = tl.sum(grads.to(tl.float32) * outputs.to(tl.float32), 1)
    of_rows = (clip * H + head) * L_a + row
    tl.store(delta + of_rows, along, mask=row_ok)
    scale = tl.load(lse + of_rows, mask=row_ok, other=0.0)
    of_keys = clip * L_ref * D + head * WIDTH
    total = tl.zeros((ROWS, HEAD), tl.float32)
    for key0 in range(0, end, COLUMNS):
        keys = key0 + tl.arange(0, COLUMNS)
        valid = _valid_keys(key_mask, clip, keys, end, L_ref)
        at = of_keys + tl.cast(key0, tl.int64) * D
        logits = _products(queries, q, row_ok, k + at, valid, D, WIDTH, HEAD, ROWS, COLUMNS, CHANNELS)
        weights = tl.exp2(logits * (_LOG2_E / WIDTH**0.5) - scale[:, None])
        inner = _products(grads, grad, row_ok, v + at, keys < end, D, WIDTH, HEAD, ROWS, COLUMNS, CHANNELS)
        grad_logits = tl.where(valid[None, :], weights * (inner - along[:, None]), 0.0)
        rows = _load(k + at, valid, D, WIDTH, COLUMNS, HEAD)
        total = tl.dot(grad_logits.to(k.dtype.element_ty), rows, total, input_precision="ieee")
    _store(grad_q + of_tile, total * (1 / WIDTH**0.5), row_ok, D, WIDTH, ROWS, HEAD)


@triton.jit(do_not_specialize=["L_a", "L_ref", "H"])
def grad_key_kernel(
    grad, q, k, v, key_mask, key_end, lse, delta, grad_k, grad_v, L_a, L_ref, D, H,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """grad_v = P^T grad, grad_k = dS^T q / sqrt(WIDTH), with P and dS as in `grad_query_kernel`; 0 at padded keys."""
    start, clip, head = _tile(L_ref, H, ROWS)
    end = key_count(key_end, clip, L_ref)
    keys = start + tl.arange(0, ROWS)
    of_tile = (clip * L_ref + start) * D + head * WIDTH
    k, v = k + of_tile, v + of_tile
    rows = _load(k, keys < end, D, WIDTH, ROWS, HEAD)
    values = _load(v, keys < end, D, WIDTH, ROWS, HEAD)
    of_clip = clip * L_a * D + head * WIDTH
    of_rows = (clip * H + head) * L_a
    total_k = tl.zeros((ROWS, HEAD), tl.float32)
    total_v = tl.zeros((ROWS, HEAD), tl.float32)
    steps = tl.where(start < end, L_a, 0)  # a tile of padding visits no query
    for row0 in range(0, steps, COLUMNS):
        row = row0 + tl.arange(0, COLUMNS)
        row_ok = row < L_a
        at = of_clip + tl.cast(row0, tl.int64) * D
        logits = _products(rows, k, keys < end, q + at, row_ok, D, WIDTH, HEAD, ROWS, COLUMNS, CHANNELS)
        scale = tl.load(lse + of_rows + row, mask=row_ok, other=float("inf"))  # no weight beyond the last query
        weights = tl.exp2(logits * (_LOG2_E / WIDTH**0.5) - scale[None, :])  # [ROWS, COLUMNS], keys by queries
        grads = _load(grad + at, row_ok, D, WIDTH, COLUMNS, HEAD)
        total_v = tl.dot(weights.to(grad.dtype.element_ty), grads, total_v, input_precision="ieee")
        inner = _products(values, v, keys < end, grad + at, row_ok, D, WIDTH, HEAD, ROWS, COLUMNS, CHANNELS)
        along = tl.load(delta + of_rows + row, mask=row_ok, other=0.0)
        grad_logits = weights * (inner - along[None, :])
        queries = _load(q + at, row_ok, D, WIDTH, COLUMNS, HEAD)
        total_k = tl.dot(grad_logits.to(q.dtype.element_ty), queries, total_k, input_precision="ieee")
    # Rows of padded keys hold whatever k and v held there.
    valid = _valid_keys(key_mask, clip, keys, end, L_ref)[:, None]
    at_k, at_v = grad_k + of_tile, grad_v + of_tile
    _store(at_k, tl.where(valid, total_k * (1 / WIDTH**0.5), 0.0), keys < L_ref, D, WIDTH, ROWS, HEAD)
    _store(at_v, tl.where(valid, total_v, 0.0), keys < L_ref, D, WIDTH, ROWS, HEAD)
