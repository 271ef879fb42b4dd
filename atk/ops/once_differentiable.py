"""Ops without a second derivative: taking one raises an error instead of giving a wrong result."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from atk.ops.custom_op import in_transform


def raising_backward(message: str) -> Callable[..., NoReturn]:
    """A backward function that raises RuntimeError with `message`."""

    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(message)

    return backward


def once_differentiable(value: Tensor, message: str) -> Tensor:
    """Return `value`; a second derivative through it raises RuntimeError with `message`.

    Compiled graphs raise an error themselves, and transforms of `torch.func` may differentiate twice.
    """
    passes = torch.compiler.is_compiling() or in_transform()
    return value if passes else _OnceDifferentiable.apply(value, message)


class _OnceDifferentiable(torch.autograd.Function):
    """Identity. Its backward passes through `_RaisingBackward`, so a second derivative raises RuntimeError."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, message: str) -> Tensor:
        ctx.message = message
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return _RaisingBackward.apply(grad, ctx.message), None


class _RaisingBackward(torch.autograd.Function):
    """Identity. Its backward raises RuntimeError."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, message: str) -> Tensor:
        ctx.message = message
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(ctx.message)
