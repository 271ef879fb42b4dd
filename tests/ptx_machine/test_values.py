"""The machine computes what PyTorch does."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support import ptx_kernels
from support.ptx_kernels import BOTH, MODES, product, reduction
from support.triton_cases import needs_compiler

from ptx_machine import active
from ptx_machine.arithmetic import matrix_product

pytestmark = needs_compiler
HALF = [torch.float16, torch.bfloat16]


@BOTH
@MODES
def test_masked_addition(capability, mode):
    a, b = torch.randn(300), torch.randn(300)
    out = torch.full((300,), float("nan"))
    with active(capability, **mode):
        ptx_kernels.add_kernel[(3,)](a, b, out, 300, SIZE=128)
    assert torch.equal(out, a + b)


@BOTH
@pytest.mark.parametrize(("rows", "n"), [(4, 100), (1, 2000), pytest.param(16, 500, marks=pytest.mark.exhaustive)])
def test_reductions_and_scans(capability, rows, n):
    x, (total, largest, where, summed), _ = reduction(capability, rows, n)
    torch.testing.assert_close(total, x.sum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(largest, x.max(1)[0]) and torch.equal(where.long(), x.argmax(1))
    torch.testing.assert_close(summed, x.cumsum(1), rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.exhaustive) for dtype in (torch.float16, torch.float32))],
    ids=str,
)
@MODES
def test_products(capability, trans, dtype, mode):
    out, wanted, _ = product(dtype, (70, 40, 96), (64, 32, 32), trans, 4, capability, **mode)
    assert (out - wanted).abs().max() < 2e-4


@pytest.mark.exhaustive
@BOTH
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("shape", "tile", "warps"), [((128, 128, 128), (64, 64, 64), 4), ((100, 150, 200), (128, 128, 32), 8)]
)
def test_larger_products(capability, trans, dtype, shape, tile, warps):
    out, wanted, _ = product(dtype, shape, tile, trans, warps, capability, lockstep=True)
    assert (out - wanted).abs().max() < 3e-4


@BOTH
@pytest.mark.parametrize(
    "size", [16, 32, pytest.param(64, marks=pytest.mark.exhaustive), pytest.param(128, marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_chained_products(capability, dtype, size):
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    out = torch.empty(size, size)
    with active(capability):
        ptx_kernels.chain_kernel[(1,)](a, b, out, SIZE=size)
    first = (a.double() @ b.double()).to(dtype).double()
    assert (out - first @ b.double()).abs().max() < torch.finfo(dtype).eps * 3 * size


@pytest.mark.parametrize("columns", [8, 24, 40, 128])
@pytest.mark.parametrize("bf16", [False, True])
def test_equal_columns_give_equal_products(columns, bf16):
    """Padding that repeats a token must tie with it."""
    a, b = torch.randn(2, 64, 16).half().numpy().view("u2"), torch.randn(1, 16, 1).half().numpy().view("u2")
    product = matrix_product(a, b.repeat(columns, axis=2), bf16)
    assert (product == product[..., :1]).all()


@BOTH
def test_integers(capability):
    x = torch.randint(-(2**31), 2**31 - 1, (128,), dtype=torch.int32)
    y = torch.randint(1, 1000, (128,), dtype=torch.int32) * torch.tensor([1, -1] * 64, dtype=torch.int32)
    out = torch.empty(6, 128, dtype=torch.int32)
    with active(capability):
        ptx_kernels.integers_kernel[(1,)](x, y, out, 128, SIZE=128)
    quotient = torch.div(x.double(), y.double(), rounding_mode="trunc").int()
    assert torch.equal(out[0], quotient) and torch.equal(out[1], x - quotient * y)
    assert torch.equal(out[2], (x.long() * y >> 7).int()) and torch.equal(out[3], (x >> 3) ^ (y << 2))
    assert torch.equal(out[4], x.to(torch.int8).int())
    assert torch.equal(out[5], x.float().double().clamp(-(2.0**31), 2.0**31 - 1).to(torch.int32))


@BOTH
def test_functions_and_rounding(capability):
    special = [0.0, -0.0, 1e-30, 70000.0, float("inf"), float("-inf"), 1e-6, 65520.0]
    x = torch.cat([torch.randn(120) * 3, torch.tensor(special)])
    out = torch.empty(6, 128)
    with active(capability):
        ptx_kernels.functions_kernel[(1,)](x, out, 128, SIZE=128)
    torch.testing.assert_close(out[0], x.exp(), rtol=2e-6, atol=1e-37)
    torch.testing.assert_close(out[1], x.abs().log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out[2], x.abs().sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(out[3], x.sigmoid(), rtol=2e-6, atol=1e-30)
    assert torch.equal(out[4], x.bfloat16().float()) and torch.equal(out[5], x.half().float())


@BOTH
def test_loops_and_branches(capability):
    x, out = torch.randn(512), torch.full((512,), float("nan"))
    with active(capability):
        ptx_kernels.count_kernel[(4,)](x, out, SIZE=128)
    rows = x.view(4, 128)
    wanted = [torch.zeros(128), rows[0] + 100, rows[:2].sum(0), rows[0] + rows[1] + rows[2]]
    torch.testing.assert_close(out.view(4, 128), torch.stack(wanted))
