"""Exponentials of the C++ extension against float64, on every instruction set that this CPU supports."""

import math

import pytest
import torch
from support.cpp_launch import INF, NAN, isa, threads  # noqa: F401

from atk.kernels import cpp

SHAPES = [(1, 1), (3, 7), (40, 33), (65, 1030), (100, 2500)]


def sums(logits, shift=0.0, columns=True):
    """The sums along both axes, added to 1."""
    rows, column_sums = torch.ones(len(logits)), torch.ones(logits.shape[1]) if columns else None
    cpp.add_exponentials(logits, shift, rows, column_sums)
    return rows, column_sums


def inside(shape):
    """A matrix of NaN in a wider one, and the columns around it."""
    wide = torch.full((shape[0], shape[1] + 6), NAN)
    return wide[:, 3:-3], torch.cat((wide[:, :3], wide[:, -3:]), 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0.0, -30.0, 500.0])
def test_sums_against_float64(shape, shift):
    logits, _ = inside(shape)
    logits.copy_(torch.randn(shape) * 5 + shift)
    exponentials = (logits.double() - shift).exp()
    rows, columns = sums(logits, shift)
    torch.testing.assert_close(rows.double(), exponentials.sum(1) + 1, rtol=2e-6, atol=0)
    torch.testing.assert_close(columns.double(), exponentials.sum(0) + 1, rtol=2e-6, atol=0)
    assert torch.equal(sums(logits, shift, columns=False)[0], rows)


def test_every_exponent_in_range():
    exponents = torch.linspace(-87, 88, 1 << 16)[:, None].contiguous()
    got = torch.zeros(len(exponents))
    cpp.add_exponentials(exponents, 0.0, got, None)
    assert (got.double() / exponents[:, 0].double().exp() - 1).abs().max() < 2e-7
    assert (got.diff() >= 0).all()


NAN_WITH_BITS = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize("value", [-88.0, -1e30, -INF, NAN, NAN_WITH_BITS])
@pytest.mark.parametrize("columns", [1, 50])
def test_exponentials_that_vanish_and_nan(value, columns):
    logits = torch.zeros(2, columns)
    logits[0, -1] = value
    rows, column_sums = sums(logits)
    lost = NAN if math.isnan(value) else 0.0
    expected = torch.tensor([columns + lost, columns + 1.0])
    torch.testing.assert_close(rows, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(column_sums[-1], torch.tensor(2.0 + lost), rtol=0, atol=0, equal_nan=True)


def problem(shape, dtype=torch.float32):
    logits, _ = inside(shape)
    logits.copy_(torch.randn(shape) * 5 + 100)
    out, around = inside(shape)
    out = out if dtype == torch.float32 else torch.empty(shape, dtype=dtype)
    pairs = torch.randint(-2, shape[1] + 2, shape[:1]), torch.randn(shape[0])
    return logits, torch.randn(shape[0]), torch.randn(shape[1]), pairs, out, around


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_pairs", [True, False])
def test_gradients_against_float64(shape, dtype, with_pairs):
    logits, rows, columns, pairs, out, around = problem(shape, dtype)
    for factors in (columns, None):
        truth = (logits.double() - 100).exp() * (rows.double()[:, None] + (0 if factors is None else factors.double()))
        if with_pairs:
            row = ((pairs[0] >= 0) & (pairs[0] < shape[1])).nonzero()[:, 0]
            truth[row, pairs[0][row]] = pairs[1][row].double()
        total = cpp.logit_gradients(logits, 100.0, rows, factors, pairs if with_pairs else None, out)
        rounding = max(1e-6, torch.finfo(dtype).eps / 2 * 1.01)
        torch.testing.assert_close(out.double(), truth, rtol=rounding, atol=1e-6 * truth.abs().max().item())
        products = logits.double() * truth
        assert abs(total - products.sum().item()) < 3e-6 * products.abs().sum()
    assert around.isnan().all()


def test_in_place_and_with_other_numbers_of_threads(threads):  # noqa: F811
    logits, rows, columns, pairs, out, _ = problem((300, 700))
    results = []
    for count in (1, 2, 5):
        threads(count)
        in_place = logits.clone()
        total = cpp.logit_gradients(in_place, 100.0, rows, columns, pairs, in_place)
        assert total == cpp.logit_gradients(logits, 100.0, rows, columns, pairs, out)
        assert torch.equal(in_place, out)
        results.append((in_place, torch.tensor(total), *sums(logits, 100.0)))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
