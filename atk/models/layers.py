"""The layers of a model, which training shards or computes again one by one."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def innermost_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the model's stacks of layers (`nn.ModuleList`) that hold no stack themselves."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack]
    return [layer for layer in layers if not any(isinstance(module, nn.ModuleList) for module in layer.modules())]


def checkpoint_layers(model: nn.Module) -> None:
    """Keep only what goes into each of the `innermost_layers` for the backward, which computes the rest again."""
    for layer in innermost_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
