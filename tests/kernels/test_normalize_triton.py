"""L2 normalization of rows in Triton against float64."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.triton_cases import DEVICE, DTYPES, assert_close, needs_gpu_or_interpreter

pytestmark = pytest.mark.triton

# Half a unit in the last place relative to a unit row; more in float32, where D squares are summed.
ERROR = {torch.float32: 5e-7, torch.float16: 2**-11, torch.bfloat16: 2**-8}
RANGES = {torch.float32: (1e-10, 1e15), torch.float16: (1e-3, 3e4), torch.bfloat16: (1e-10, 1e15)}


def normalize(rows, mask=None):
    from atk.kernels.max_mean import normalize_rows

    unit = torch.full_like(rows, float("nan"))
    inverse_norm = torch.full(rows.shape[:1], float("nan"), device=DEVICE)
    normalize_rows(rows, mask, unit, inverse_norm)
    return unit, inverse_norm


@needs_gpu_or_interpreter
@pytest.mark.parametrize("D", [1, 24, 300, 1500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_and_gradients_match_float64(dtype, D):
    from atk.kernels.max_mean import normalize_rows_backward

    generator = torch.Generator().manual_seed(D)
    scale = torch.tensor([*RANGES[dtype], 1.0]).repeat(10)[:, None]
    rows = (torch.rand(30, D, generator=generator).add(0.1) * scale).clamp(max=3e4 if dtype == torch.float16 else 1e30)
    rows = rows.to(dtype).to(DEVICE)
    mask = (torch.rand(30, generator=generator) < 0.7).to(DEVICE)
    rows[~mask] = float("nan")
    unit, inverse_norm = normalize(rows, mask)
    wide = rows[mask].double()
    norm = wide.norm(dim=1, keepdim=True)
    assert_close(unit[mask], wide / norm, ERROR[dtype])
    torch.testing.assert_close(inverse_norm[mask].double(), 1 / norm[:, 0], rtol=1e-6, atol=0)
    assert (unit[~mask] == 0).all() and (inverse_norm[~mask] == 0).all()

    grad = torch.randn(30, D, generator=generator).to(dtype).to(DEVICE)
    grad[~mask] = float("inf")
    grad_rows = torch.full_like(grad, float("nan"))
    normalize_rows_backward(grad, unit, inverse_norm, grad_rows)
    g, u = grad[mask].double(), unit[mask].double()
    wanted = (g - (g * u).sum(1, keepdim=True) * u) * inverse_norm[mask, None].double()
    error = (grad_rows[mask].double() - wanted).abs() * norm
    tiny = torch.finfo(dtype).smallest_normal * norm  # smaller outputs have an absolute rounding error
    assert (error <= 4 * ERROR[dtype] * g.norm(dim=1, keepdim=True) + tiny).all()
    assert (grad_rows[~mask] == 0).all()


@needs_gpu_or_interpreter
def test_tiny_rows_are_zero_and_nan_stays():
    rows = torch.ones(4, 3, device=DEVICE)
    rows[0] = 0
    rows[1] = 5e-13
    rows[2, 1] = float("nan")
    unit, inverse_norm = normalize(rows)
    assert (unit[:2] == 0).all() and (inverse_norm[:2] == 0).all()
    assert unit[2].isnan().all() and inverse_norm[2].isnan()
    torch.testing.assert_close(unit[3], torch.full((3,), 3**-0.5, device=DEVICE))
