"""Calls that go past PyTorch's dispatcher: when they may, and that they give the same bits."""

import pytest
import torch
from support.public_cases import cpp_runs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import atk
from atk.ops.custom_op import watched


class Subclass(torch.Tensor):
    pass


class Names(TorchDispatchMode):
    """Collects the names of the ops that are called."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.name())
        return func(*args, **kwargs or {})


def test_who_watches_a_call():
    plain = torch.ones(2), torch.nn.Parameter(torch.ones(2))
    assert not watched(*plain)
    assert watched(torch.ones(2).as_subclass(Subclass)) and watched(torch.ones(2, device="meta"))
    with Names():
        assert watched(*plain)
    with torch.device("cpu"):
        assert watched(*plain)
    with torch.autograd.forward_ad.dual_level():
        assert watched(*plain)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert watched(*plain)
    seen = []
    torch.vmap(lambda x: (seen.append(watched(x)), x)[1])(plain[0])
    torch.jit.trace(lambda x: (seen.append(watched(x)), x + 1)[1], plain[0], check_trace=False)
    assert seen[0] and all(seen)
    assert not watched(*plain)


def step(function, *tensors):
    leaves = [value.clone().requires_grad_() for value in tensors]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out.sum(), leaves)


@cpp_runs
@pytest.mark.parametrize("shapes", [((1, 250), (1, 32)), ((3, 5), (7, 300))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("save_index", [None, False])
def test_a_watched_call_gives_the_same_bits(shapes, dtype, save_index):
    audio, text = (torch.randn(*shape, 24).to(dtype) for shape in shapes)

    def similarity(audio, text):
        return atk.max_mean_similarity(audio, text, save_index=save_index)

    direct, without_grad = step(similarity, audio, text), similarity(audio, text)
    with Names() as names:
        dispatched = step(similarity, audio, text)
    assert {"atk::max_mean_forward", "atk::max_mean_backward"} <= names.seen
    assert all(torch.equal(a, b) for a, b in zip(direct, dispatched, strict=True))
    assert torch.equal(without_grad, direct[0])


@cpp_runs
def test_embeddings_that_are_not_contiguous_or_not_differentiable():
    audio, text = torch.randn(3, 8, 9).mT, torch.randn(2, 5, 8)
    mask = torch.ones(audio.shape[:2], dtype=torch.bool)
    (grad,) = torch.autograd.grad(atk.max_mean_similarity(audio, text.requires_grad_()).square().sum(), text)
    (want,) = torch.autograd.grad(atk.max_mean_similarity(audio, text, mask).square().sum(), text)
    torch.testing.assert_close(grad, want)


def similarity(audio, text):
    return atk.max_mean_similarity(audio, text)


def normalized(audio, text):
    return atk.max_mean_similarity(audio, text, normalize=True)


def log_sum_exps(audio, text):
    return atk.pairwise_logsumexp(audio.flatten(0, 1), text.flatten(0, 1), 2.0)[0]


def difference(audio, text):
    return atk.cross_attention_difference(audio, audio, text, text, torch.eye(8, dtype=audio.dtype), num_heads=2)


ops = pytest.mark.parametrize("function", [similarity, normalized, log_sum_exps, difference])


@ops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_that_does_not_hold_the_values(function, dtype):
    audio, text = torch.randn(3, 9, 8, dtype=dtype), torch.randn(3, 5, 8, dtype=dtype)
    torch.testing.assert_close(function(torch._neg_view(audio), text), function(-audio, text))
    zeros = torch._efficientzerotensor(audio.shape, dtype=dtype)  # without memory: reading it ends the process
    assert watched(zeros)
    torch.testing.assert_close(function(zeros, text), function(torch.zeros_like(audio), text))
    out = function(audio.requires_grad_(), text)
    grad = torch.randn_like(out)
    lazy, plain = (torch.autograd.grad(out, audio, g, retain_graph=True) for g in (torch._neg_view(grad), -grad))
    torch.testing.assert_close(lazy, plain)


def test_masks_whose_memory_does_not_hold_the_values():
    audio, text = torch.randn(3, 9, 8), torch.randn(3, 5, 8)
    nothing = torch._efficientzerotensor((3, 9), dtype=torch.bool), torch._efficientzerotensor((3, 5), dtype=torch.bool)
    assert not atk.max_mean_similarity(audio, text, nothing[0]).any()
    assert not atk.max_mean_similarity(audio, text, None, nothing[1]).any()


def test_attention_reads_nothing_beyond_lazy_zeros():
    audio, text, weight = torch.randn(3, 9, 256), torch.randn(3, 5, 256), torch.eye(256)
    zeros = torch._efficientzerotensor(audio.shape)
    want = atk.cross_attention_difference(audio, torch.zeros_like(audio), text, text, weight, num_heads=1)
    for _ in range(20):  # what lies in memory there is left to chance
        torch.testing.assert_close(atk.cross_attention_difference(audio, zeros, text, text, weight, num_heads=1), want)


@ops
def test_a_batch_of_gradients(function):
    audio, text = torch.randn(3, 9, 8, requires_grad=True), torch.randn(3, 5, 8)
    out = function(audio, text)
    grads = torch.randn(4, *out.shape)
    (batch,) = torch.autograd.grad(out, audio, grads, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(out, audio, grad, retain_graph=True)[0] for grad in grads]
    torch.testing.assert_close(batch, torch.stack(each))


@pytest.mark.parametrize("function", [similarity, normalized, log_sum_exps])
def test_other_ways_to_differentiate_raise(function):
    """A forward-mode derivative of zeros, without an error, would be wrong."""
    audio, text = torch.randn(3, 9, 8), torch.randn(3, 5, 8)
    with pytest.raises(NotImplementedError, match=r"^atk::\w+ has no forward-mode derivative: use torch.autograd"):
        torch.func.jvp(lambda audio: function(audio, text), (audio,), (audio,))
    with pytest.raises(NotImplementedError, match=r"^atk::\w+ does not work in torch.func.grad, vjp, or jacrev: use"):
        torch.func.grad(lambda audio: function(audio, text).sum())(audio)
    _, tangent = torch.func.jvp(lambda factor: factor * function(audio, text), (torch.ones(()),), (torch.ones(()),))
    torch.testing.assert_close(tangent, function(audio, text))  # what does not pass through the op may have one


@ops
def test_a_checkpoint_that_is_recomputed_while_watched(function):
    audio, text = torch.randn(3, 9, 8, requires_grad=True), torch.randn(3, 5, 8)
    (want,) = torch.autograd.grad(function(audio, text).square().sum(), audio)
    loss = checkpoint(function, audio, text, use_reentrant=False).square().sum()
    with Names() as names:
        (grad,) = torch.autograd.grad(loss, audio)
    assert any(name.startswith("atk::") for name in names.seen)
    torch.testing.assert_close(grad, want)


@cpp_runs
def test_no_second_derivative():
    audio, text = torch.randn(2, 9, 8, requires_grad=True), torch.randn(2, 5, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(atk.max_mean_similarity(audio, text).square().sum(), audio, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        grad.sum().backward()


def test_info_nce_watched_or_not():
    audio, text, scale = torch.randn(40, 8), torch.randn(40, 8), torch.tensor(3.0)
    direct = step(atk.info_nce, audio, text, scale)
    with Names() as names:
        dispatched = step(atk.info_nce, audio, text, scale)
    assert {"atk::info_nce_forward", "atk::info_nce_backward"} <= names.seen
    assert all(torch.equal(a, b) for a, b in zip(direct, dispatched, strict=True))
