"""`atk.sigmoid_loss` and `atk.aligned_sigmoid_loss`: definitions, backends, gradients, compilation, errors.

Without a GPU the Triton cases run in Triton's interpreter, started by `tests/kernels/test_interpreter.py`.
"""

import math
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.info_nce_cases import assert_matches_truth, gradients, unit
from support.peak_memory import peak_growth
from support.public_cases import TRITON_DEVICE, no_bf16

import atk
from atk.ops import info_nce_op, logit_chunks, sigmoid_op
from atk.ops.backend import unavailable

DEVICES = {"chunked": torch.device("cpu"), "triton": TRITON_DEVICE}
KERNELS = [name for name in ("chunked", "triton") if unavailable(name, DEVICES[name], torch.float32) is None]


def loss(backend, positive=None):
    return lambda *inputs: (atk.sigmoid_loss(*inputs, positive=positive, backend=backend),)


def formula(audio, text, scale, bias, positive=None):
    """Eq. (1) of Zhai et al. with all logits in memory."""
    logits = scale * audio @ text.T + bias
    z = -torch.ones_like(logits)
    for i, j in enumerate(range(len(audio)) if positive is None else positive.tolist()):
        if j >= 0:
            z[i, j] = 1
    return (-(z * logits).sigmoid().log().sum() / len(audio),)


def scalars(scale=10.0, bias=-10.0, dtype=torch.float32):
    return torch.tensor(scale, dtype=dtype), torch.tensor(bias, dtype=dtype)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("pairs", [1, 2, 9])
def test_it_is_the_formula_in_float64(backend, pairs):
    values = *(torch.randn(pairs, 5, dtype=torch.float64) for _ in range(2)), *scalars(0.7, -1.0, torch.float64)
    torch.testing.assert_close(gradients(loss(backend), *values), gradients(formula, *values))
    positive = torch.tensor([3, -1, 0, 0, 8, 2, 1, 5, 5])[:pairs] % 9
    values = values[0], torch.randn(9, 5, dtype=torch.float64), *values[2:]
    torch.testing.assert_close(
        gradients(loss(backend, positive), *values), gradients(partial(formula, positive=positive), *values)
    )


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (120.0, -13.0), (-3.0, 2.0), (0.0, 0.0), (1e4, 3e3)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 3), (7, 1, 3), (33, 33, 512), (700, 600, 33)], ids=str)
def test_backends_equal_the_reference(backend, shape, scale, bias):
    N_a, N_t, D = shape
    if backend == "triton" and TRITON_DEVICE.type == "cpu" and N_a * N_t > 10_000:
        pytest.skip("takes a minute in the interpreter; the kernels are tested with several tiles in tests/kernels")
    positive = torch.randint(-1, N_t, (N_a,))
    values = unit(N_a, D), unit(N_t, D), *scalars(scale, bias)
    assert_matches_truth(
        loss(backend, positive), loss("reference", positive), *values, grad=5e-5 if abs(scale) < 1e3 else 5e-3
    )


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_float32(backend, dtype):
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip(no_bf16)
    values = unit(37, 96).to(dtype), unit(37, 96).to(dtype), *scalars()
    precision = torch.finfo(dtype).eps  # of the gradients, which have the dtype of the inputs
    assert loss(backend)(*values)[0].dtype == torch.float32
    assert_matches_truth(loss(backend), loss("reference"), *values, grad=precision, floor=2e-6)


def test_certain_pairs_keep_the_digits_of_their_loss():
    vectors = torch.eye(50)  # cosines of 0 and 1, logits of -30 and 30
    for backend in ("reference", "chunked"):
        value = atk.sigmoid_loss(vectors, vectors, 60.0, -30.0, backend=backend)
        assert value.item() == pytest.approx(50 * math.exp(-30), rel=1e-5)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_a_scale_of_nan_is_not_hidden(backend):
    outputs, grads = gradients(loss(backend), unit(40, 16), unit(40, 16), *scalars(scale=math.nan))
    assert all(value.isnan().all() for value in (*outputs, *grads))


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_hidden(backend, poison):
    audio, text = unit(20, 8), unit(20, 8)
    audio[3, 2] = poison
    (value,), grads = gradients(loss(backend), audio, text, *scalars())
    assert not torch.isfinite(value) and not torch.isfinite(grads[1]).all() and not torch.isfinite(grads[2])


def test_blocks_of_captions_and_of_ranks_add_up_to_the_full_loss():
    values = *(torch.randn(12, 8, dtype=torch.float64) for _ in range(2)), *scalars(2.0, -3.0, torch.float64)
    pairs = torch.arange(12)

    def blocks(audio, text, *scalars):
        total = 0
        for rows in pairs.split(5):
            for columns in pairs.split(7):
                local = torch.where(torch.isin(pairs[rows], columns), pairs[rows] - columns[0], -1)
                share = atk.sigmoid_loss(audio[rows], text[columns], *scalars, positive=local)
                total = total + share * len(rows) / 12
        return (total,)

    torch.testing.assert_close(gradients(blocks, *values), gradients(loss("reference"), *values))
    alone = torch.full((12,), -1)
    empty = atk.sigmoid_loss(values[0], values[1][:0], 2.0, -3.0, positive=alone)
    assert empty == 0


@pytest.mark.parametrize("chunk", [(10, 70), (100, 64)])
def test_chunks_of_any_shape_give_the_same_result(monkeypatch, chunk):
    positive, values = torch.randint(-1, 47, (53,)), (unit(53, 16), unit(47, 16), *scalars())
    for name, value in zip(("CHUNK_ROWS", "CHUNK_ELEMENTS"), chunk, strict=True):
        monkeypatch.setattr(logit_chunks, name, value)
    assert_matches_truth(loss("chunked", positive), loss("reference", positive), *values)


def test_two_runs_give_the_same_bits():
    values = unit(1100, 48), unit(1100, 48), *scalars()
    first, second = ([*outputs, *grads] for outputs, grads in (gradients(loss("chunked"), *values) for _ in range(2)))
    assert all(torch.equal(value, again) for value, again in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_autocast_does_not_lower_the_precision(backend):
    values = unit(20, 64), unit(20, 64), *scalars()
    wanted = gradients(loss(backend), *values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(backend)(*values)[0], wanted[0][0], rtol=0, atol=0)
        mixed = atk.sigmoid_loss(values[0], values[1].bfloat16(), *values[2:], backend=backend)
    widened = atk.sigmoid_loss(values[0], values[1].bfloat16().float(), *values[2:], backend=backend)
    torch.testing.assert_close(mixed, widened)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("positive", [None, torch.tensor([4, -1, 0, 0, 2])], ids=["pairs", "positives"])
def test_gradcheck(backend, positive):
    audio, text = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    values = audio, text, *(value.requires_grad_() for value in scalars(2.0, -1.0, torch.float64))
    assert torch.autograd.gradcheck(loss(backend, positive), values)


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.slow), "chunked"])
def test_compiles_into_one_graph(backend):
    values = unit(9, 8), unit(9, 8), *scalars()
    torch.compiler.reset()
    for function in (loss(backend), loss(backend, torch.randperm(9))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(gradients(compiled, *values), gradients(function, *values))


@pytest.mark.parametrize("positive", [None, torch.tensor([2, -1, 1, 2])], ids=["no positives", "positives"])
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_opcheck(positive, dtype, keep):
    vectors = [torch.randn(n, 6).to(dtype).requires_grad_() for n in (4, 3)]
    factors = [value.requires_grad_() for value in scalars(dtype=dtype if dtype == torch.float64 else torch.float32)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        sigmoid_op._forward.overload, (*vectors, *factors, positive, "chunked", keep), test_utils=tests
    )
    vectors, factors = ([value.detach() for value in values] for values in (vectors, factors))
    logits = sigmoid_op._forward(*vectors, *factors, positive, "chunked", keep)[1] if keep else None
    inputs = *vectors, *factors, positive, logits, torch.ones_like(factors[0]).repeat(4), "chunked"
    torch.library.opcheck(sigmoid_op._backward.overload, inputs, test_utils=tests)


@pytest.mark.parametrize("which", range(4))
def test_second_derivatives(which):
    leaves = [value.requires_grad_() for value in (unit(5, 4), unit(5, 4), *scalars())]
    for backend in ("chunked", "reference"):
        (grad,) = torch.autograd.grad(loss(backend)(*leaves)[0], leaves[which], create_graph=True)
        if backend == "reference":
            grad.sum().backward()
        else:
            with pytest.raises(RuntimeError, match=r"atk\.sigmoid_loss has no second derivative"):
                grad.sum().backward()


def test_kept_logits_change_no_bit(monkeypatch):
    values = unit(30, 8), unit(30, 8), *scalars(dtype=torch.float32)
    results = []
    for budget in (30 * 30 * 4, 30 * 30 * 4 - 1):
        monkeypatch.setattr(info_nce_op, "LOGIT_BUDGET", budget)
        results.append(gradients(loss("chunked"), *values))
    torch.testing.assert_close(*results, rtol=0, atol=0)


_STEP = """
from atk.ops import info_nce_op
info_nce_op.LOGIT_BUDGET = 0

def step(pairs):
    vectors = [torch.nn.functional.normalize(torch.randn(pairs, 64), dim=-1).requires_grad_() for _ in range(2)]
    scalars = [torch.tensor(value, requires_grad=True) for value in (10.0, -10.0)]
    atk.sigmoid_loss(*vectors, *scalars, backend=sys.argv[2]).backward()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_logits_beyond_the_budget_are_never_in_memory():
    assert peak_growth(_STEP, 8192, "chunked") < 70  # MB; the logits of 8,192 pairs would take 268


def aligned_inputs(dtype=torch.float64):
    frames, tokens = torch.randn(4, 6, 8, dtype=dtype), torch.randn(4, 3, 8, dtype=dtype)
    return frames, tokens, *scalars(3.0, -2.0, dtype)


def test_the_aligned_loss_is_the_sigmoid_loss_of_the_similarity():
    values = aligned_inputs()

    def plain(frames, tokens, scale, bias):
        logits = scale * atk.max_mean_similarity(frames, tokens, normalize=True, backend="reference") + bias
        return (-F.logsigmoid((2 * torch.eye(4) - 1) * logits).sum() / 4,)

    aligned = partial(atk.aligned_sigmoid_loss, normalize=True)
    torch.testing.assert_close(
        gradients(lambda *x: (aligned(*x, backend="reference"),), *values), gradients(plain, *values)
    )
    assert torch.autograd.gradcheck(
        lambda *x: atk.aligned_sigmoid_loss(*x, backend="reference"), [value.requires_grad_() for value in values]
    )


def test_skipped_pairs_have_a_small_weight_and_leave_the_scalars_exact():
    frames, tokens, scale, bias = aligned_inputs()
    (value,), exact = gradients(lambda *x: (atk.aligned_sigmoid_loss(*x, normalize=True),), frames, tokens, scale, bias)
    for skip_below in (0.05, 0.5):
        aligned = partial(atk.aligned_sigmoid_loss, normalize=True, skip_below=skip_below)
        (skipped,), grads = gradients(lambda *x, f=aligned: (f(*x),), frames, tokens, scale, bias)
        torch.testing.assert_close([skipped, *grads[2:]], [value, *exact[2:]])
        error = (grads[0] - exact[0]).norm(dim=-1)
        norms = frames.norm(dim=-1)  # the bound is that of unit vectors
        assert (error * norms).max() <= skip_below * scale / frames.shape[1]
    assert error.max() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: atk.sigmoid_loss(torch.randn(3, 4), torch.randn(2, 4), 1.0, 0.0), "number N of pairs, got 3 and 2"),
        (lambda: atk.sigmoid_loss(torch.randn(0, 4), torch.randn(0, 4), 1.0, 0.0), "got 0 and 0"),
        (
            lambda: atk.sigmoid_loss(torch.randn(3, 4), torch.randn(3, 4), 1.0, torch.ones(2)),
            r"logit_bias must be .*got .*\[2\]",
        ),
        (lambda: atk.sigmoid_loss(torch.randn(3, 4), torch.randn(3, 4), 1.0, 0.0, backend="cpp"), "backend must be"),
        (
            lambda: atk.sigmoid_loss(torch.randn(2, 4), torch.randn(3, 4), 1.0, 0.0, positive=torch.tensor([0, 3])),
            "positive must lie within the 3 rows of text, or be -1 for none, got 0 to 3",
        ),
        (
            lambda: atk.sigmoid_loss(torch.randn(2, 4), torch.randn(3, 4), 1.0, 0.0, positive=torch.tensor([0, -2])),
            "or be -1 for none, got -2 to 0",
        ),
        (
            lambda: atk.sigmoid_loss(torch.randn(0, 4), torch.randn(3, 4), 1.0, 0.0, positive=torch.zeros(0).long()),
            "audio must hold at least one clip, got 0",
        ),
        (lambda: atk.aligned_sigmoid_loss(torch.randn(3, 2, 4), torch.randn(2, 2, 4), 1.0, 0.0), "got 3 and 2"),
        (
            lambda: atk.aligned_sigmoid_loss(*torch.randn(2, 3, 2, 4), 1.0, 0.0, skip_below=1.0),
            "skip_below must be at least 0 and below 1, the largest weight, got 1.0",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(TypeError, match="logit_bias must be a number or a real tensor of one element, got str"):
        atk.sigmoid_loss(torch.randn(3, 4), torch.randn(3, 4), 1.0, "-10")


def test_backends_are_listed():
    row = atk.backends("sigmoid_loss")["cpu float64"]
    assert list(row) == ["auto", "triton", "chunked", "reference"]
    assert row["auto"] == "chunked" and "not float64" in row["triton"]
