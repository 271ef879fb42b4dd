"""A call of a public op that ptx_machine executes, and its random inputs."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Inputs = dict[str, Tensor | torch.dtype]


@dataclass(frozen=True)
class Case:
    """A call of a public op.

    Attributes:
        name: unique; begins with the op.
        op: called with `backend` and the inputs by name.
        inputs: makes the inputs of a dtype.
        leaves: the inputs whose gradients are compared.
        zeros: fraction of the output's gradient that is 0.
        everywhere: whether to execute it for every dtype and GPU, rather than for two combinations.
    """

    name: str
    op: Callable[..., Tensor]
    inputs: Callable[[torch.dtype], Inputs]
    leaves: tuple[str, ...]
    zeros: float = 0.0
    everywhere: bool = False

    def __str__(self) -> str:
        return self.name

    def run(self, backend: str, dtype: torch.dtype, compute: torch.dtype | None = None, **options) -> Inputs:
        """The output and the gradients, for inputs in `dtype` that are then converted to `compute`."""
        inputs = {name: _converted(value, compute) for name, value in self.inputs(dtype).items()}
        for name in self.leaves:
            inputs[name].requires_grad_()
        out = self.op(backend=backend, **inputs, **options)
        results = {"out": out.detach()}
        if self.leaves:
            grads = torch.autograd.grad(out, [inputs[name] for name in self.leaves], self._gradient(out))
            results |= {f"grad {name}": grad for name, grad in zip(self.leaves, grads, strict=True)}
        return results

    def _gradient(self, out: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        grad = torch.randn(out.shape, generator=generator)
        return torch.where(torch.rand(out.shape, generator=generator) < self.zeros, 0.0, grad).to(out.dtype)


def random(*shape: int, key: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, a function of shape and key."""
    return torch.randn(shape, generator=_generator(shape, key)).to(dtype)


def random_mask(*shape: int, key: str, valid: float = 0.7) -> Tensor:
    """A mask with gaps; of several rows, the first (frames) or last (tokens, keys) is empty."""
    mask = torch.rand(shape, generator=_generator(shape, key)) < valid
    if len(mask) > 2:
        mask[0 if key == "frames" else -1] = False
    return mask


def _generator(shape: tuple[int, ...], key: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr((shape, key)).encode()))


def _converted(value, dtype: torch.dtype | None):
    """A floating-point tensor in `dtype`, if given; other values are returned unchanged."""
    convert = dtype is not None and isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if convert else value
