"""Sum of the parts of a gradient, in order and in float32."""

import triton
import triton.language as tl
from torch import Tensor

from atk.kernels.launch import cdiv, next_power_of_two
from atk.kernels.pack import as_bytes


@triton.jit(do_not_specialize=["parts", "T"])
def sum_parts_kernel(partial, mask, out, parts, T, D, D_out, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """out [T, D_out] = sum of the first D_out channels of partial [parts, T, D], 0 where `mask` [T] is 0."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    valid = r < T
    if mask is not None:
        valid = tl.load(mask + r, mask=valid, other=0) != 0
    total = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for part in range(parts):
        at = partial + (tl.cast(part, tl.int64) * T + r)[:, None] * D + d[None, :]
        total += tl.load(at, mask=valid[:, None] & (d < D_out)[None, :], other=0.0)
    ok = (r < T)[:, None] & (d < D_out)[None, :]
    tl.store(out + r[:, None] * D_out + d[None, :], total.to(out.dtype.element_ty), mask=ok)


def sum_parts(partial: Tensor, mask: Tensor | None, out: Tensor) -> None:
    """Writes out [T, D_out] = sum over parts of the first D_out channels of partial [parts, T, D] float32.

    Rows where `mask` [T] bool is False become 0, whatever `partial` holds there.
    """
    parts, T, D = partial.shape
    launch = sum_parts_launch(D)
    grid = cdiv(T, launch["ROWS"]), cdiv(out.shape[1], launch["BLOCK_D"])
    mask = None if mask is None else as_bytes(mask)
    sum_parts_kernel[grid](partial, mask, out, parts, T, D, out.shape[1], **launch)


def sum_parts_launch(D: int) -> dict[str, int]:
    """Compile-time arguments of `sum_parts_kernel`: few rows per program, since there are few of them if parts > 1."""
    return {"ROWS": 4, "BLOCK_D": min(256, next_power_of_two(D))}
