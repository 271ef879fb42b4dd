"""Exponentials of the C++ extension against float64, on every instruction set that this CPU supports."""

import math

import pytest
import torch
from support.cpp_launch import INF, NAN, isa, threads  # noqa: F401

from atk.kernels import cpp_info_nce

SHAPES = [(1, 1), (3, 7), (40, 33), (65, 1030), (100, 2500)]


def sums(logits, shift=0.0, columns=True):
    """The sums along both axes, added to 1."""
    rows, column_sums = torch.ones(len(logits)), torch.ones(logits.shape[1]) if columns else None
    cpp_info_nce.Sums(rows, column_sums, None, None, shift).add(0, 0, logits)
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
    cpp_info_nce.Sums(got, None, None, None, 0.0).add(0, 0, exponents)
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


ROW, COLUMN = 2, 3  # of the logits S, where the block under test begins
REST = 4  # rows and columns of S beyond it


class Problem:
    """Log-sum-exps of S around 100, their gradients, a block of S, and memory for its gradient."""

    def __init__(self, shape, dtype=torch.float32):
        self.logits, _ = inside(shape)
        self.logits.copy_(torch.randn(shape) * 5 + 100)
        N, M = ROW + shape[0] + REST, COLUMN + shape[1] + REST
        self.rows, self.columns = (torch.rand(n) * 20 + 100 for n in (N, M))
        self.grad_rows, self.grad_columns, self.grad_positive = torch.randn(N), torch.randn(M), torch.randn(N)
        self.positive = torch.randint(M, (N,))
        out, self.around = inside(shape)
        self.out = out if dtype == torch.float32 else torch.empty(shape, dtype=dtype)

    def terms(self, columns, positives):
        second = (self.columns, self.grad_columns) if columns else (None, None)
        third = (self.positive, self.grad_positive) if positives else (None, None)
        return self.rows, self.grad_rows, *second, *third

    def write(self, logits, out, columns=True, positives=True):
        gradients = cpp_info_nce.LogitGradients(*self.terms(columns, positives))
        assert gradients.set_shift(60.0)
        return gradients.write(ROW, COLUMN, logits, out)

    def truth(self, columns, positives):
        n, m = self.logits.shape
        logits, i, j = self.logits.double(), slice(ROW, ROW + n), slice(COLUMN, COLUMN + m)
        result = self.grad_rows[i, None] * (logits - self.rows[i, None]).exp()
        if columns:
            result += self.grad_columns[j] * (logits - self.columns[j]).exp()
        column = self.positive[i] - COLUMN
        row = ((column >= 0) & (column < m)).nonzero()[:, 0]
        if positives:
            result[row, column[row]] += self.grad_positive[i][row]
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("positives", [True, False])
@pytest.mark.parametrize("columns", [True, False])
def test_gradients_against_float64(shape, dtype, positives, columns):
    problem = Problem(shape, dtype)
    truth = problem.truth(columns, positives)
    total = problem.write(problem.logits, problem.out, columns, positives)
    rounding = max(2e-6, torch.finfo(dtype).eps / 2 * 1.01)
    torch.testing.assert_close(problem.out.double(), truth, rtol=rounding, atol=1e-5 * truth.abs().max().item())
    products = problem.logits.double() * truth
    assert abs(total - products.sum().item()) < 1e-5 * products.abs().sum()
    assert problem.around.isnan().all()


def test_in_place_and_with_other_numbers_of_threads(threads):  # noqa: F811
    problem = Problem((300, 700))
    results = []
    for count in (1, 2, 5):
        threads(count)
        in_place = problem.logits.clone()
        total = problem.write(in_place, in_place)
        assert total == problem.write(problem.logits, problem.out)
        assert torch.equal(in_place, problem.out)
        results.append((in_place, torch.tensor(total), *sums(problem.logits, 100.0)))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("far", [-130.0, 130.0, NAN, INF])
def test_no_shift_for_log_sum_exps_that_are_far_apart(far):
    rows, columns = torch.zeros(5), torch.full((3,), far)
    assert not cpp_info_nce.LogitGradients(rows, rows, columns, columns, None, None).set_shift(60.0)
    assert cpp_info_nce.LogitGradients(rows, rows, None, None, None, None).set_shift(60.0)


def test_log_sum_exps_of_blocks():
    logits, positive = torch.randn(50, 70) * 5 + 20, torch.arange(50) + 7
    logits[3, 10] = 60  # its row and its column have no other terms that count
    rows, columns, of_positives = torch.zeros(50), torch.zeros(70), torch.full((50,), NAN)
    sums = cpp_info_nce.Sums(rows, columns, positive, of_positives, 30.0)
    for i in (0, 20):
        for j in (0, 33):
            sums.add(i, j, logits[i : i + 20 if i == 0 else 50, j : j + 33 if j == 0 else 70])
    assert sums.to_logarithms(1e-24)
    assert torch.equal(of_positives, logits[range(50), positive])
    torch.testing.assert_close(rows, logits.double().logsumexp(1).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(columns, logits.double().logsumexp(0).float(), rtol=1e-6, atol=0)
    assert rows[3] == columns[10] == 60


@pytest.mark.parametrize("sum_", [1e-25, NAN])
def test_sums_out_of_range_are_left_alone(sum_):
    for rows, columns in ((torch.ones(3), torch.tensor([1, sum_])), (torch.tensor([1, sum_]), None)):
        before = rows.clone()
        assert not cpp_info_nce.Sums(rows, columns, None, None, 0.0).to_logarithms(1e-24)
        torch.testing.assert_close(rows, before, rtol=0, atol=0, equal_nan=True)


def test_positives_that_are_not_columns_raise():
    with pytest.raises(IndexError, match="positive must lie within the rows of text"):
        cpp_info_nce.Sums(torch.ones(2), torch.ones(2), torch.tensor([0, 2]), torch.ones(2), 0.0).to_logarithms(1e-24)
