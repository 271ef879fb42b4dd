"""The streaming sigmoid loss in Triton against the formulas in float64, on a GPU or in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="triton is not installed")

from support.triton_cases import DEVICE, DTYPES, assert_equal, needs_gpu_or_interpreter

pytestmark = [pytest.mark.triton, needs_gpu_or_interpreter]

NAMES = ("losses", "grad_audio", "grad_text", "grad_scale", "grad_bias")
# (N_a, N_t, D): one pair; two; partial tiles; full tiles; one caption, one clip; many, unaligned channels.
SHAPES = [(1, 1, 1), (2, 2, 3), (130, 200, 33), (128, 256, 32), (130, 1, 7), (1, 300, 4), (20, 9, 700)]
# Allowance, on top of the float32 error, for rounding dS and then the result to half precision.
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def inputs(shape, dtype=torch.float32, scale=10.0, bias=-10.0, without=0.2):
    """audio and text of unit norm, scale, bias, positives (-1 for a share of the clips), and upstream gradients."""
    N_a, N_t, D = shape
    draw = torch.Generator().manual_seed(sum(shape))
    audio, text = (F.normalize(torch.randn(n, D, generator=draw)).to(dtype).to(DEVICE) for n in (N_a, N_t))
    positive = torch.randint(N_t, (N_a,), generator=draw)
    positive[torch.rand(N_a, generator=draw) < without] = -1
    grads = torch.randn(N_a, generator=draw)
    scalars = (torch.tensor(value, device=DEVICE) for value in (scale, bias))
    return audio, text, *scalars, positive.to(DEVICE), grads.to(DEVICE)


def plain(audio, text, scale, bias, positive, grads, dtype=torch.float64):
    """The losses by the formula in `dtype` from all logits at once, and their gradients by autograd."""
    values = [x.detach().cpu().to(dtype).requires_grad_() for x in (audio, text, scale, bias)]
    logits = values[2] * (values[0] @ values[1].T) + values[3]
    z = torch.full_like(logits, -1)
    if positive is not None:
        has_one = positive.cpu() >= 0
        z[has_one.nonzero().flatten(), positive.cpu()[has_one]] = 1
    losses = -F.logsigmoid(z * logits).sum(1)
    return losses.detach(), *torch.autograd.grad(losses, values, grads.cpu().to(dtype))


def fused(audio, text, scale, bias, positive, grads):
    """The losses and gradients from the kernels. conftest fills what they allocate with NaN."""
    from atk.kernels.sigmoid import backward, forward

    inputs = audio, text, scale, bias, positive
    return forward(*inputs), *backward(*inputs, grads)


def assert_as_good_as_eager(arguments):
    """Checks errors against four times those of eager float32, plus the rounding to half precision."""
    audio, grads = arguments[0], arguments[-1]
    wanted, eager = plain(*arguments), plain(*arguments, dtype=torch.float32)
    for name, value, eager_value, target in zip(NAMES, fused(*arguments), eager, wanted, strict=True):
        assert value.dtype == (audio.dtype if name in ("grad_audio", "grad_text") else torch.float32), name
        assert value.shape == target.shape and value.isfinite().all(), name
        error, eager_error = ((x.double().cpu() - target).abs().max().item() for x in (value, eager_value))
        largest = target.abs().max().item()
        if name in ("grad_scale", "grad_bias"):  # sums of terms that cancel
            largest = max(largest, grads.abs().sum().item())
        message = f"{name}: {error}, eager {eager_error}, largest value {largest}"
        assert error <= 4 * eager_error + ROUNDING[value.dtype] * largest, message


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_match_float64(shape, dtype):
    assert_as_good_as_eager(inputs(shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("scale", "bias"), [(100.0, -12.0), (-3.0, 2.0), (0.0, 0.0), (1e4, 500.0)])
def test_logits_of_any_size_and_clips_without_positives(scale, bias, dtype):
    audio, text, *scalars, positive, grads = inputs((70, 130, 64), dtype, scale=scale, bias=bias)
    text[:70] = audio  # cosines from -1 to 1
    text[70:100] = -audio[:30]
    for columns in (positive, None):
        assert_as_good_as_eager((audio, text, *scalars, columns, grads / 1e3))  # within the range of float16


def test_tiny_losses_keep_their_digits():
    audio, text, scale, bias, _, grads = inputs((130, 140, 32), scale=5.0, bias=-20.0)
    losses = fused(audio, text, scale, bias, None, grads)[0]
    wanted = plain(audio, text, scale, bias, None, grads)[0]
    assert wanted.max() < 1e-5
    torch.testing.assert_close(losses.cpu().double(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1e-7, 1e3])
def test_tiny_and_large_upstream_gradients_in_float16(size):
    *arguments, grads = inputs((130, 140, 32), torch.float16)
    values, unscaled = fused(*arguments, grads * size)[1:], fused(*arguments, grads)[1:]
    for value, target in zip(values[:2], unscaled[:2], strict=True):
        assert (value.float() / size - target.float()).abs().max() <= 0.01 * target.abs().max() + 2**-24 / size
    for value, target in zip(values[2:], unscaled[2:], strict=True):
        assert (value / size - target).abs() <= 1e-4 * target.abs()
    assert all((value == 0).all() for value in fused(*arguments, torch.zeros_like(grads))[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_propagate(bad, dtype):
    audio, text, *rest = arguments = inputs((40, 130, 32), dtype)
    audio[3, 5] = bad
    text[:, 5] = text[:, 5].abs() + 0.1  # row 3 of the logits is all `bad`
    for positive in (rest[2], None):
        arguments = audio, text, *rest[:2], positive, rest[-1]
        (losses, *grads), (wanted, *wanted_grads) = fused(*arguments), plain(*arguments)
        torch.testing.assert_close(losses.cpu().double(), wanted, rtol=1e-4, atol=1e-4, equal_nan=True)
        for name, value, target in zip(NAMES[1:], grads, wanted_grads, strict=True):
            assert torch.equal(value.isfinite().cpu(), target.isfinite()), name


@pytest.mark.parametrize("place", [2, 3, 5], ids=["scale", "bias", "gradient"])
def test_nan_in_other_inputs_propagates(place):
    arguments = list(inputs((5, 6, 7)))
    arguments[place].view(-1)[0] = float("nan")
    assert all(value.isnan().any() for value in fused(*arguments)[place == 5 :])


@pytest.mark.parametrize(("N_a", "N_t"), [(0, 5), (5, 0)])
def test_no_clips_or_no_captions(N_a, N_t):
    audio, text, scale, bias, _, grads = inputs((5, 5, 4))
    values = fused(audio[:N_a], text[:N_t], scale, bias, None, grads[:N_a])
    assert [tuple(value.shape) for value in values] == [(N_a,), (N_a, 4), (N_t, 4), (), ()]
    assert all((value == 0).all() for value in values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_of_the_workspace_change_nothing_and_results_are_reproducible(dtype, monkeypatch):
    from atk.kernels import info_nce

    monkeypatch.setattr(info_nce, "WEIGHT_BYTES", 64 * 128 * dtype.itemsize)
    monkeypatch.setattr(info_nce, "WEIGHT_COLUMNS", 128)
    arguments = inputs((150, 290, 40), dtype)
    assert info_nce.chunk_shape(150, 290, dtype) == (64, 128)
    assert_as_good_as_eager(arguments)
    assert_equal(fused(*arguments), fused(*arguments))


def test_the_gradient_of_a_mean_arrives_expanded():
    *arguments, _ = inputs((130, 70, 40))
    grads = torch.tensor(1 / 130, device=DEVICE).expand(130)
    assert_equal(fused(*arguments, grads), fused(*arguments, grads.clone()))


@pytest.mark.gpu
def test_memory_is_linear_in_the_pairs():
    peaks = []
    for N in (16384, 32768):
        arguments = inputs((N, N, 512), torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fused(*arguments)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] <= 200 * 2**20 and peaks[1] <= 2.1 * peaks[0]
