"""The autograd ops of the cross-attention difference: derivatives, compilation, memory, and the calls of the kernels.

Without a GPU, the Triton cases run in Triton's interpreter, started by `tests/kernels/test_interpreter.py`.
"""

import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.cross_attention_cases import BACKENDS, gradients, inputs, op
from support.peak_memory import peak_growth

from atk.ops import cross_attention_op, reference


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(backend, masked):
    tensors, mask = inputs(dtype=torch.float64, frames=3, keys=4, width=6)
    leaves = [value.requires_grad_() for value in tensors]
    assert torch.autograd.gradcheck(op(backend, 2, mask if masked else None), leaves)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(op(backend, 2, mask if masked else None), leaves)


@pytest.fixture
def fake_kernels(monkeypatch):
    """Replace `atk.kernels.cross_attention` with plain PyTorch, so that the ops can be tested without Triton."""

    def forward(source, q, k, v, out_weight, out_bias, key_mask, num_heads):
        inputs = source, q, k, v, out_weight, out_bias, key_mask
        assert all(value is None or value.is_contiguous() for value in inputs)
        out = reference.cross_attention_difference(*inputs, num_heads)
        lse = torch.zeros(q.shape[0], num_heads, q.shape[1])
        return out.clone(), source.clone(), q.clone(), lse

    def backward(grad, source, q, k, v, out_weight, out_bias, key_mask, num_heads, gate, attended, lse):
        assert grad.is_contiguous() and torch.equal(gate, source) and lse.shape == (len(q), num_heads, q.shape[1])
        inputs = [source, q, k, v, out_weight, out_bias]

        def plain(*leaves):
            return reference.cross_attention_difference(*leaves, key_mask, num_heads)

        with ThreadPoolExecutor(1) as executor:  # autograd is disabled in the thread of a custom op
            grads = iter(executor.submit(gradients, plain, inputs, grad).result()[1:])
        return tuple(None if value is None else next(grads).contiguous() for value in inputs)

    module = types.SimpleNamespace(forward=forward, backward=backward)
    monkeypatch.setitem(sys.modules, "atk.kernels.cross_attention", module)
    monkeypatch.setattr("atk.kernels.cross_attention", module, raising=False)
    monkeypatch.setattr("atk.kernels.availability.unavailable", lambda device_type: None)


@pytest.mark.triton
@pytest.mark.parametrize("bias", [False, True])
def test_triton_wiring_passes_values_and_gradients_through(fake_kernels, bias):
    tensors, mask = inputs(bias=bias)
    tensors[:4] = [value.mT.contiguous().mT for value in tensors[:4]]
    grad = torch.randn(tensors[0].mT.shape).mT
    wanted = gradients(op("reference", 3, mask), tensors, grad)
    for got, want in zip(gradients(op("triton", 3, mask), tensors, grad), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [False, True])
def test_opcheck(fake_kernels, bias):
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
    saved = fixed[0], fixed[1], lse  # the gate and attended of the fake kernels
    calls[cross_attention_op._epilogue_backward] = [
        (out.detach(), fixed[1], fixed[4], fixed[0], gate.detach(), at, bias) for at in (None, absent)
    ]
    calls[cross_attention_op._backward] = [(out.detach(), *fixed, mask, 3, *saved)]
    for custom_op, argument_lists in calls.items():
        for arguments in argument_lists:
            torch.library.opcheck(custom_op.overload, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True])
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
def test_second_derivatives_raise(fake_kernels, backend, which):
    tensors, mask = inputs()
    leaves = [value.requires_grad_() for value in tensors]
    out = op(backend, 3, mask)(*leaves)
    (grad,) = torch.autograd.grad(out.square().sum(), leaves[which], create_graph=True)
    with pytest.raises(RuntimeError, match=r"atk\.cross_attention_difference has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 3, 64, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_the_cpu_uses_the_flash_kernel(dtype, width, masked):
    tensors, mask = inputs(width=2 * width, dtype=dtype)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):  # raises if it cannot run
        gradients(op("sdpa", 2, mask if masked else None), tensors, torch.randn_like(tensors[0]))


_STEP = """
def step(length):
    x = [torch.randn(1, length, 64, requires_grad=True) for _ in range(4)]
    mask = torch.arange(length)[None] < length - 5
    weight, bias = torch.randn(64, 64, requires_grad=True), torch.randn(64, requires_grad=True)
    atk.cross_attention_difference(*x, weight, bias, mask, num_heads=2, backend=sys.argv[2]).sum().backward()
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_is_linear_in_the_length():
    def peak(length, backend):
        return peak_growth(_STEP, length, backend)

    # 18 tensors of 8,192 x 64 floats take 38 MB, and the attention weights of one head take 268 MB.
    short, long = peak(4096, "sdpa"), peak(8192, "sdpa")
    assert long < 80 and long < 2.5 * short
    short, long = peak(2048, "reference"), peak(4096, "reference")
    assert long > 320 and long > 3 * short
