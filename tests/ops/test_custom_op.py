"""Calls that go past PyTorch's dispatcher: when they may, and that they give the same bits."""

import pytest
import torch
from support.public_cases import cpp_runs
from torch.utils._python_dispatch import TorchDispatchMode

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
