"""The bfloat16 product of the C++ extension, and the losses that use it, with and without that instruction."""

import math

import pytest
import torch
from support.cpp_launch import threads  # noqa: F401
from support.info_nce_cases import assert_matches_truth, loss, lse, unit

from atk.kernels import cpp
from atk.ops import info_nce_op

pytestmark = pytest.mark.skipif(not cpp.multiplies_bfloat16(), reason="this CPU does not multiply bfloat16")


def product(left, right, factor=1.0, columns=0):
    """`factor * left @ right^T` in a larger matrix, whose other columns must not be touched."""
    out = torch.full((len(left), len(right) + columns), 7.0)
    cpp.bfloat16_product(left, right, factor, out[:, : len(right)])
    assert out[:, len(right) :].eq(7).all()
    return out[:, : len(right)]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (13, 33, 65), (100, 70, 512), (12, 32, 2)])
def test_against_float64(shape):
    m, n, d = shape
    left, right = torch.randn(m, d).bfloat16(), torch.randn(n, d).bfloat16()
    truth = -2.5 * left.double() @ right.double().T
    got = product(left, right, -2.5, columns=5)
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-4)
    assert torch.equal(got, product(left, right, -2.5))


def test_values_that_are_not_finite_stay_in_their_row_and_column():
    left, right = torch.randn(30, 20).bfloat16(), torch.randn(40, 20).bfloat16()
    left[3, 4], right[17, 19], right[20, 0] = math.nan, math.inf, -math.inf
    truth = left.float() @ right.float().T
    torch.testing.assert_close(product(left, right), truth, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.fixture(params=[True, False], ids=["bfloat16 products", "float32 products"])
def instruction(request):
    isas = cpp._C.available_isas()
    cpp._C.set_isa(isas[0] if request.param else "avx512")
    yield request.param
    cpp._C.set_isa(isas[0])


@pytest.mark.parametrize("budget", [0, 1 << 30], ids=["recomputed", "kept"])
@pytest.mark.parametrize("scale", [0.0, 20.0])
def test_losses_with_and_without_the_instruction(instruction, budget, scale, monkeypatch):
    assert cpp.multiplies_bfloat16() == instruction
    monkeypatch.setattr(info_nce_op, "LOGIT_BUDGET", budget)
    audio, text, factor = unit(600, 24).bfloat16(), unit(530, 24).bfloat16(), torch.tensor(scale)
    positive = torch.randint(530, (600,))
    eps = torch.finfo(torch.bfloat16).eps
    assert_matches_truth(loss("chunked", positive), loss("reference", positive), audio, text, factor, grad=eps)
    assert_matches_truth(lse("chunked"), lse("reference"), audio, text, factor, grad=eps)
