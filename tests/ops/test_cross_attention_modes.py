"""Cross-attention difference: derivatives, compilation, memory, Triton's wiring, and the modules over it."""

import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.cross_attention_cases import BACKENDS, gradients, inputs, op
from support.peak_memory import peak_growth
from torch import nn

import atk
from atk.ops import cross_attention_op, reference


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(backend, masked):
    tensors, mask = inputs(dtype=torch.float64, frames=3, keys=4, width=6)
    leaves = [value.requires_grad_() for value in tensors]
    assert torch.autograd.gradcheck(op(backend, 2, mask if masked else None), leaves)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(op(backend, 2, mask if masked else None), leaves)


@pytest.fixture
def stand_in(monkeypatch):
    """Imitates `atk.kernels.cross_attention` in plain PyTorch, so that the wiring runs where Triton does not."""

    def forward(source, q, k, v, out_weight, out_bias, key_mask, num_heads):
        everything = source, q, k, v, out_weight, out_bias, key_mask
        assert all(value is None or value.is_contiguous() for value in everything)
        out = reference.cross_attention_difference(*everything, num_heads)
        lse = torch.zeros(q.shape[0], num_heads, q.shape[1])
        return out.clone(), source.clone(), q.clone(), lse

    def backward(grad, source, q, k, v, out_weight, out_bias, key_mask, num_heads, gate, attended, lse):
        assert grad.is_contiguous() and torch.equal(gate, source) and lse.shape == (len(q), num_heads, q.shape[1])
        given = [source, q, k, v, out_weight, out_bias]

        def plain(*leaves):
            return reference.cross_attention_difference(*leaves, key_mask, num_heads)

        with ThreadPoolExecutor(1) as other_thread:  # autograd is off inside a custom op
            grads = iter(other_thread.submit(gradients, plain, given, grad).result()[1:])
        return tuple(None if value is None else next(grads).contiguous() for value in given)

    module = types.SimpleNamespace(forward=forward, backward=backward)
    monkeypatch.setitem(sys.modules, "atk.kernels.cross_attention", module)
    monkeypatch.setattr("atk.kernels.cross_attention", module, raising=False)
    monkeypatch.setattr("atk.kernels.launch.unavailable", lambda device_type: None)


@pytest.mark.parametrize("bias", [False, True])
def test_triton_wiring_passes_values_and_gradients_through(stand_in, bias):
    tensors, mask = inputs(bias=bias)
    tensors[:4] = [value.mT.contiguous().mT for value in tensors[:4]]
    grad = torch.randn(tensors[0].mT.shape).mT
    wanted = gradients(op("reference", 3, mask), tensors, grad)
    for got, want in zip(gradients(op("triton", 3, mask), tensors, grad), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bias", [False, True])
def test_opcheck(stand_in, bias):
    (source, q, k, v, weight, out_bias), mask = inputs(bias=bias, dtype=torch.float64)
    leaves = [None if value is None else value.requires_grad_() for value in (source, q, k, v, weight, out_bias)]
    absent = ~mask.any(1)
    out, gate = cross_attention_op._epilogue(q, weight, out_bias, source, absent)
    calls = {
        cross_attention_op._epilogue: [(q, weight, out_bias, source, at) for at in (None, absent)],
        cross_attention_op._forward: [(*leaves, mask, 3), (*leaves, None, 3)],
    }
    fixed = [None if value is None else value.detach() for value in leaves]
    lse = torch.zeros(len(q), 3, q.shape[1])
    saved = fixed[0], fixed[1], lse  # what the stand-in calls gate and attended
    calls[cross_attention_op._epilogue_backward] = [
        (out.detach(), fixed[1], fixed[4], fixed[0], gate.detach(), at, bias) for at in (None, absent)
    ]
    calls[cross_attention_op._backward] = [(out.detach(), *fixed, mask, 3, *saved)]
    for custom_op, arguments in calls.items():
        for each in arguments:
            torch.library.opcheck(custom_op, each)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_into_one_graph(backend, masked):
    tensors, mask = inputs()
    mask, grad = mask if masked else None, torch.randn_like(tensors[0])
    torch.compiler.reset()
    compiled = torch.compile(op(backend, 3, mask), fullgraph=True, backend="aot_eager")
    wanted = gradients(op(backend, 3, mask), tensors, grad)
    for got, want in zip(gradients(compiled, tensors, grad), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
@pytest.mark.parametrize("which", range(6))
def test_second_derivatives_raise(stand_in, backend, which):
    tensors, mask = inputs()
    leaves = [value.requires_grad_() for value in tensors]
    out = op(backend, 3, mask)(*leaves)
    (grad,) = torch.autograd.grad(out.square().sum(), leaves[which], create_graph=True)
    with pytest.raises(RuntimeError, match=r"atk\.cross_attention_difference has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 3, 64, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_the_cpu_takes_the_flash_kernel(dtype, width, masked):
    tensors, mask = inputs(width=2 * width, dtype=dtype)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):  # which else raises
        gradients(op("sdpa", 2, mask if masked else None), tensors, torch.randn_like(tensors[0]))


_STEP = """
def step(length):
    x = [torch.randn(1, length, 64, requires_grad=True) for _ in range(4)]
    mask = torch.arange(length)[None] < length - 5
    weight, bias = torch.randn(64, 64, requires_grad=True), torch.randn(64, requires_grad=True)
    atk.cross_attention_difference(*x, weight, bias, mask, num_heads=2, backend=sys.argv[2]).sum().backward()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_grows_as_the_length_not_as_its_square():
    def peak(length, backend):
        return peak_growth(_STEP, length, backend)

    # 18 tensors of 8,192 x 64 floats take 38 MB, the weights of one head 268.
    short, long = peak(4096, "sdpa"), peak(8192, "sdpa")
    assert long < 80 and long < 2.5 * short
    short, long = peak(2048, "reference"), peak(4096, "reference")
    assert long > 320 and long > 3 * short


@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_exchanged_with_multihead_attention(bias):
    torch.manual_seed(3)
    block = atk.nn.CrossAttentionDifference(12, 3, bias=bias)
    torch.manual_seed(3)
    attention = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True)
    assert [name for name, _ in block.named_parameters()] == [name for name, _ in attention.named_parameters()]
    for one, other in zip(block.parameters(), attention.parameters(), strict=True):
        assert torch.equal(one, other)  # the same initialisation, from the same draws
        nn.init.normal_(other)
    block.load_state_dict(attention.state_dict())
    back = atk.nn.CrossAttentionDifference.from_multihead_attention(attention).to_multihead_attention()
    assert back.batch_first and back.num_heads == 3
    frames, other = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    mask = torch.tensor([[True, False, True, True], [True] * 4])
    for each in (attention, back):
        similar, _ = each(frames, other, other, key_padding_mask=~mask, need_weights=False)
        wanted = (1 - torch.sigmoid(similar)) * frames
        torch.testing.assert_close(block(frames, other, mask), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"dropout": 0.1}, {"kdim": 5}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str
)
def test_attention_that_is_no_difference_is_refused(options):
    with pytest.raises(ValueError, match=f"attention must have no .*got .*{next(iter(options))}"):
        atk.nn.CrossAttentionDifference.from_multihead_attention(nn.MultiheadAttention(8, 2, **options))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_the_module_differentiates_everything_whatever_padding_holds(backend, poison):
    block = atk.nn.CrossAttentionDifference(12, 3, backend=backend)
    nn.init.normal_(block.in_proj_bias)
    (frames, _, other, *_), mask = inputs()
    other[~mask] = poison
    frames.requires_grad_(), other.requires_grad_()
    out = block(frames, other, mask)
    assert torch.equal(out[-1], frames[-1])
    out.square().sum().backward()
    clean = other.detach().masked_fill(~mask[..., None], 0).double().requires_grad_()
    double, truth = frames.detach().double().requires_grad_(), block.to_multihead_attention().double()
    similar, _ = truth(double, clean, clean, key_padding_mask=~(mask | ~mask.any(1)[:, None]), need_weights=False)
    present = mask.any(1)[:, None, None]
    (torch.where(present, 1 - torch.sigmoid(similar), 1) * double).square().sum().backward()
    got = [frames, other, *block.parameters()]
    for value, want in zip(got, [double, clean, *truth.parameters()], strict=True):
        expected = want.grad if want is not clean else want.grad.masked_fill(~mask[..., None], 0)
        torch.testing.assert_close(value.grad.double(), expected, rtol=1e-4, atol=1e-5)


def test_without_a_reference_the_input_comes_back():
    frames = torch.randn(2, 5, 12)
    for block in (atk.nn.CrossAttentionDifference(12, 3), atk.nn.SubtractionDifference()):
        assert block(frames) is frames
        nothing = torch.zeros(2, 5, dtype=torch.bool)
        assert torch.equal(block(frames, torch.full_like(frames, float("nan")), nothing), frames)
    assert torch.equal(atk.nn.CrossAttentionDifference(12, 3)(frames, frames[:, :0]), frames)


def test_subtraction_is_frame_by_frame():
    frames, other = torch.randn(2, 5, 12), torch.randn(2, 5, 12, requires_grad=True)
    mask = torch.rand(2, 5) > 0.5
    block = atk.nn.SubtractionDifference()
    assert torch.equal(block(frames, other), frames - other)
    out = block(frames, other, mask)
    assert torch.equal(out[mask], (frames - other)[mask]) and torch.equal(out[~mask], frames[~mask])
    out.sum().backward()
    assert torch.equal(other.grad, -mask[..., None].float().expand_as(other))


@pytest.mark.parametrize("block", [atk.nn.CrossAttentionDifference(12, 3), atk.nn.SubtractionDifference()], ids=str)
@pytest.mark.parametrize(
    ("frames", "other", "mask", "kind", "message"),
    [
        ((2, 12), (2, 5, 12), None, ValueError, r"input must have shape \[N, L(_a)?, D\], got \[2, 12\]"),
        ((2, 5, 12), (2, 5), None, ValueError, r"reference must have shape \[N, L_ref, D\], got \[2, 5\]"),
        ((2, 5, 12), (3, 5, 12), None, ValueError, "reference and input must hold the same number N of clips"),
        ((2, 5, 12), (2, 5, 8), None, ValueError, "reference and input must have the same width D, got 8 and 12"),
        ((2, 5, 12), (2, 5, 12), torch.ones(2, 4).bool(), ValueError, r"reference_mask must have shape \[2, 5\]"),
        ((2, 5, 12), (2, 5, 12), torch.ones(2, 5), TypeError, "reference_mask must be a boolean tensor"),
    ],
)
def test_errors_of_the_modules_name_the_argument(block, frames, other, mask, kind, message):
    with pytest.raises(kind, match=message):
        block(torch.randn(frames), torch.randn(other), mask)


def test_lengths_and_heads_must_fit():
    with pytest.raises(ValueError, match=r"reference must have the shape of input, \[2, 5, 4\], got \[2, 6, 4\]"):
        atk.nn.SubtractionDifference()(torch.randn(2, 5, 4), torch.randn(2, 6, 4))
    with pytest.raises(ValueError, match="num_heads must be a whole number that divides D = 12, got 5"):
        atk.nn.CrossAttentionDifference(12, 5)
    with pytest.raises(ValueError, match="input and in_proj_weight must have the same width D, got 4 and 12"):
        atk.nn.CrossAttentionDifference(12, 3)(torch.randn(2, 5, 4))
