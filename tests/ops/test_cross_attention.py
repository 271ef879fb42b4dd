"""`atk.cross_attention_difference` against `nn.MultiheadAttention` and the mask of (4.12), on every available backend.

Without a GPU, the Triton cases run in Triton's interpreter, started by `tests/kernels/test_interpreter.py`.
"""

import pytest
import torch
from support.cross_attention_cases import BACKENDS, TRITON_DEVICE, gradients, inputs, op
from torch import nn

import atk

NAMES = ("source", "q", "k", "v", "out_weight", "out_bias")


def multihead(heads, mask):
    """The definition, with PyTorch's `multi_head_attention_forward`; clips without a reference return their source."""

    def call(source, q, k, v, out_weight, out_bias):
        identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        no_bias = q.new_zeros(3 * q.shape[-1])
        valid = torch.ones(k.shape[:2], dtype=torch.bool) if mask is None else mask
        absent = ~valid.any(1)
        # nn.functional takes the sequence first; the input projections are identities.
        attended, _ = nn.functional.multi_head_attention_forward(
            q.mT.movedim(2, 0), k.mT.movedim(2, 0), v.mT.movedim(2, 0), q.shape[-1], heads, None, no_bias,
            None, None, False, 0.0, out_weight, out_bias, key_padding_mask=~(valid | absent[:, None]),
            need_weights=False, use_separate_proj_weight=True, q_proj_weight=identity, k_proj_weight=identity,
            v_proj_weight=identity,
        )  # fmt: skip
        z_sim = attended.movedim(0, 1)
        return torch.where(absent[:, None, None], source, (1 - torch.sigmoid(z_sim)) * source)

    return call


def check(got, truth, eager, dtype):
    """Allow 3 times the errors of `eager` in the same dtype, plus a few roundings of the largest value."""
    for name, value, wanted, plain in zip(("out", *NAMES), got, truth, eager, strict=False):
        scale = wanted.abs().max().item() if wanted.numel() else 0.0
        allowed = 3 * (plain.double() - wanted).abs().max().item() if wanted.numel() else 0.0
        error = (value.double() - wanted).abs().max().item() if wanted.numel() else 0.0
        assert value.dtype == dtype and error <= allowed + 8 * torch.finfo(dtype).eps * scale, (name, error, allowed)


SHAPES = [  # n, frames, keys, width, heads
    (3, 7, 9, 12, 3),
    (2, 1, 1, 4, 4),
    (1, 33, 17, 20, 1),
    (4, 5, 70, 40, 2),
    (2, 130, 65, 24, 8),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_values_and_gradients_are_those_of_multihead_attention(backend, shape, masked, dtype):
    if backend == "triton" and (dtype == torch.float64 or (dtype == torch.bfloat16 and TRITON_DEVICE.type == "cpu")):
        pytest.skip("the kernels have no float64, and the interpreter's bfloat16 products are wrong (triton 3.7.1)")
    n, frames, keys, width, heads = shape
    tensors, mask = inputs(n, frames, keys, width, dtype, bias=masked)
    mask, grad = mask if masked else None, torch.randn(n, frames, width)
    doubles = [None if value is None else value.double() for value in tensors]
    truth = gradients(multihead(heads, mask), doubles, grad.to(dtype))
    eager = gradients(op("reference", heads, mask), tensors, grad)
    check(gradients(op(backend, heads, mask), tensors, grad), truth, eager, dtype)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("frames", "keys"), [(4096, 100), (100, 4096), (1500, 1100)])
def test_long_clips(masked, frames, keys):
    tensors, mask = inputs(2, frames, keys, 16)
    mask, grad = mask if masked else None, torch.randn(2, frames, 16)
    truth = gradients(multihead(2, mask), [value.double() for value in tensors], grad)
    eager = gradients(op("reference", 2, mask), tensors, grad)
    check(gradients(op("sdpa", 2, mask), tensors, grad), truth, eager, torch.float32)


@pytest.mark.parametrize("calls", [1, 3])
def test_trailing_padding_of_long_clips_is_trimmed(monkeypatch, calls):
    tensors, _ = inputs(3, 300, 1100, 16)
    mask = torch.arange(1100) < torch.tensor([1100, 40, 0] if calls == 3 else [1100, 1099, 1098])[:, None]
    mask[0, 3:900:7] = False
    grad, key_counts = torch.randn(3, 300, 16), []
    truth = gradients(multihead(2, mask), [value.double() for value in tensors], grad)
    eager = gradients(op("reference", 2, mask), tensors, grad)
    attention = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr("atk.ops.cross_attention_op.TRIMMED_WORK", 1 << 18)
    monkeypatch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, mask: key_counts.append(k.shape[2]) or attention(q, k, v, mask),
    )
    check(gradients(op("sdpa", 2, mask), tensors, grad), truth, eager, torch.float32)
    assert key_counts == ([1100, 40, 1] if calls == 3 else [1100])  # one call per clip only if it saves enough


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_padded_keys_contribute_nothing(backend, poison):
    tensors, mask = inputs()
    grad = torch.randn_like(tensors[0])
    poisoned = [value.clone() for value in tensors]
    for value in poisoned[2:4]:
        value[~mask] = poison
    clean = gradients(op(backend, 3, mask), tensors, grad)
    got = gradients(op(backend, 3, mask), poisoned, grad)
    assert all(torch.equal(value, wanted) for value, wanted in zip(got, clean, strict=True))
    assert clean[3][~mask].eq(0).all() and clean[4][~mask].eq(0).all() and clean[3][mask].ne(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_without_a_reference_come_back_bit_for_bit(backend):
    tensors, mask = inputs()
    tensors[0][-1, 2], tensors[1][-1] = float("inf"), float("nan")  # in the clip without a reference
    grad = torch.randn_like(tensors[0])
    out, d_source, d_q, d_k, d_v, d_weight, d_bias = gradients(op(backend, 3, mask), tensors, grad)
    assert torch.equal(out[-1], tensors[0][-1]) and torch.equal(d_source[-1], grad[-1])
    assert d_q[-1].eq(0).all() and d_k[-1].eq(0).all() and d_v[-1].eq(0).all()
    assert not torch.equal(out[0], tensors[0][0]) and d_weight.isfinite().all() and d_bias.ne(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_empty_references_clips_and_batches(backend, masked):
    for n, frames, keys in ((2, 3, 0), (2, 0, 4), (0, 3, 4), (0, 0, 0)):
        tensors = [torch.randn(n, length, 8) for length in (frames, frames, keys, keys)]
        tensors += [torch.randn(8, 8), torch.randn(8)]
        mask = torch.ones(n, keys, dtype=torch.bool) if masked else None
        out, *grads = gradients(op(backend, 2, mask), tensors, torch.ones(n, frames, 8))
        assert torch.equal(out, tensors[0]) and grads[0].eq(1).all()
        assert all(grad.shape == value.shape for grad, value in zip(grads, tensors, strict=True))
        assert all(grad.eq(0).all() for grad in grads[1:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", range(4))
def test_nan_in_a_valid_position_propagates(backend, which):
    tensors, mask = inputs()
    tensors[which][0, 2] = float("nan")
    out = op(backend, 3, mask)(*tensors)
    assert out[0, 2].isnan().all() and out[1:].isfinite().all()
    assert which < 2 or out[0].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_and_huge_logits(backend):
    tensors, mask = inputs()
    grad = torch.randn_like(tensors[0])
    strided = [value.mT.contiguous().mT for value in tensors[:5]] + tensors[5:]
    wanted = gradients(op("reference", 3, mask), tensors, grad)
    for got, want in zip(gradients(op(backend, 3, mask), strided, grad), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    huge = [tensors[0], 1e3 * tensors[1], 1e3 * tensors[2], *tensors[3:]]
    assert all(value.isfinite().all() for value in gradients(op(backend, 3, mask), huge, grad))


def test_autocast_determines_the_dtype():
    tensors, mask = inputs()
    tensors[0] = tensors[0].to(torch.bfloat16)  # dtypes may differ, as after a linear layer under autocast
    for backend in ("reference", "sdpa"):
        with torch.autocast("cpu", torch.bfloat16):
            out, *grads = gradients(op(backend, 3, mask), tensors, torch.ones_like(tensors[0]))
        assert out.dtype == torch.bfloat16
        assert [grad.dtype for grad in grads] == [value.dtype for value in tensors]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source": [1.0]}, TypeError, r"source must be a torch.Tensor of shape \[N, L_a, D\], got list"),
        ({"q": torch.randn(2, 4)}, ValueError, r"q must have shape \[N, L_a, D\], got \[2, 4\]"),
        ({"q": torch.randn(2, 4, 8)}, ValueError, r"q must have the shape of source, \[2, 3, 8\], got \[2, 4, 8\]"),
        ({"k": torch.randn(2, 5, 6)}, ValueError, "k and source must have the same width D, got 6 and 8"),
        ({"k": torch.randn(3, 5, 8)}, ValueError, r"v must have the shape of k, \[3, 5, 8\], got \[2, 5, 8\]"),
        ({"v": torch.randn(2, 4, 8)}, ValueError, r"v must have the shape of k, \[2, 5, 8\], got \[2, 4, 8\]"),
        (
            {"k": torch.randn(3, 5, 8), "v": torch.randn(3, 5, 8)},
            ValueError,
            "k and source must hold the same number N of clips, got 3 and 2",
        ),
        ({"k": torch.randn(2, 5, 8).double()}, TypeError, "k and source must have the same dtype, got torch.float64"),
        ({"k": torch.randn(2, 5, 8, device="meta")}, ValueError, "k and source must be on the same device, got meta"),
        ({"out_weight": torch.randn(7, 8)}, ValueError, r"out_weight must have shape \[D, D\] with D = 8, got"),
        ({"out_bias": torch.randn(1, 8)}, ValueError, r"out_bias must have shape \[D\], got \[1, 8\]"),
        ({"key_mask": torch.ones(2, 5)}, TypeError, "key_mask must be a boolean tensor, True = valid, got torch.float"),
        ({"key_mask": torch.ones(2, 3).bool()}, ValueError, r"key_mask must have shape \[2, 5\].* of k, got \[2, 3\]"),
        ({"num_heads": 3}, ValueError, "num_heads must be a positive integer that divides D = 8, got 3"),
        ({"num_heads": 0}, ValueError, "num_heads must be a positive integer that divides D = 8, got 0"),
        ({"num_heads": 2.0}, ValueError, "num_heads must be a positive integer that divides D = 8, got 2.0"),
        ({"backend": "cuda"}, ValueError, "argument backend must be 'auto' or one of 'triton', 'sdpa', 'reference'"),
        ({"backend": "cpp"}, atk.BackendError, "'cpp' .argument backend.: this op has no such backend; use 'auto' or"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    names = {"source": 3, "q": 3, "k": 5, "v": 5}
    arguments = {name: torch.randn(2, length, 8) for name, length in names.items()}
    arguments |= {"out_weight": torch.randn(8, 8), "out_bias": torch.randn(8), "num_heads": 2, **change}
    with pytest.raises(error, match=message):
        atk.cross_attention_difference(**arguments)


def test_the_environment_variable_is_ignored_by_ops_without_that_backend(monkeypatch):
    tensors, mask = inputs()
    monkeypatch.setenv("ATK_BACKEND", "cpp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atk.ops.cross_attention_op.attend", lambda *arguments: pytest.fail("sdpa ran"))
        with pytest.raises(pytest.fail.Exception, match="sdpa ran"):
            op("auto", 3, mask)(*tensors)
        monkeypatch.setenv("ATK_BACKEND", "reference")
        op("auto", 3, mask)(*tensors)
    monkeypatch.setenv("ATK_BACKEND", "sdpa")
    assert atk.max_mean_similarity(torch.randn(2, 3, 4), torch.randn(2, 3, 4)).shape == (2, 2)
    with pytest.raises(atk.BackendError, match="this op has no such backend; use 'auto' or one of 'triton', 'cpp'"):
        atk.max_mean_similarity(torch.randn(2, 3, 4), torch.randn(2, 3, 4), backend="sdpa")
    monkeypatch.setenv("ATK_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="environment variable ATK_BACKEND must be 'auto' or one of"):
        op("auto", 3, mask)(*tensors)


def test_backends_are_listed_for_each_op():
    row = atk.backends("cross_attention_difference")["cpu float64"]
    assert list(row) == ["auto", "triton", "sdpa", "reference"]
    assert row["auto"] == "sdpa" and row["sdpa"] == "available" and "not float64" in row["triton"]
    assert list(atk.backends()["cpu float32"]) == ["auto", "triton", "cpp", "chunked", "reference"]
    with pytest.raises(ValueError, match=r"op must be one of 'max_mean_similarity', .*, got 'nonsense'"):
        atk.backends("nonsense")
