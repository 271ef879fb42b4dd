"""The repeated layers of a model, which training shards or recomputes one by one."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def innermost_layers(model: nn.Module) -> list[nn.Module]:
    """The entries of every `nn.ModuleList` in `model` that contain no `nn.ModuleList` themselves."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack]
    return [layer for layer in layers if not any(isinstance(module, nn.ModuleList) for module in layer.modules())]


def checkpoint_layers(model: nn.Module) -> None:
    """Apply activation checkpointing to the `innermost_layers`.

    Only the inputs of each layer are kept for the backward, which recomputes the rest.
    """
    for layer in innermost_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
