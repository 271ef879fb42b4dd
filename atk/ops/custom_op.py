"""Ops of PyTorch's dispatcher, as `torch.library.custom_op` defines them, for half of its host time per call.

Small batches take no longer than the host needs to launch them. Left out are a check that results share no storage with
arguments, which `torch.library.opcheck` makes in the tests, and a second look at the schema in every forward.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

# The package's name, so that copies under other names, from the Hugging Face hub, can be loaded beside it.
_NAMESPACE = __name__.partition(".")[0]
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")


def custom_op(name: str) -> Callable[[Callable[..., Any]], OpOverload]:
    """Defines `torch.ops.atk.<name>` by a function that takes positional arguments and changes none of them."""

    def define(implementation: Callable[..., Any]) -> OpOverload:
        _LIBRARY.define(name + torch.library.infer_schema(implementation, mutates_args=()))
        _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
        return getattr(getattr(torch.ops, _NAMESPACE), name).default

    return define


def register_autograd(
    op: OpOverload,
    backward: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
) -> None:
    """Makes `op` differentiable, with the functions that `torch.library.register_autograd` takes."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*inputs)
        if setup_context is not None:
            setup_context(ctx, inputs, output)
        return output

    name = op._schema.name.partition("::")[2]
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    differentiable: Any = type(name, (torch.autograd.Function,), methods)  # profilers show the name

    tensors = [k for k, argument in enumerate(op._schema.arguments) if "Tensor" in str(argument.type)]

    def call(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(inputs[k] is not None and inputs[k].requires_grad for k in tensors):
            return differentiable.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    _LIBRARY.impl(name, call, "Autograd")
