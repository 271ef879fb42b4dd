"""Attention kernels of the cross-attention difference (4.11): online softmax, and gradients recomputed from the lse.

Shapes: N clips of L_a frames, L_ref reference frames (the keys), D channels, H heads. Head h is channels h * WIDTH to
(h + 1) * WIDTH of q, k, v and attended, each [N, L, D]. HEAD is WIDTH padded to a power of two. Logits are scaled by
log2(e) so that the softmax uses powers of two; lse and delta are [N, H, L_a] float32, and lse is a binary logarithm.

A program computes ROWS queries (`attend_kernel`, `grad_query_kernel`) or keys (`grad_key_kernel`) of one head of one
clip. It streams the keys or queries in tiles of COLUMNS and accumulates in a fixed order without atomics, so results
are bitwise reproducible. Products over the channels of a head take CHANNELS at a time: all of them on the matrix units,
a few in float32, where whole operand rows are held in registers.

Shared arguments: `key_mask` [N, L_ref] uint8, `key_end` [N] int32, one past the last valid key. Both None: every key is
valid.
"""

import math

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def _load(base, row_ok, D, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Loads ROWS rows of CHANNELS channels at stride D; 0 where `row_ok` is False, and from channel WIDTH on."""
    d = tl.arange(0, CHANNELS)
    ok = row_ok[:, None]
    if WIDTH < CHANNELS:
        ok = ok & (d < WIDTH)[None, :]
    return tl.load(base + tl.arange(0, ROWS)[:, None] * D + d[None, :], mask=ok, other=0.0)


@triton.jit
def _store(base, value, row_ok, D, WIDTH: tl.constexpr, ROWS: tl.constexpr, HEAD: tl.constexpr):
    """Stores `value` [ROWS, HEAD] at stride D where `row_ok`, up to channel WIDTH."""
    d = tl.arange(0, HEAD)
    ok = row_ok[:, None] & (d < WIDTH)[None, :]
    tl.store(base + tl.arange(0, ROWS)[:, None] * D + d[None, :], value.to(base.dtype.element_ty), mask=ok)


@triton.jit
def _products(
    a, a_base, a_ok, b_base, b_ok, D,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A @ B^T [ROWS, COLUMNS] over the channels of a head. `a` is the tile at `a_base`, used if one chunk covers it."""
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
    clip_head = tl.program_id(0) // tiles
    return tl.program_id(0) % tiles * ROWS, (clip_head // H).to(tl.int64), (clip_head % H).to(tl.int64)


@triton.jit
def _valid_keys(key_mask, clip, keys, end, L_ref):
    """Mask of the valid keys among `keys`."""
    valid = keys < end
    if key_mask is not None:
        valid = tl.load(key_mask + clip * L_ref + keys, mask=valid, other=0) != 0
    return valid


@triton.jit
def key_count(key_end, clip, L_ref):
    """The number of keys to visit: up to the last valid one, 0 if none is valid."""
    return L_ref if key_end is None else tl.load(key_end + clip)


@triton.jit(do_not_specialize=["L_ref"])
def key_end_kernel(key_mask, key_end, L_ref, SIZE: tl.constexpr):
    """key_end[i] = one past the last valid key of clip i, 0 if it has none."""
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

    A clip without a valid key gets attended = 0 and lse = -inf.
    """
    start, clip, head = _tile(L_a, H, ROWS)
    row = start + tl.arange(0, ROWS)
    row_ok = row < L_a
    end = key_count(key_end, clip, L_ref)
    tile_offset = (clip * L_a + start) * D + head * WIDTH
    q += tile_offset
    queries = _load(q, row_ok, D, WIDTH, ROWS, HEAD)  # [ROWS, HEAD]
    keys_offset = clip * L_ref * D + head * WIDTH
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    denominator = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, HEAD), tl.float32)
    for key0 in range(0, end, COLUMNS):
        keys = key0 + tl.arange(0, COLUMNS)
        valid = _valid_keys(key_mask, clip, keys, end, L_ref)
        block_offset = keys_offset + tl.cast(key0, tl.int64) * D
        logits = _products(queries, q, row_ok, k + block_offset, keys < end, D, WIDTH, HEAD, ROWS, COLUMNS, CHANNELS)
        logits = tl.where(valid[None, :], logits * (_LOG2_E / WIDTH**0.5), float("-inf"))
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # before the first valid key, -inf - -inf = NaN
        weights = tl.exp2(logits - shift[:, None])
        decay = tl.exp2(peak - shift)
        denominator = denominator * decay + tl.sum(weights, 1)
        values = _load(v + block_offset, valid, D, WIDTH, COLUMNS, HEAD)
        total = tl.dot(weights.to(v.dtype.element_ty), values, total * decay[:, None], input_precision="ieee")
        peak = new_peak
    mean = tl.where(end > 0, total / denominator[:, None], 0.0)
    _store(attended + tile_offset, mean, row_ok, D, WIDTH, ROWS, HEAD)
    tl.store(lse + (clip * H + head) * L_a + row, peak + tl.log2(denominator), mask=row_ok)


@triton.jit(do_not_specialize=["L_a", "L_ref", "H"])
def grad_query_kernel(
    grad, q, k, v, key_mask, key_end, attended, lse, delta, grad_q, L_a, L_ref, D, H,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """grad_q = dS k / sqrt(WIDTH), with dS = P * (grad v^T - delta) and P = 2^(logits - lse).

    `grad` is the gradient of attended. Also writes delta = rowsum(grad * attended) for `grad_key_kernel`.
    """
    start, clip, head = _tile(L_a, H, ROWS)
    row = start + tl.arange(0, ROWS)
    row_ok = row < L_a
    end = key_count(key_end, clip, L_ref)
    tile_offset = (clip * L_a + start) * D + head * WIDTH
    q += tile_offset
    grad += tile_offset
    queries = _load(q, row_ok, D, WIDTH, ROWS, HEAD)
    grads = _load(grad, row_ok, D, WIDTH, ROWS, HEAD)
    outputs = _load(attended + tile_offset, row_ok, D, WIDTH, ROWS, HEAD)
    delta_rows = tl.sum(grads.to(tl.float32) * outputs.to(tl.float32), 1)
    rows_offset = (clip * H + head) * L_a + row
    tl.store(delta + rows_offset, delta_rows, mask=row_ok)
    lse_rows = tl.load(lse + rows_offset, mask=row_ok, other=0.0)
    keys_offset = clip * L_ref * D + head * WIDTH
    total = tl.zeros((ROWS, HEAD), tl.float32)
    for key0 in range(0, end, COLUMNS):
        keys = key0 + tl.arange(0, COLUMNS)
        valid = _valid_keys(key_mask, clip, keys, end, L_ref)
        block_offset = keys_offset + tl.cast(key0, tl.int64) * D
        logits = _products(queries, q, row_ok, k + block_offset, valid, D, WIDTH, HEAD, ROWS, COLUMNS, CHANNELS)
        weights = tl.exp2(logits * (_LOG2_E / WIDTH**0.5) - lse_rows[:, None])
        inner = _products(grads, grad, row_ok, v + block_offset, keys < end, D, WIDTH, HEAD, ROWS, COLUMNS, CHANNELS)
        grad_logits = tl.where(valid[None, :], weights * (inner - delta_rows[:, None]), 0.0)
        rows = _load(k + block_offset, valid, D, WIDTH, COLUMNS, HEAD)
        total = tl.dot(grad_logits.to(k.dtype.element_ty), rows, total, input_precision="ieee")
    _store(grad_q + tile_offset, total * (1 / WIDTH**0.5), row_ok, D, WIDTH, ROWS, HEAD)


@triton.jit(do_not_specialize=["L_a", "L_ref", "H"])
def grad_key_kernel(
    grad, q, k, v, key_mask, key_end, lse, delta, grad_k, grad_v, L_a, L_ref, D, H,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """grad_v = P^T grad, grad_k = dS^T q / sqrt(WIDTH), with P and dS as in `grad_query_kernel`. 0 at padded keys."""
    start, clip, head = _tile(L_ref, H, ROWS)
    end = key_count(key_end, clip, L_ref)
    keys = start + tl.arange(0, ROWS)
    tile_offset = (clip * L_ref + start) * D + head * WIDTH
    k += tile_offset
    v += tile_offset
    rows = _load(k, keys < end, D, WIDTH, ROWS, HEAD)
    values = _load(v, keys < end, D, WIDTH, ROWS, HEAD)
    clip_offset = clip * L_a * D + head * WIDTH
    rows_offset = (clip * H + head) * L_a
    total_k = tl.zeros((ROWS, HEAD), tl.float32)
    total_v = tl.zeros((ROWS, HEAD), tl.float32)
    steps = tl.where(start < end, L_a, 0)  # skip tiles of padded keys only
    for row0 in range(0, steps, COLUMNS):
        row = row0 + tl.arange(0, COLUMNS)
        row_ok = row < L_a
        block_offset = clip_offset + tl.cast(row0, tl.int64) * D
        logits = _products(rows, k, keys < end, q + block_offset, row_ok, D, WIDTH, HEAD, ROWS, COLUMNS, CHANNELS)
        lse_rows = tl.load(lse + rows_offset + row, mask=row_ok, other=float("inf"))  # weight 0 past the last query
        weights = tl.exp2(logits * (_LOG2_E / WIDTH**0.5) - lse_rows[None, :])  # [ROWS, COLUMNS], keys by queries
        grads = _load(grad + block_offset, row_ok, D, WIDTH, COLUMNS, HEAD)
        total_v = tl.dot(weights.to(grad.dtype.element_ty), grads, total_v, input_precision="ieee")
        inner = _products(values, v, keys < end, grad + block_offset, row_ok, D, WIDTH, HEAD, ROWS, COLUMNS, CHANNELS)
        delta_rows = tl.load(delta + rows_offset + row, mask=row_ok, other=0.0)
        grad_logits = weights * (inner - delta_rows[None, :])
        queries = _load(q + block_offset, row_ok, D, WIDTH, COLUMNS, HEAD)
        total_k = tl.dot(grad_logits.to(q.dtype.element_ty), queries, total_k, input_precision="ieee")
    # Padded keys accumulated arbitrary values from k and v.
    valid = _valid_keys(key_mask, clip, keys, end, L_ref)[:, None]
    grad_k += tile_offset
    grad_v += tile_offset
    _store(grad_k, tl.where(valid, total_k * (1 / WIDTH**0.5), 0.0), keys < L_ref, D, WIDTH, ROWS, HEAD)
    _store(grad_v, tl.where(valid, total_v, 0.0), keys < L_ref, D, WIDTH, ROWS, HEAD)
