"""Gate kernels of the cross-attention difference (4.12): output projection and gating in one pass, and the gradient.

Shapes: N clips of L_a frames, D channels. For clips without a valid key (`key_end` is 0, or it is None
and L_ref is 0), the result is the source itself.
"""

import triton
import triton.language as tl

from atk.kernels.cross_attention_kernels import key_count


@triton.jit(do_not_specialize=["T", "L_a", "L_ref"])
def gate_kernel(
    attended, weight, bias, source, key_end, out, gate, T, L_a, L_ref, D,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """gate = sigmoid(-(attended @ weight^T + bias)) and out = gate * source, over T = N * L_a rows.

    A program computes a tile of ROWS rows x COLUMNS channels.
    """
    columns = tl.cdiv(D, COLUMNS)
    start = tl.program_id(0) // columns * ROWS
    c = tl.program_id(0) % columns * COLUMNS + tl.arange(0, COLUMNS)
    row = start + tl.arange(0, ROWS)
    lane = tl.arange(0, ROWS)[:, None] * D
    attended += start.to(tl.int64) * D
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for d0 in range(0, D, CHANNELS):
        d = d0 + tl.arange(0, CHANNELS)
        d_ok = (d < D)[None, :]
        rows = tl.load(attended + lane + d[None, :], mask=(row < T)[:, None] & d_ok, other=0.0)
        weights = tl.load(weight + c[:, None] * D + d[None, :], mask=(c < D)[:, None] & d_ok, other=0.0)
        total = tl.dot(rows, tl.trans(weights), total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    keys = tl.zeros((ROWS,), tl.int32) + L_ref
    if key_end is not None:
        keys = tl.load(key_end + row // L_a, mask=row < T, other=0)
    gate_tile = tl.where((keys > 0)[:, None], tl.sigmoid(-total), 1.0)
    offsets = start.to(tl.int64) * D + lane + c[None, :]
    ok = (row < T)[:, None] & (c < D)[None, :]
    out_tile = tl.load(source + offsets, mask=ok, other=0.0).to(tl.float32) * gate_tile
    tl.store(gate + offsets, gate_tile.to(gate.dtype.element_ty), mask=ok)
    tl.store(out + offsets, out_tile.to(out.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["L_a", "L_ref"])
def gate_backward_kernel(grad, source, gate, key_end, grad_source, grad_sim, L_a, L_ref, D, SIZE: tl.constexpr):
    """grad_source = grad * gate and grad_sim = -grad * source * gate * (1 - gate).

    Clips without a valid key get grad_source = grad (their gate is 1) and grad_sim = 0.
    """
    size = L_a * D
    tiles = tl.cdiv(size, SIZE)
    clip = (tl.program_id(0) // tiles).to(tl.int64)
    element = tl.program_id(0) % tiles * SIZE + tl.arange(0, SIZE)
    offsets = clip * L_a * D + element
    ok = element < size
    has_keys = key_count(key_end, clip, L_ref) > 0
    g = tl.load(grad + offsets, mask=ok, other=0.0).to(tl.float32)
    gate_value = tl.load(gate + offsets, mask=ok, other=0.0).to(tl.float32)
    x = tl.load(source + offsets, mask=ok, other=0.0).to(tl.float32)
    tl.store(grad_source + offsets, (g * gate_value).to(grad_source.dtype.element_ty), mask=ok)
    sim = tl.where(has_keys, -g * x * gate_value * (1 - gate_value), 0.0)
    tl.store(grad_sim + offsets, sim.to(grad_sim.dtype.element_ty), mask=ok)
