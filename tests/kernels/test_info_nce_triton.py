"""Streaming InfoNCE in Triton against the formulas in float64, on a GPU or in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.triton_cases import DEVICE, DTYPES, assert_equal, needs_gpu_or_interpreter

from atk.kernels.launch import Device, column_span, info_nce_launch
from atk.kernels.sequences import packed_width

pytestmark = pytest.mark.triton

NAMES = ("rows", "columns", "grad_audio", "grad_text", "grad_scale")
# (N_a, N_t, D): one pair; partial tiles; full tiles; more clips than captions and the reverse; padded channels; many
# channels; more tiles of clips than are merged at a time.
SHAPES = [(1, 1, 1), (1, 9, 3), (130, 1, 33), (70, 200, 33), (128, 256, 32), (256, 128, 64), (33, 20, 512)]
SHAPES += [(5, 7, 2048), (4300, 3, 4)]
# Allowance, on top of the float32 error, for rounding dS and then the result to half precision.
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def inputs(shape, dtype=torch.float32, unit=False, scale=1.0):
    """audio, text, scale, and the upstream gradients of both directions.

    Rows have approximately unit norm, or exactly with `unit`.
    """
    N_a, N_t, D = shape
    draw = torch.Generator().manual_seed(sum(shape))
    embeddings = [torch.randn(n, D, generator=draw) / D**0.5 for n in (N_a, N_t)]
    if unit:
        embeddings = [torch.nn.functional.normalize(rows) for rows in embeddings]
    audio, text = (rows.to(dtype).to(DEVICE) for rows in embeddings)
    grads = [torch.randn(n, generator=draw).to(DEVICE) for n in (N_a, N_t)]
    return audio, text, torch.tensor(scale, device=DEVICE), *grads


def plain(audio, text, scale, grad_rows, grad_columns, positive=None, grad_positive=None, dtype=torch.float64):
    """The values by the formulas in `dtype` from all logits at once, and their gradients by autograd."""
    values = [x.detach().cpu().to(dtype).requires_grad_() for x in (audio, text, scale)]
    logits = values[2] * (values[0] @ values[1].T)
    rows, columns = logits.logsumexp(1), logits.logsumexp(0)
    outputs = [rows]
    grads = [grad_rows]
    if grad_columns is not None:
        outputs.append(columns)
        grads.append(grad_columns)
    if positive is not None:
        outputs.append(logits.gather(1, positive.cpu()[:, None])[:, 0])
        grads.append(grad_positive)
    grads = torch.autograd.grad(outputs, values, [grad.cpu().to(dtype) for grad in grads])
    return rows.detach(), None if grad_columns is None else columns.detach(), *grads


def fused(audio, text, scale, grad_rows, grad_columns, *positives):
    """The values and gradients from the kernels. conftest fills what they allocate with NaN."""
    from atk.kernels.info_nce import backward, forward

    rows, columns = forward(audio, text, scale, grad_columns is not None)
    return rows, columns, *backward(audio, text, scale, rows, columns, grad_rows, grad_columns, *positives)


def assert_as_good_as_eager(arguments, values=None):
    """Checks errors against four times those of eager float32, plus the rounding to half precision."""
    values = fused(*arguments) if values is None else values
    audio = arguments[0]
    wanted, eager = plain(*arguments), plain(*arguments, dtype=torch.float32)
    for name, value, eager_value, target in zip(NAMES, values, eager, wanted, strict=True):
        if target is None:
            assert value is None, name
            continue
        assert value.dtype == (audio.dtype if name in ("grad_audio", "grad_text") else torch.float32), name
        assert value.shape == target.shape and value.isfinite().all(), name
        error, eager_error = ((x.double().cpu() - target).abs().max().item() for x in (value, eager_value))
        rounding = ROUNDING[value.dtype]
        largest = target.abs().max().item()
        if name == "grad_scale":  # a sum of terms that cancel
            largest = max(largest, sum(grad.abs().sum().item() for grad in arguments[3:5] if grad is not None))
        message = f"{name}: {error}, eager {eager_error}, largest value {largest}"
        assert error <= 4 * eager_error + rounding * largest, message


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_match_float64(shape, dtype):
    assert_as_good_as_eager(inputs(shape, dtype, scale=3.0))


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [100.0, -100.0, 1e-3, 0.0])
def test_cosines_at_any_temperature(scale, dtype):
    audio, text, *rest = inputs((128, 256, 64), dtype, unit=True, scale=scale)
    text[:128] = audio  # cosines from -1 to 1
    text[128:192] = -audio[:64]
    assert_as_good_as_eager((audio, text, *rest))


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_huge_logits(dtype):
    audio, text, scale, *grads = inputs((150, 140, 32), dtype)
    arguments = audio * 60, text * 60, scale * 30, *grads
    wanted = plain(*arguments)
    assert wanted[0].max() > 2e4
    for name, value, target in zip(NAMES, fused(*arguments), wanted, strict=True):
        # One unit in the last place of a logit of 1e4 is a relative error of 1e-3 in a weight.
        error = (value.double().cpu() - target).abs().max()
        largest = target.abs().max()
        assert error <= (1e-6 if name in ("rows", "columns") else 0.01) * largest, f"{name}: {error}, {largest}"


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_far_apart_in_one_tile_stay_accurate(dtype):
    audio, text, scale, *grads = inputs((128, 128, 32), dtype, scale=1.0)
    steps = torch.arange(128, device=DEVICE)
    # The logits of each row spread over 500, and so do the rows.
    audio[:, 0] = steps - 64.0
    audio[:, 1] = 1.0
    text[:, 0] = 8.0
    text[:, 1] = -4.0 * steps % 512
    assert_as_good_as_eager((audio, text, scale, *grads))


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_identical_rows(dtype):
    audio, text, scale, *grads = inputs((70, 130, 40), dtype, scale=20.0)
    audio[:] = audio[0].clone()
    text[:] = text[0].clone()
    assert_as_good_as_eager((audio, text, scale, *grads))


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_only(dtype):
    audio, text, scale, grad_rows, grad_columns = inputs((130, 70, 40), dtype, scale=5.0)
    values = fused(audio, text, scale, grad_rows, None)
    assert_as_good_as_eager((audio, text, scale, grad_rows, None), values)
    both = fused(audio, text, scale, grad_rows, torch.zeros_like(grad_columns))
    assert (values[0] - both[0]).abs().max() <= 1e-5


@needs_gpu_or_interpreter
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_nearly_certain_positives_are_accurate_in_half_precision(dtype, columns):
    audio, text, scale, *_ = inputs((130, 200, 64), dtype, unit=True, scale=10.0)
    positive = torch.randperm(200, device=DEVICE)[:130]
    text[positive] = audio
    grads = torch.full((130,), 1 / 130, device=DEVICE), torch.zeros(200, device=DEVICE)
    grads[1][positive] = 1 / 130
    arguments = audio, text, scale, grads[0], grads[1] if columns else None, positive, -(1 + columns) * grads[0]
    weight = plain(*arguments)[2].norm(dim=1) / (scale.item() / 130)
    assert weight.median() < 0.2  # the positive's term alone would give 1 + columns
    assert_as_good_as_eager(arguments)


@needs_gpu_or_interpreter
@pytest.mark.parametrize("size", [1e-7, 1e4])
def test_tiny_and_large_upstream_gradients_in_float16(size):
    audio, text, scale, *grads = inputs((130, 140, 32), torch.float16, scale=4.0)
    grads = [grad * size for grad in grads]
    values = fused(audio, text, scale, *grads)
    unscaled = fused(audio, text, scale, *(grad / size for grad in grads))
    for value, target in zip(values[2:4], unscaled[2:4], strict=True):
        assert (value.float() / size - target.float()).abs().max() <= 0.01 * target.abs().max() + 2**-24 / size
    assert (values[4] / size - unscaled[4]).abs() <= 1e-4 * unscaled[4].abs()


@needs_gpu_or_interpreter
def test_zero_upstream_gradients_give_zero_gradients():
    audio, text, scale, *grads = inputs((5, 6, 7))
    values = fused(audio, text, scale, *(torch.zeros_like(grad) for grad in grads))
    assert all((value == 0).all() for value in values[2:])


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_propagate(bad, columns, dtype):
    audio, text, scale, grad_rows, grad_columns = inputs((128, 130, 32), dtype)
    audio[3, 5] = bad
    text[:, 5] = text[:, 5].abs() + 0.1  # row 3 of the logits is all `bad`
    arguments = audio, text, scale, grad_rows, grad_columns if columns else None
    values = fused(*arguments)
    wanted = plain(*arguments)
    for value, target in zip(values[: 1 + columns], wanted, strict=False):
        finite = target.isfinite()
        assert torch.equal(value.cpu().isfinite(), finite) and torch.equal(value.isnan().cpu(), target.isnan())
        assert torch.equal(value.cpu()[~finite & ~target.isnan()], target[~finite & ~target.isnan()].float())
        torch.testing.assert_close(value.cpu()[finite].double(), target[finite], rtol=1e-4, atol=1e-4)
    for name, value, target in zip(NAMES[2:], values[2:], wanted[2:], strict=True):
        assert torch.equal(value.isfinite().cpu(), target.isfinite()), name


@needs_gpu_or_interpreter
@pytest.mark.parametrize("name", ["scale", "grad_rows"])
def test_nan_in_other_inputs_propagates(name):
    arguments = list(inputs((5, 6, 7)))
    arguments[{"scale": 2, "grad_rows": 3}[name]].view(-1)[0] = float("nan")
    values = fused(*arguments)
    assert all(value.isnan().any() for value in values[0 if name == "scale" else 2 :])


@needs_gpu_or_interpreter
def test_gradients_of_a_mean_arrive_expanded():
    audio, text, scale, *_ = inputs((130, 70, 40))
    grads = [torch.tensor(1 / N, device=DEVICE).expand(N) for N in (130, 70)]
    assert_equal(fused(audio, text, scale, *grads), fused(audio, text, scale, *(grad.clone() for grad in grads)))


@needs_gpu_or_interpreter
@pytest.mark.parametrize(("N_a", "N_t"), [(0, 5), (5, 0)])
def test_no_clips_or_no_captions(N_a, N_t):
    audio, text, scale, *grads = inputs((N_a, N_t, 4))
    values = fused(audio, text, scale, *grads)
    assert [tuple(value.shape) for value in values] == [(N_a,), (N_t,), (N_a, 4), (N_t, 4), ()]
    assert all((value == -torch.inf).all() for value in values[:2]) and all((value == 0).all() for value in values[2:])


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_reproducible(dtype):
    arguments = inputs((130, 200, 40), dtype, scale=10.0)
    assert_equal(fused(*arguments), fused(*arguments))


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_of_the_workspace_change_nothing(dtype, monkeypatch):
    from atk.kernels import info_nce

    # The forward takes one tile of clips at a time, the backward 64 clips x 128 captions.
    audio, text, scale, *grads = inputs((300, 290, 40), dtype, unit=True, scale=30.0)
    positive = torch.randint(290, (300,), device=DEVICE)
    arguments = audio, text, scale, *grads, positive, -grads[0]
    monkeypatch.setattr(info_nce, "PART_BYTES", 1)
    monkeypatch.setattr(info_nce, "WEIGHT_BYTES", 64 * 128 * dtype.itemsize)
    monkeypatch.setattr(info_nce, "WEIGHT_COLUMNS", 128)
    assert info_nce.chunk_shape(300, 290, dtype) == (64, 128)
    assert_as_good_as_eager(arguments)


def test_the_workspace_is_bounded_for_any_size():
    from atk.kernels.info_nce import WEIGHT_BYTES, chunk_shape

    for dtype in (torch.float32, torch.bfloat16):
        for N_a, N_t in [(1, 1), (1, 10**7), (10**7, 1), (4096, 4096), (32768, 32768), (1000, 10**6), (10**6, 1000)]:
            height, width = chunk_shape(N_a, N_t, dtype)
            assert 1 <= height <= N_a and width % 64 == 0 and width < N_t + 64
            assert height * width * dtype.itemsize <= WEIGHT_BYTES
            assert height == N_a or height % 64 == 0
            single_chunk = height == N_a and width >= N_t
            assert single_chunk or height * width * dtype.itemsize >= WEIGHT_BYTES // 2


def test_launch_configurations_fit_packed_rows_and_fill_the_gpu():
    for device in (Device((9, 0), 132), Device((8, 0), 108)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for D in (1, 32, 33, 512, 700, 2048):
                assert packed_width(D) % info_nce_launch(dtype, packed_width(D), device).channels == 0
        for tiles in (1, 8, 32, 256, 5000):
            span = column_span(tiles, tiles, device)
            programs = tiles * -(-tiles // span)
            assert 1 <= span <= tiles and programs >= min(tiles * tiles, 4 * device.multiprocessors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_of_half_types_are_added_in_float32(dtype):
    from atk.kernels.info_nce import add_product

    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=draw).to(dtype).to(DEVICE) for shape in ((70, 200), (200, 40)))
    total = torch.full((70, 40), torch.nan, device=DEVICE)
    add_product(total, a, b, first=True)
    add_product(total, a, b, first=False)
    torch.testing.assert_close(total.double(), 2 * (a.double() @ b.double()), rtol=1e-6, atol=1e-4)


@pytest.mark.gpu
def test_memory_is_linear_in_the_pairs():
    peaks = []
    for N in (16384, 32768):
        arguments = inputs((N, N, 512), torch.bfloat16, unit=True, scale=20.0)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fused(*arguments)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] <= 200 * 2**20 and peaks[1] <= 2.1 * peaks[0]
