"""Row normalization of the C++ extension against float64, on every instruction set that this CPU supports."""

import pytest
import torch
from support.cpp_launch import DTYPES, INF, NAN, isa, random_mask, same, threads  # noqa: F401

from atk.kernels import cpp


def forward(rows, mask=None):
    unit, inverse_norm = torch.full_like(rows, NAN), torch.full((len(rows),), NAN)
    cpp.normalize_rows(rows, mask, unit, inverse_norm)
    return unit, inverse_norm


def backward(grad, unit, inverse_norm):
    grad_rows = torch.full_like(grad, NAN)
    cpp.normalize_rows_backward(grad, unit, inverse_norm, grad_rows)
    return grad_rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, 64, 333, 2049])
def test_against_float64(dtype, d):
    rows, mask = torch.randn(97, d).to(dtype), random_mask(97)
    unit, inverse_norm = forward(rows, mask)
    norm = rows.double().norm(dim=1)
    rounding = torch.finfo(dtype).eps
    truth = (rows.double() / norm[:, None]).where(mask[:, None], 0)
    torch.testing.assert_close(unit.double(), truth, rtol=rounding, atol=1e-7)
    torch.testing.assert_close(inverse_norm.double(), (1 / norm).where(mask, 0), rtol=1e-6, atol=0)
    grad = torch.randn(97, d).to(dtype)
    u, g = unit.double(), grad.double()
    truth = inverse_norm.double()[:, None] * (g - (g * u).sum(1, keepdim=True) * u)
    scale = truth.abs().max().item()
    torch.testing.assert_close(
        backward(grad, unit, inverse_norm).double(), truth, rtol=rounding, atol=1e-5 * scale + 1e-6
    )


@pytest.mark.parametrize(("dtype", "size"), [(DTYPES[0], 1e15), (DTYPES[1], 1e15), (DTYPES[2], 3e4)])
def test_large_and_small_rows(dtype, size):
    direction = torch.randn(20, 300).clamp(-1, 1).double()
    large = (direction * size).to(dtype)
    small = (direction * 1e-13).to(dtype) if dtype != torch.float16 else (direction * 1e-4).to(dtype)
    for rows in (large, small):
        truth = rows.double() / rows.double().norm(dim=1, keepdim=True)
        torch.testing.assert_close(forward(rows)[0].double(), truth, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_direction(dtype):
    rows = torch.randn(6, 40).to(dtype)
    rows[1] = 0
    rows[2] = 1e-15 if dtype != torch.float16 else 0
    rows[3] = NAN
    rows[4, 7] = NAN
    mask = torch.tensor([True, True, True, False, True, True])
    unit, inverse_norm = forward(rows, mask)
    assert unit[1:4].eq(0).all() and inverse_norm[1:4].eq(0).all()
    assert unit[4].isnan().all() and inverse_norm[4].isnan()
    assert unit[0].isfinite().all() and inverse_norm[0] > 0
    grad = torch.full_like(rows, NAN)
    unit[1:3] = INF
    grad_rows = backward(grad, unit, inverse_norm)
    assert grad_rows[1:4].eq(0).all() and grad_rows[0].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_threads(dtype, threads):  # noqa: F811
    rows, grad = torch.randn(3000, 100).to(dtype), torch.randn(3000, 100).to(dtype)
    threads(1)
    unit, inverse_norm = forward(rows)
    grad_rows = backward(grad, unit, inverse_norm)
    threads(5)
    same(forward(rows)[0], unit)
    same(forward(rows)[1], inverse_norm)
    same(backward(grad, unit, inverse_norm), grad_rows)
