"""Ops of PyTorch's dispatcher, as `torch.library.custom_op` defines them, for a fraction of its host time per call.

Small batches take no longer than the host needs to launch them. Left out are a check that results share no storage with
arguments, which `torch.library.opcheck` makes in the tests, and a second look at the schema in every forward. A call
that nothing but autograd watches does not pass through the dispatcher at all.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C import _autograd
from torch._ops import OpOverload
from torch.autograd import forward_ad

# The package's name, so that copies under other names, from the Hugging Face hub, can be loaded beside it.
_NAMESPACE = __name__.partition(".")[0]
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


class CustomOp:
    """`torch.ops.atk.<name>`, to be called with positional arguments.

    Attributes:
        overload: the op as the dispatcher knows it.
    """

    def __init__(self, name: str, implementation: Callable[..., Any]):
        _LIBRARY.define(name + torch.library.infer_schema(implementation, mutates_args=()))
        _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
        self.overload: OpOverload = getattr(getattr(torch.ops, _NAMESPACE), name).default
        self._implementation = implementation
        arguments = self.overload._schema.arguments
        self._tensors = [k for k, argument in enumerate(arguments) if "Tensor" in str(argument.type)]
        self._direct: type[torch.autograd.Function] | None = None

    def __call__(self, *inputs: Any) -> Any:
        tensors = [inputs[k] for k in self._tensors if inputs[k] is not None]
        if watched(*tensors):
            return self.overload(*inputs)
        if self._direct is not None and torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
            return self._direct.apply(*inputs)
        return self._implementation(*inputs)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Registers what shapes and dtypes the results have; usable as a decorator."""
        return torch.library.register_fake(self.overload)(fake)

    def register_autograd(
        self,
        backward: Callable[..., Any],
        setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    ) -> None:
        """Makes the op differentiable, with the functions that `torch.library.register_autograd` takes."""

        def below_autograd(*inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return self.overload(*inputs)

        def call(*inputs: Any) -> Any:
            tensors = [inputs[k] for k in self._tensors if inputs[k] is not None]
            if any(_has_tangent(value) for value in tensors):
                raise NotImplementedError(f"{qualified} has no forward-mode derivative: use torch.autograd.grad")
            if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
                if torch._C._are_functorch_transforms_active():
                    transforms = "torch.func.grad, vjp, or jacrev"
                    raise NotImplementedError(f"{qualified} does not work in {transforms}: use torch.autograd.grad")
                return dispatched.apply(*inputs)
            return below_autograd(*inputs)

        qualified = self.overload._schema.name
        name = qualified.partition("::")[2]
        dispatched = _differentiable(name, below_autograd, backward, setup_context)
        self._direct = _differentiable(name, self._implementation, backward, setup_context)
        _LIBRARY.impl(name, call, "Autograd")


def custom_op(name: str) -> Callable[[Callable[..., Any]], CustomOp]:
    """Defines `torch.ops.atk.<name>` by a function that takes positional arguments and changes none of them."""
    return lambda implementation: CustomOp(name, implementation)


def _differentiable(
    name: str,
    run: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None,
) -> Any:
    """The autograd function of an op whose results `run` computes."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = run(*inputs)
        if setup_context is not None:
            setup_context(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), methods)  # profilers show the name


def watched(*tensors: Tensor) -> bool:
    """Whether a call must pass through the dispatcher.

    It must for a mode, a transform, a trace, a profile, or a tensor whose memory does not hold its values.
    """
    return (
        torch.compiler.is_compiling()
        or not all(_is_plain(value) for value in tensors)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or in_transform()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or torch.autograd._profiler_enabled()
    )


def in_transform() -> bool:
    """Whether a transform of `torch.func` is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_plain(value: Tensor) -> bool:
    """Whether `value` is no subclass, and its memory, on the CPU or a GPU, holds its values as they are."""
    return (
        type(value) in _PLAIN_TYPES
        and (value.is_cpu or value.is_cuda)
        and torch._C._has_storage(value)  # a tensor that `is_grads_batched` batches has none
        and not value.is_neg()
        and not value._is_zerotensor()
    )


def _has_tangent(value: Tensor) -> bool:
    """Whether `value` carries a tangent of forward-mode differentiation."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None


def hooks_see_saved_tensors() -> bool:
    """Whether `torch.autograd.graph.saved_tensors_hooks` are set, as activation checkpointing sets them."""
    return _autograd._top_saved_tensors_default_hooks(True) is not None


def contiguous(value: Tensor | None) -> Tensor | None:
    """`value` in contiguous memory; None stays None."""
    return None if value is None else value.contiguous()


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context without autocast on this type of device, which costs nothing if there is none."""
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()
