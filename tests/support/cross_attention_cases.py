"""Inputs of the cross-attention difference, and the backends that run here."""

import pytest
import torch

import atk
from atk.ops.backend import unavailable

CPU = torch.device("cpu")


TRITON_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


BACKENDS = [
    "reference",
    "sdpa",
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(
            unavailable("triton", TRITON_DEVICE, torch.float32) is not None, reason="triton cannot run here"
        ),
    ),
]


def inputs(n=3, frames=7, keys=9, width=12, dtype=torch.float32, bias=True):
    """source, q, k, v, out_weight, out_bias; and a mask with holes, full for the first clip and empty for the last."""
    tensors = [torch.randn(n, length, width) for length in (frames, frames, keys, keys)]
    tensors += [torch.randn(width, width) / width**0.5, torch.randn(width) if bias else None]
    mask = torch.rand(n, keys) > 0.4
    mask[:1], mask[1:, :1], mask[n - 1 :] = True, True, n == 1
    return [None if value is None else value.to(dtype) for value in tensors], mask


def gradients(function, tensors, grad):
    leaves = [None if value is None else value.detach().clone().requires_grad_() for value in tensors]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], grad.to(out.dtype))


def op(backend, heads, mask):
    def call(*tensors):
        return atk.cross_attention_difference(*tensors, mask, num_heads=heads, backend=backend)

    return call
