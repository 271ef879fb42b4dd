"""The cross-attention difference in Triton against the formula in float64, on a GPU or in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.triton_cases import DEVICE, DTYPES, assert_equal, needs_gpu_or_interpreter

pytestmark = pytest.mark.triton

NAMES = ("out", "source", "q", "k", "v", "out_weight", "out_bias")
# (N, L_a, L_ref, heads, head width): several tiles of frames and keys with partial last tiles; padded widths; a single
# row of each; the widest head; odd channels; random sizes.
SHAPES = [(3, 70, 150, 2, 8), (2, 150, 37, 2, 20), (2, 33, 70, 1, 64), (2, 1, 1, 1, 1), (2, 20, 40, 1, 256)]
SHAPES += [(4, 17, 65, 3, 5)]
RANDOM = torch.Generator().manual_seed(7)
SHAPES += [tuple(int(torch.randint(1, high, (), generator=RANDOM)) for high in (4, 140, 140, 4, 70)) for _ in range(5)]


def inputs(shape, dtype=torch.float32, valid=0.7, scale=1.0):
    """Random arguments of `forward`, and a gradient of its output. q and k are multiplied by `scale`.

    The mask has gaps. In the first clip a full tile of padding precedes the valid keys, and the last clip has none.
    With valid > 1 every key is valid.
    """
    N, L_a, L_ref, H, width = shape
    D = H * width
    draw = torch.Generator().manual_seed(sum(shape))
    frames, keys = (N, L_a, D), (N, L_ref, D)
    sizes = (frames, frames, keys, keys, (D,), frames)
    source, q, k, v, bias, grad = (torch.randn(size, generator=draw) for size in sizes)
    weight = torch.randn(D, D, generator=draw) / D**0.5
    mask = torch.rand(N, L_ref, generator=draw) < valid
    if valid <= 1:
        mask[0, : min(66, L_ref // 2)] = False
        mask[0, -1] = True
        mask[-1] = False
    tensors = (x.to(dtype).to(DEVICE) for x in (source, q * scale, k * scale, v, weight, bias))
    return (*tensors, mask.to(DEVICE), H), grad.to(dtype).to(DEVICE)


def plain(arguments, grad, dtype=torch.float64):
    """The output by the formula in `dtype`, and its gradients by autograd."""
    *tensors, mask, H = arguments
    tensors = [x.detach().cpu().to(dtype).requires_grad_() for x in tensors]
    source, q, k, v, weight, bias = tensors
    mask = torch.ones(k.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
    q, k, v = (x.unflatten(2, (H, -1)).transpose(1, 2) for x in (q, k, v))
    logits = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~mask[:, None, None], torch.finfo(dtype).min)
    attended = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    out = torch.sigmoid(-(attended @ weight.T + bias)) * source
    out = torch.where(mask.any(1)[:, None, None], out, source)
    return out.detach(), *torch.autograd.grad(out, tensors, grad.cpu().to(dtype))


def fused(arguments, grad):
    """The output and its gradients from the kernels. conftest fills what they allocate with NaN."""
    from atk.kernels.cross_attention import backward, forward

    out, *saved = forward(*arguments)
    return out, *backward(grad, *arguments, *saved)


def poisoned(arguments):
    """The arguments with NaN, inf and -inf in k and v at padded keys."""
    source, q, k, v, weight, bias, mask, H = arguments
    poison = torch.tensor([float("nan"), float("inf"), float("-inf")])[torch.arange(k.shape[2]) % 3].to(k)
    k, v = (torch.where(mask[..., None], x, poison) for x in (k, v))
    return source, q, k, v, weight, bias, mask, H


def largest_terms(wanted):
    """{name: largest value}; the gradients of q and k are differences of terms as large as the gradient of v."""
    largest = {name: target.abs().max().item() for name, target in zip(NAMES, wanted, strict=True)}
    return largest | {name: max(largest[name], largest["v"]) for name in ("q", "k")}


def assert_as_good_as_eager(values, clean, grad):
    """Checks errors against twice those of eager PyTorch in the same dtype, plus one unit in the last place."""
    wanted, eager = plain(clean, grad), plain(clean, grad, grad.dtype)
    largest = largest_terms(wanted)
    for name, value, eager_value, target in zip(NAMES, values, eager, wanted, strict=True):
        assert value.dtype == grad.dtype and value.isfinite().all(), name
        error, eager_error = ((x.double().cpu() - target).abs().max().item() for x in (value, eager_value))
        unit = torch.finfo(grad.dtype).eps * largest[name]
        assert error <= 2 * eager_error + unit, f"{name}: {error}, eager {eager_error}, unit {unit}"


@needs_gpu_or_interpreter
@pytest.mark.parametrize(
    ("shape", "dtype"), [(s, torch.float32) for s in SHAPES] + [(s, d) for d in DTYPES[1:] for s in SHAPES[:6]]
)
def test_values_and_gradients_match_float64_for_any_padding_values(shape, dtype):
    clean, grad = inputs(shape, dtype)
    values = fused(poisoned(clean), grad)
    assert_as_good_as_eager(values, clean, grad)
    mask = clean[6]
    for padded in (values[3][~mask], values[4][~mask]):
        assert (padded == 0).all()


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_mask_equals_a_mask_of_ones_and_no_bias_equals_zeros(dtype):
    (*tensors, bias, mask, H), grad = inputs((2, 40, 70, 2, 8), dtype, valid=1.1)
    zeros = (*tensors, torch.zeros_like(bias), mask, H)
    values = fused((*tensors, None, None, H), grad)
    masked = fused(zeros, grad)
    assert values[-1] is None
    assert_equal(values[:-1], masked[:-1])
    assert_as_good_as_eager(masked, zeros, grad)


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_reproducible_and_independent_of_other_clips(dtype):
    (source, q, k, v, weight, bias, mask, H), grad = inputs((2, 70, 80, 2, 8), dtype)
    first = fused((source, q, k, v, weight, bias, mask, H), grad)
    assert_equal(fused((source, q, k, v, weight, bias, mask, H), grad), first)
    clip = slice(0, 1)
    single = fused((source[clip], q[clip], k[clip], v[clip], weight, bias, mask[clip], H), grad[clip])
    assert_equal(single[:1], [first[0][clip]])


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_clips_without_a_reference_keep_their_source(masked, dtype):
    (source, q, k, v, weight, bias, mask, H), grad = inputs((2, 70, 30, 2, 8), dtype)
    source[:, 0, 0] = -0.0
    source[:, 1, 1] = float("inf")
    grad[:, 2, 2] = float("-inf")
    q[:] = float("nan")
    k[:] = float("nan")
    v[:] = float("inf")
    if masked:
        mask[:] = False
    else:
        k, v, mask = k[:, :0].contiguous(), v[:, :0].contiguous(), None
    values = fused((source, q, k, v, weight, bias, mask, H), grad)
    assert_equal(values[:2], (source, grad))
    assert torch.equal(values[0].signbit(), source.signbit())
    assert all((value == 0).all() for value in values[2:])


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [50, 1e-3])
def test_huge_and_tiny_logits(scale, dtype):
    arguments, grad = inputs((2, 40, 70, 2, 16), dtype, scale=scale)
    logits = arguments[1][0].double() @ arguments[2][0].double().T / 4
    assert logits.abs().max() > 1e4 if scale > 1 else logits.abs().max() < 1e-4
    values = fused(arguments, grad)
    wanted = plain(arguments, grad)
    largest = largest_terms(wanted)
    for name, value, target in zip(NAMES, values, wanted, strict=True):
        # One unit in the last place of a logit of 1e4 is a relative error of 1e-3 in a weight, before rounding to half.
        error = (value.double().cpu() - target).abs().max()
        assert error <= 0.01 * largest[name], f"{name}: {error}, largest term {largest[name]}"


@needs_gpu_or_interpreter
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_at_valid_positions_propagates_and_stays_in_its_clip(name):
    arguments, grad = inputs((3, 40, 70, 2, 8), valid=1.1)
    tensor = arguments[NAMES.index(name) - 1]
    tensor[1, 20, 3] = float("nan")
    values = fused(arguments, grad)
    wanted = plain(arguments, grad)
    assert wanted[0].isnan().any() and not wanted[0].isnan().all()
    assert torch.equal(values[0].isnan().cpu(), wanted[0].isnan())
    for value in values[1:5]:
        assert value[1].isnan().any() and value[[0, 2]].isfinite().all()


@needs_gpu_or_interpreter
@pytest.mark.parametrize(("N", "L_a"), [(0, 5), (2, 0)])
def test_no_frames(N, L_a):
    arguments, grad = inputs((2, 5, 30, 2, 8))
    source, q, k, v, weight, bias, mask, H = arguments
    clips = (x[:N, :L_a].contiguous() for x in (source, q))
    values = fused((*clips, k[:N], v[:N], weight, bias, mask[:N], H), grad[:N, :L_a].contiguous())
    assert [tuple(x.shape) for x in values[:5]] == [(N, L_a, 16)] * 3 + [(N, 30, 16)] * 2
    assert all((value == 0).all() for value in values[1:])


@needs_gpu_or_interpreter
def test_invalid_head_counts_are_rejected():
    from atk.kernels.cross_attention import forward

    for heads, width, given in ((1, 8, 3), (1, 8, 0), (1, 264, 1)):
        (*tensors, _), _ = inputs((1, 2, 2, heads, width))
        with pytest.raises(ValueError, match=rf"num_heads must divide D .* 256 channels, got {given} for D = {width}"):
            forward(*tensors, given)


@pytest.mark.gpu
def test_memory_is_linear_in_the_lengths():
    peaks = []
    for length in (4096, 8192):
        arguments, grad = inputs((1, length, length, 4, 16), torch.float16)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fused(arguments, grad)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= 2.1 * peaks[0] + 2**20
