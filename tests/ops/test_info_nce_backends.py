"""The backends of InfoNCE: values and gradients against the reference, logits of any magnitude, and blocks of ranks.

Without a GPU, the Triton cases run in Triton's interpreter, started by `tests/kernels/test_interpreter.py`.
"""

import pytest
import torch
import torch.nn.functional as F
from support.info_nce_cases import assert_matches_truth, gradients, loss, lse, unit
from support.public_cases import TRITON_DEVICE, no_bf16

import atk
from atk.ops import info_nce_chunked, logit_chunks
from atk.ops.backend import unavailable

DEVICES = {"chunked": torch.device("cpu"), "triton": TRITON_DEVICE}
KERNELS = [name for name in ("chunked", "triton") if unavailable(name, DEVICES[name], torch.float32) is None]
HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("scale", [0.0, -3.0, 5.0, 100.0])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 7, 3), (7, 1, 3), (33, 33, 512), (700, 600, 33), (40, 50, 2048)], ids=str
)
def test_log_sum_exps_equal_the_reference(backend, shape, scale):
    N_a, N_t, D = shape
    if backend == "triton" and TRITON_DEVICE.type == "cpu" and N_a * N_t > 10_000:
        pytest.skip("takes a minute in the interpreter; the kernels are tested with several tiles in tests/kernels")
    audio, text = unit(N_a, D), unit(N_t, D)
    for columns in (False, True):
        truth = lse("reference", columns)
        assert_matches_truth(lse(backend, columns), truth, audio, text, torch.tensor(scale), grad=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5000, 64), (600, 2048)], ids=str)
def test_the_loss_of_many_pairs(shape):
    audio = unit(*shape)
    text = F.normalize(audio + 4 * unit(*shape), dim=-1)
    assert_matches_truth(loss("chunked"), loss("reference"), audio, text, torch.tensor(15.0), grad=5e-5)


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_well_separated_pairs_have_at_most_twice_the_rounding_error_of_the_reference(noise, scale):
    audio = unit(600, 256)
    values = audio, F.normalize(audio + noise * unit(600, 256), dim=-1), torch.tensor(scale)
    truth = gradients(loss("reference"), *(value.double() for value in values))
    got, plain = (gradients(loss(backend), *values) for backend in ("chunked", "reference"))
    torch.testing.assert_close(got[0][0].double(), truth[0][0], rtol=1e-6, atol=1e-6)
    for grad, plain_grad, true in zip(got[1], plain[1], truth[1], strict=True):
        allowed = 2 * (plain_grad - true).abs().max() + 1e-5 * true.abs().max() + 1e-12
        assert (grad - true).abs().max() <= allowed


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pairs", [1, 37])
def test_half_precision_is_summed_in_float32(backend, dtype, pairs):
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip(no_bf16)
    audio, text = unit(pairs, 96).to(dtype), unit(pairs, 96).to(dtype)
    precision = torch.finfo(dtype).eps  # of the gradients, which have the dtype of the inputs
    assert_matches_truth(loss(backend), loss("reference"), audio, text, torch.tensor(20.0), grad=precision, floor=2e-6)


CASES = {
    "opposite": lambda: (x := unit(1, 8).repeat(9, 1), -x, 100.0),
    "one far column": lambda: (x := unit(1, 8).repeat(9, 1), torch.cat((x[:8], -x[:1])), 100.0),
    "duplicates": lambda: (unit(3, 8).repeat(5, 1), unit(3, 8).repeat(5, 1), 50.0),
    "unnormalized": lambda: (100 * torch.randn(20, 16), 100 * torch.randn(20, 16), 1.0),
    "far apart": lambda: (torch.randn(20, 16) * torch.logspace(-2, 2, 20)[:, None], torch.randn(20, 16), 10.0),
    "all large": lambda: (torch.full((20, 16), 30.0), torch.full((20, 16), 30.0) + 0.01 * torch.randn(20, 16), 1.0),
    "all small": lambda: (torch.full((20, 16), 30.0), torch.full((20, 16), -30.0), 1.0),
}


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_logits_of_any_magnitude(backend, case):
    audio, text, scale = CASES[case]()
    scale = torch.tensor(scale)
    # Logits of up to 1e6 are rounded, as in the reference.
    assert_matches_truth(lse(backend), lse("reference"), audio, text, scale, grad=5e-3)
    for grad in gradients(loss(backend), audio, text, scale)[1]:
        assert torch.isfinite(grad).all()


def test_shared_and_separate_exponentials_are_both_used(monkeypatch):
    calls = []
    separate = info_nce_chunked._separate_exponentials
    monkeypatch.setattr(info_nce_chunked, "_separate_exponentials", lambda *a: calls.append(1) or separate(*a))
    atk.info_nce(unit(50, 32), unit(50, 32), 100.0)
    assert not calls
    atk.info_nce(*CASES["one far column"]())
    audio, text, scale = CASES["all large"]()
    atk.info_nce(audio, text, scale)
    assert len(calls) == 1  # "all large" adds none: its logits are close to one another and to the bound
    atk.info_nce(*CASES["all small"]())
    assert len(calls) == 2


@pytest.mark.parametrize("spread", [1.0, 40.0])
@pytest.mark.parametrize("columns", [False, True])
def test_chunks_of_any_shape_give_the_same_result(monkeypatch, spread, columns):
    audio, text, positive = spread * unit(53, 16), unit(47, 16), torch.randint(47, (53,))
    scale = torch.tensor(30.0)
    monkeypatch.setattr(logit_chunks, "CHUNK_ROWS", 10)
    monkeypatch.setattr(logit_chunks, "CHUNK_ELEMENTS", 70)
    assert_matches_truth(lse("chunked", columns), lse("reference", columns), audio, text, scale, grad=2e-4)
    assert_matches_truth(loss("chunked", positive), loss("reference", positive), audio, text, scale, grad=2e-4)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("function", [loss, lse])
def test_a_scale_of_nan_is_not_hidden(backend, dtype, function):
    values = unit(40, 16).to(dtype), unit(40, 16).to(dtype), torch.tensor(float("nan"))
    outputs, grads = gradients(function(backend), *values)
    assert all(value.isnan().all() for value in (*outputs, *grads))


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_hidden(backend, poison):
    audio, text = unit(20, 8), unit(20, 8)
    audio[3, 2] = poison
    (value,), grads = gradients(loss(backend), audio, text, torch.tensor(10.0))
    assert not torch.isfinite(value) and grads[0][3].isnan().any() and grads[1].isnan().any()
    rows, _ = atk.pairwise_logsumexp(audio, text, 10.0, backend=backend)
    assert torch.isfinite(rows[[0, 19]]).all()


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_positive_is_the_column_of_each_row(backend):
    audio, text, positive = unit(6, 8), unit(9, 8), torch.tensor([8, 0, 0, 3, 5, 1])
    wanted = F.cross_entropy(12 * audio @ text.T, positive)
    torch.testing.assert_close(atk.info_nce(audio, text, 12.0, positive=positive, backend=backend), wanted)
    half = atk.info_nce(audio, text, 12.0, positive=positive, reduction="mean", backend=backend)
    torch.testing.assert_close(half, wanted / 2)
    assert_matches_truth(loss(backend, positive), loss("reference", positive), audio, text, torch.tensor(12.0))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("form", ["two calls", "one product"])
def test_blocks_of_ranks_add_up_to_the_full_loss(form, reduction):
    sizes = [5, 1, 6]
    audio, text = (torch.randn(sum(sizes), 8, dtype=torch.float64) for _ in range(2))
    scale, ends = torch.tensor(3.0, dtype=torch.float64), torch.tensor(sizes).cumsum(0)
    ranks = [torch.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def two_calls(a, t, s):
        for rows in ranks:
            audio_to_text = atk.info_nce(a[rows], t, s, positive=rows, reduction=reduction)
            text_to_audio = atk.info_nce(t[rows], a, s, positive=rows, reduction=reduction)
            yield (audio_to_text + text_to_audio) * len(rows) / len(a)

    def one_product(a, t, s):
        blocks = [atk.pairwise_logsumexp(a[rows], t, s) for rows in ranks]
        column_lse = torch.stack([columns for _, columns in blocks]).logsumexp(0)  # the reduction over ranks
        for rows, (row_lse, _) in zip(ranks, blocks, strict=True):
            positive_logits = s * (a[rows] * t[rows]).sum(1)
            total = (row_lse - positive_logits).sum() + (column_lse[rows] - positive_logits).sum()
            yield total / len(a) / (2 if reduction == "mean" else 1)

    blocks = two_calls if form == "two calls" else one_product
    got, grads = gradients(lambda *x: (torch.stack(list(blocks(*x))).sum(),), audio, text, scale)
    want, true_grads = gradients(
        lambda *x: (atk.info_nce(*x, reduction=reduction, backend="reference"),), audio, text, scale
    )
    torch.testing.assert_close([*got, *grads], [*want, *true_grads])


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("scale", [2.0, 200.0])
def test_gradcheck(columns, scale):
    audio, text = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    function = lse("chunked", columns)
    assert torch.autograd.gradcheck(lambda *x: tuple(y for y in function(*x) if y is not None), (audio, text, scale))


def test_two_runs_give_the_same_bits():
    values = unit(1100, 48), unit(1100, 48), torch.tensor(50.0)
    first, second = ([*outputs, *grads] for outputs, grads in (gradients(loss("chunked"), *values) for _ in range(2)))
    assert all(torch.equal(value, again) for value, again in zip(first, second, strict=True))


def test_log_sum_exps_over_an_empty_input_are_minus_infinity():
    for counts in ((0, 3), (3, 0)):
        for backend in ("reference", "chunked"):
            (rows, columns), grads = gradients(lse(backend), *(torch.randn(n, 4) for n in counts), torch.tensor(1.0))
            assert (len(rows), len(columns)) == counts and rows.eq(-torch.inf).all() and columns.eq(-torch.inf).all()
            assert all(grad.eq(0).all() for grad in grads)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_autocast_does_not_lower_the_precision(backend):
    audio, text, scale = unit(20, 64), unit(20, 64), torch.tensor(100.0)
    wanted = gradients(loss(backend), audio, text, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(loss(backend), audio, text, scale) if backend == "chunked" else wanted
        torch.testing.assert_close(loss(backend)(audio, text, scale)[0], wanted[0][0], rtol=0, atol=0)
        mixed = atk.info_nce(audio, text.bfloat16(), scale, backend=backend)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    torch.testing.assert_close(mixed, atk.info_nce(audio, text.bfloat16().float(), scale, backend=backend))
