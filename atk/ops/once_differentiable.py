"""Ops without a second derivative: an error that says so, in place of a wrong result."""

from collections.abc import Callable

import torch
from torch import Tensor


def refuse(message: str) -> Callable:
    """A backward function that raises RuntimeError with `message`."""

    def backward(ctx, *grads):
        raise RuntimeError(message)

    return backward


def once_differentiable(value: Tensor, message: str) -> Tensor:
    """`value`; a second derivative through it raises RuntimeError with `message`."""
    return _OnceDifferentiable.apply(value, message)


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, message):
        ctx.message = message
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        return _Constant.apply(grad, ctx.message), None


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, message):
        ctx.message = message
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(ctx.message)
