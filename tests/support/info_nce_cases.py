"""Calls of InfoNCE, and how far a backend may be from the truth."""

import torch
import torch.nn.functional as F

import atk


def gradients(function, *values):
    """The outputs of `function`, and the gradients of their weighted sum."""
    leaves = [value.detach().clone().requires_grad_() for value in values]
    outs = [out for out in function(*leaves) if out is not None]
    weights = [torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view_as(out) for out in outs]
    total = sum((out * weight.to(out.dtype)).sum() for out, weight in zip(outs, weights, strict=True))
    return [out.detach() for out in outs], torch.autograd.grad(total, leaves)


def lse(backend, columns=True):
    return lambda a, t, s: atk.pairwise_logsumexp(a, t, s, columns=columns, backend=backend)


def loss(backend, positive=None):
    return lambda a, t, s: (atk.info_nce(a, t, s, positive=positive, backend=backend),)


def unit(*shape):
    return F.normalize(torch.randn(shape), dim=-1)


def assert_matches_truth(function, truth, *values, rtol=1e-5, grad=2e-5, floor=1e-12):
    """Compare values one by one, and gradients relative to their largest entry, as sums that cancel lose precision."""
    (got, grads), (want, true_grads) = gradients(function, *values), gradients(truth, *(x.double() for x in values))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=rtol, atol=rtol)
    for one, other, value in zip(grads, true_grads, values, strict=True):
        assert one.dtype == value.dtype and one.shape == value.shape
        torch.testing.assert_close(one.double(), other, rtol=0, atol=grad * other.abs().max().item() + floor)
