"""The autograd op of InfoNCE: compilation, `opcheck`, second derivatives, the calls of the kernels, and memory."""

import sys
import types

import pytest
import torch
from support.info_nce_cases import assert_matches_truth, gradients, loss, lse, unit
from support.peak_memory import peak_growth

import atk
from atk.ops import info_nce_chunked, info_nce_op


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.slow), "chunked"])
def test_compiles_into_one_graph(backend):
    values = unit(9, 8), unit(9, 8), torch.tensor(7.0)
    torch.compiler.reset()
    for function in (loss(backend), loss(backend, torch.randperm(9)), lse(backend), lse(backend, False)):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(gradients(compiled, *values), gradients(function, *values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e4])  # the latter needs separate log-sum-exps
def test_the_logit_of_a_positive_out_of_range_is_nan(dtype, scale, monkeypatch):
    """A compiled graph does not check positives."""
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)  # memory that happens to hold a plausible logit
    values = unit(4, 6).to(dtype), unit(3, 6).to(dtype), torch.tensor(scale, dtype=dtype), torch.tensor([0, 1, 3, 2])
    row_lse, _, positive_logits, _ = info_nce_op._forward(*values, False, "chunked", False)
    assert positive_logits.isnan().tolist() == [False, False, True, False] and row_lse.isfinite().all()


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("positive", [None, torch.tensor([2, 0, 1, 2])], ids=["no positives", "positives"])
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_opcheck(columns, positive, dtype, keep):
    audio, text = (torch.randn(n, 6).to(dtype).requires_grad_() for n in (4, 3))
    scale = torch.tensor(2.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    inputs = audio, text, scale.clone().requires_grad_(), positive, columns, "chunked", keep
    torch.library.opcheck(info_nce_op._forward.overload, inputs, test_utils=tests)
    with torch.no_grad():
        row_lse, column_lse, positive_logits, logits = info_nce_op._forward(*inputs)
    lses = row_lse, column_lse if columns else None
    grads = torch.ones_like(row_lse), torch.ones_like(column_lse) if columns else None
    grad_positive = None if positive is None else torch.ones_like(positive_logits)
    inputs = audio.detach(), text.detach(), scale, *lses, *grads, positive, grad_positive
    inputs = *inputs, logits if keep else None, "chunked"
    torch.library.opcheck(info_nce_op._backward.overload, inputs, test_utils=tests)


@pytest.mark.parametrize("which", range(3))
def test_second_derivatives(which):
    leaves = [value.requires_grad_() for value in (unit(5, 4), unit(5, 4), torch.tensor(3.0))]
    for backend in ("chunked", "reference"):
        (grad,) = torch.autograd.grad(loss(backend)(*leaves)[0], leaves[which], create_graph=True)
        if backend == "reference":
            grad.sum().backward()
        else:
            with pytest.raises(RuntimeError, match=r"atk\.info_nce has no second derivative"):
                grad.sum().backward()


@pytest.fixture
def fake_kernels(monkeypatch):
    """Replace `atk.kernels.info_nce` with the chunked backend, so that the op can be tested without Triton."""

    def forward(audio, text, scale, columns):
        assert audio.is_contiguous() and text.is_contiguous() and scale.dtype == torch.float32 and scale.dim() == 0
        return info_nce_chunked.forward(audio, text, scale, None, columns)[:2]

    def backward(*tensors):
        assert all(value is None or value.is_contiguous() for value in tensors)
        return info_nce_chunked.backward(*tensors)

    module = types.SimpleNamespace(forward=forward, backward=backward)
    monkeypatch.setitem(sys.modules, "atk.kernels.info_nce", module)
    monkeypatch.setattr("atk.kernels.info_nce", module, raising=False)
    monkeypatch.setattr("atk.kernels.availability.unavailable", lambda device_type: None)
    monkeypatch.setattr(info_nce_op, "_PAIRS_AT_A_TIME", 4)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positive", [None, torch.randint(9, (9,))], ids=["both directions", "rows"])
def test_triton_wiring_passes_values_and_gradients_through(fake_kernels, dtype, positive):
    audio, text, scale = unit(8, 9).T.to(dtype), unit(8, 9).T.to(dtype), torch.tensor(4.0)
    precision = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-5
    assert_matches_truth(loss("triton", positive), loss("reference", positive), audio, text, scale, grad=precision)
    assert_matches_truth(lse("triton"), lse("reference"), audio, text, scale, grad=precision)
    with pytest.raises(atk.BackendError, match="not float64"):
        atk.info_nce(audio.double(), text.double(), scale, backend="triton")


@pytest.mark.parametrize("scale", [7.0, 1e5], ids=["shared exponentials", "separate exponentials"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kept_logits_change_no_bit(scale, dtype, monkeypatch):
    values = unit(30, 8).to(dtype), unit(30, 8).to(dtype), torch.tensor(scale)
    for function in (loss("chunked"), loss("chunked", torch.randperm(30)), lse("chunked")):
        results = []
        for budget in (30 * 30 * 4, 30 * 30 * 4 - 1):
            monkeypatch.setattr(info_nce_op, "LOGIT_BUDGET", budget)
            results.append(gradients(function, *values))
        torch.testing.assert_close(*results, rtol=0, atol=0)


def test_the_budget_decides_what_is_kept(monkeypatch):
    audio, text = unit(5, 4).requires_grad_(), unit(5, 4)
    for budget, kept in ((100, [25]), (99, [])):
        monkeypatch.setattr(info_nce_op, "LOGIT_BUDGET", budget)
        row_lse, _ = atk.pairwise_logsumexp(audio, text, 2.0)
        sizes = [value.numel() for value in row_lse.grad_fn.saved_tensors if value is not None]
        assert [size for size in sizes if size == 25] == kept


def test_gradients_can_be_taken_twice_from_kept_logits():
    audio, text = unit(9, 4).requires_grad_(), unit(9, 4).requires_grad_()
    value = atk.info_nce(audio, text, 5.0, backend="chunked")
    first, second = (torch.autograd.grad(value, (audio, text), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


_STEP = """
from atk.ops import info_nce_op
info_nce_op.LOGIT_BUDGET = 0

def step(pairs):
    vectors = [torch.nn.functional.normalize(torch.randn(pairs, 64), dim=-1).requires_grad_() for _ in range(2)]
    scale = torch.tensor(20.0, requires_grad=True)
    atk.info_nce(*vectors, scale, backend=sys.argv[2]).backward()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_is_linear_in_the_number_of_pairs():
    def peak(pairs, backend):
        return peak_growth(_STEP, pairs, backend)

    # Chunks take up to 34 MB, and the inputs and gradients of 8,192 pairs take 8 MB; the logits would take 268 MB.
    short, long = peak(4096, "chunked"), peak(8192, "chunked")
    assert long < 70 and long < 2.2 * short
    assert peak(4096, "reference") > 130


def test_backends_are_listed():
    row = atk.backends("info_nce")["cpu float64"]
    assert list(row) == ["auto", "triton", "chunked", "reference"]
    assert row["auto"] == "chunked" and "not float64" in row["triton"]
    assert atk.backends("info_nce")["cpu bfloat16"]["auto"] == "chunked"
