"""L2 normalization of rows and its gradient in Triton; one pass over memory for up to 1,024 channels."""

import triton
import triton.language as tl
from torch import Tensor

from atk.kernels.launch import UNFUSED, cdiv, next_power_of_two, on_device
from atk.kernels.pack import as_bytes

_MIN_NORM = tl.constexpr(1e-12)  # rows with a smaller norm become 0


@triton.jit(do_not_specialize=["T"])
def normalize_kernel(rows, mask, unit, inverse_norm, T, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """unit = rows / ||rows||. A program normalizes ROWS rows, BLOCK_D channels at a time."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = r < T
    if mask is not None:
        valid = tl.load(mask + r, mask=valid, other=0) != 0
    squares = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        x = tl.load(rows + r[:, None] * D + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0)
        squares += x.to(tl.float32) * x.to(tl.float32)
    norm = tl.sqrt_rn(tl.sum(squares, 1))
    inverse = tl.where(norm < _MIN_NORM, 0.0, 1.0 / norm)  # a NaN norm gives NaN
    tl.store(inverse_norm + r, inverse, mask=r < T)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        offsets = r[:, None] * D + d[None, :]
        x = tl.load(rows + offsets, mask=valid[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        small = (norm < _MIN_NORM)[:, None]
        value = tl.where(small, 0.0, x * inverse[:, None]).to(unit.dtype.element_ty)
        tl.store(unit + offsets, value, mask=(r < T)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["T"])
def normalize_backward_kernel(grad, unit, inverse_norm, grad_rows, T, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """grad_rows = inverse_norm * (grad - <grad, unit> unit), and 0 where inverse_norm is 0."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inverse = tl.load(inverse_norm + r, mask=r < T, other=0.0)
    nonzero = inverse != 0
    products = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        offsets = r[:, None] * D + d[None, :]
        ok = nonzero[:, None] & (d < D)[None, :]
        g = tl.load(grad + offsets, mask=ok, other=0.0).to(tl.float32)
        products += g * tl.load(unit + offsets, mask=ok, other=0.0).to(tl.float32)
    projection = tl.sum(products, 1)[:, None]
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        offsets = r[:, None] * D + d[None, :]
        ok = nonzero[:, None] & (d < D)[None, :]
        g = tl.load(grad + offsets, mask=ok, other=0.0).to(tl.float32)
        value = inverse[:, None] * (g - projection * tl.load(unit + offsets, mask=ok, other=0.0).to(tl.float32))
        tl.store(grad_rows + offsets, value.to(grad_rows.dtype.element_ty), mask=(r < T)[:, None] & (d < D)[None, :])


def normalize_rows(rows: Tensor, mask: Tensor | None, unit: Tensor, inverse_norm: Tensor) -> None:
    """Writes unit = rows / ||rows|| and inverse_norm = 1 / ||rows||. Norms are computed in float32.

    Masked rows and rows with a norm below 1e-12 give zeros in both outputs. NaN in a row gives NaN in both.

    Args:
        rows: [T, D] float32, bfloat16, or float16, contiguous.
        mask: [T] bool, True = valid. None: every row is valid.
        unit: output, [T, D] in the dtype of `rows`, contiguous.
        inverse_norm: output, [T] float32.
    """
    T, D = rows.shape
    launch = normalize_launch(D)
    with on_device(rows.device):
        normalize_kernel[(cdiv(T, launch["ROWS"]),)](
            rows, None if mask is None else as_bytes(mask), unit, inverse_norm, T, D, **launch, **UNFUSED
        )


def normalize_rows_backward(grad: Tensor, unit: Tensor, inverse_norm: Tensor, grad_rows: Tensor) -> None:
    """Writes grad_rows = inverse_norm * (grad - <grad, unit> unit), and 0 where inverse_norm is 0.

    Args:
        grad: [T, D] float32, bfloat16, or float16, contiguous; the gradient of `unit`.
        unit: [T, D] of the same dtype, contiguous, as written by `normalize_rows`.
        inverse_norm: [T] float32, as written by `normalize_rows`.
        grad_rows: output, [T, D] of the same dtype, contiguous. Dot products accumulate in float32.
    """
    T, D = grad.shape
    launch = normalize_launch(D)
    with on_device(grad.device):
        normalize_backward_kernel[(cdiv(T, launch["ROWS"]),)](
            grad, unit, inverse_norm, grad_rows, T, D, **launch, **UNFUSED
        )


def normalize_launch(D: int) -> dict[str, int]:
    """Compile-time arguments of both kernels.

    A program handles up to 4,096 elements at a time, or 512 of unaligned rows, which need an address per element: 1,024
    spill on sm_100 (Triton 3.6).
    """
    block = min(1024, next_power_of_two(D))
    return {"ROWS": max(1, min(64, (4096 if D % 16 == 0 else 512) // block)), "BLOCK_D": block}
