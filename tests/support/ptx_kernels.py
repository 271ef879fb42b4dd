"""Small Triton kernels for the tests of ptx_machine, and edits that break their PTX."""

import re

import pytest
import torch
import triton
import triton.language as tl
from ptx_machine import active

BOTH = pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
LOCKSTEP = pytest.mark.parametrize("lockstep", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
MODES = pytest.mark.parametrize(
    "mode",
    [
        {"lockstep": True},
        *(
            pytest.param(mode, marks=pytest.mark.exhaustive)
            for mode in ({}, {"eager": True, "seed": 1}, {"lockstep": True, "eager": True})
        ),
    ],
    ids=str,
)


@triton.jit
def add_kernel(a, b, out, n, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + at, tl.load(a + at, mask=at < n) + tl.load(b + at, mask=at < n), mask=at < n)


@triton.jit
def reduce_kernel(x, total, largest, where, summed, n, ROWS: tl.constexpr, SIZE: tl.constexpr):
    row = tl.arange(0, ROWS)
    at = tl.arange(0, SIZE)[None, :]
    value = tl.load(x + row[:, None] * n + at, mask=at < n, other=-float("inf"))
    tl.store(largest + row, tl.max(value, 1))
    tl.store(where + row, tl.argmax(value, 1))
    kept = tl.where(at < n, value, 0.0)
    tl.store(total + row, tl.sum(kept, 1))
    tl.store(summed + row[:, None] * n + at, tl.cumsum(kept, 1), mask=at < n)


@triton.jit
def dot_kernel(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TRANS: tl.constexpr):
    """C [M, N] = A [M, K] @ B; B is [K, N], or [N, K] if TRANS."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        left = tl.load(a + m[:, None] * K + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
        if TRANS:
            right = tl.load(b + n[:, None] * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)
            right = tl.trans(right)
        else:
            right = tl.load(b + k[:, None] * N + n[None, :], mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")
    tl.store(c + m[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def chain_kernel(a, b, c, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x, y = tl.load(a + at), tl.load(b + at)
    first = tl.dot(x, y)
    tl.store(c + at, tl.dot(first.to(x.dtype), y))


@triton.jit
def integers_kernel(x, y, out, n, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, a // b)
    tl.store(out + n + at, a % b)
    tl.store(out + 2 * n + at, (a.to(tl.int64) * b >> 7).to(tl.int32))
    tl.store(out + 3 * n + at, (a >> 3) ^ (b << 2))
    tl.store(out + 4 * n + at, a.to(tl.int8).to(tl.int32))
    tl.store(out + 5 * n + at, a.to(tl.float32).to(tl.int32))


@triton.jit
def functions_kernel(x, out, n, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(x + at)
    tl.store(out + at, tl.exp(value))
    tl.store(out + n + at, tl.log(tl.abs(value)))
    tl.store(out + 2 * n + at, tl.sqrt(tl.abs(value)))
    tl.store(out + 3 * n + at, tl.sigmoid(value))
    tl.store(out + 4 * n + at, value.to(tl.bfloat16).to(tl.float32))
    tl.store(out + 5 * n + at, value.to(tl.float16).to(tl.float32))


@triton.jit
def count_kernel(x, out, SIZE: tl.constexpr):
    program = tl.program_id(0)
    total = tl.zeros((SIZE,), tl.float32)
    for start in range(0, program * SIZE, SIZE):
        total += tl.load(x + start + tl.arange(0, SIZE))
    if program == 1:
        total += 100
    tl.store(out + program * SIZE + tl.arange(0, SIZE), total)


@triton.jit
def past_the_end_kernel(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at + 1))


@triton.jit
def same_address_kernel(out):
    tl.store(out, tl.program_id(0))


@triton.jit
def neighbor_kernel(out):
    program = tl.program_id(0)
    tl.store(out + program, program)
    tl.store(out + 8 + program, tl.load(out + 1 - program))


@triton.jit
def through_memory_kernel(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at))
    tl.debug_barrier()
    tl.store(out + SIZE + at, tl.load(out + SIZE - 1 - at))


@triton.jit
def all_to_one_kernel(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at * 0, tl.load(x + at))


@triton.jit
def strided_kernel(x, out, step, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, tl.load(x + at * step))


def product(dtype, shape, tile, trans, warps, capability, **options):
    """A @ B [M, N] by `dot_kernel` for shape (M, N, K); the result in float64; and the machine."""
    M, N, K = shape
    generator = torch.Generator().manual_seed(M + N + K)
    a, b = (torch.randn(size, generator=generator).to(dtype) for size in ((M, K), (K, N)))
    out = torch.full((M, N), float("nan"))
    grid = triton.cdiv(M, tile[0]), triton.cdiv(N, tile[1])
    with active(capability, **options) as machine:
        dot_kernel[grid](
            a, b.T.contiguous() if trans else b, out, *shape, *tile, TRANS=trans, num_warps=warps, num_stages=3
        )
    return out, a.double() @ b.double(), machine


def hopper_product(**options):
    """A product that uses wgmma and cp.async."""
    return product(torch.bfloat16, (64, 64, 128), (64, 64, 32), True, 4, (9, 0), **options)


def reduction(capability, rows=1, n=2000, **options):
    """x [rows, n], its `reduce_kernel` outputs, and the machine."""
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(n))
    total, largest = torch.empty(rows), torch.empty(rows)
    where, summed = torch.empty(rows, dtype=torch.int32), torch.empty(rows, n)
    with active(capability, **options) as machine:
        reduce_kernel[(1,)](x, total, largest, where, summed, n, ROWS=rows, SIZE=triton.next_power_of_2(n), num_warps=4)
    return x, (total, largest, where, summed), machine


def without(pattern: str, index: int | None = None):
    """An edit that removes a match of the pattern, or all of them."""

    def edit(name, ptx):
        matches = list(re.finditer(pattern, ptx))
        assert matches, f"{name} has no {pattern}"
        for match in matches[::-1] if index is None else [matches[index]]:
            ptx = ptx[: match.start()] + "// removed" + ptx[match.end() :]
        return ptx

    return edit


def inserted(text: str, *, before: str = "", after: str = ""):
    """An edit that inserts text before or after the first match of a pattern."""

    def edit(name, ptx):
        match = re.search(before or after, ptx)
        position = match.start() if before else match.end()
        return f"{ptx[:position]}\n{text}\n{ptx[position:]}"

    return edit
