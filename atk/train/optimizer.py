"""Optimizers: Adam with linear warmup and cosine decay, and schedule-free Adam, which averages the weights instead."""

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from atk.extras import optional_imports
from atk.train.config import OptimConfig


class _ScheduleFree(Protocol):
    """Switches the weights between those being trained and their average."""

    def train(self) -> None:
        """Put the weights being trained into the parameters."""

    def eval(self) -> None:
        """Put the average into the parameters."""


def make_optimizer(groups: Iterable[dict[str, Any]], optim: OptimConfig, steps: int) -> torch.optim.Optimizer:
    """The optimizer that `optim` names.

    Args:
        groups: groups of parameters, such as from `decay_groups`.
        optim: configuration.
        steps: number of steps of the whole run.
    """
    if optim.name == "adam":
        return torch.optim.AdamW(groups, optim.lr, weight_decay=optim.weight_decay)
    with optional_imports:
        from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(
        groups, optim.lr, weight_decay=optim.weight_decay, warmup_steps=round(optim.warmup * steps)
    )
    optimizer.train()
    return optimizer


def without_decay(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters that weight decay would harm: those of norms, biases (including tables of them), and scalars or
    vectors such as the temperature and the `[CLS]` input."""
    spared: dict[int, nn.Parameter] = {}
    for root in modules:
        for path, module in root.named_modules():
            is_norm = "norm" in type(module).__name__.lower()
            for name, parameter in module.named_parameters(recurse=False):
                if is_norm or "bias" in f"{path.rpartition('.')[2]}.{name}" or parameter.dim() <= 1:
                    spared[id(parameter)] = parameter
    return list(spared.values())


def decay_groups(parameters: Iterable[Tensor], undecayed: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: one with weight decay, and one without it for `undecayed`; none is empty."""
    spared = {id(parameter) for parameter in undecayed}
    decayed, rest = [], []
    for parameter in parameters:
        (rest if id(parameter) in spared else decayed).append(parameter)
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def ordered_state(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The state of an optimizer as if all `parameters` were in one group, in their order."""
    index_of = {id(parameter): index for index, parameter in enumerate(parameters)}
    order = [index_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    group = state["param_groups"][0] | {"params": list(range(len(parameters)))}
    return {"state": {order[index]: values for index, values in state["state"].items()}, "param_groups": [group]}


def load_ordered_state(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], state: dict[str, Any]) -> None:
    """Load the result of `ordered_state`; groups keep their weight decay."""
    index_of = {id(parameter): index for index, parameter in enumerate(parameters)}
    order = [index_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    (saved,) = state["param_groups"]
    groups = [
        saved | {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in optimizer.state_dict()["param_groups"]
    ]
    values = {index: state["state"][position] for index, position in enumerate(order) if position in state["state"]}
    optimizer.load_state_dict({"state": values, "param_groups": groups})


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """The learning rate to set at `step` (from 0) of `steps`. The schedule-free optimizer does its own warmup."""
    return optim.lr * (lr_factor(step, steps, optim) if optim.name == "adam" else 1.0)


def lr_factor(step: int, steps: int, optim: OptimConfig) -> float:
    """Fraction of the peak learning rate at `step` (from 0) of `steps`: linear warmup, then cosine decay."""
    warmup = max(1, round(optim.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return optim.final + (1 - optim.final) * 0.5 * (1 + math.cos(math.pi * done))


@contextmanager
def evaluation_weights(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> Generator[list[Tensor] | None, None, None]:
    """Load into the parameters the weights that are validated and saved; at the end, restore those being trained.

    Yields:
        A copy of the weights being trained, which a checkpoint also needs, or None if they are the weights to save, as
        with Adam. The schedule-free optimizer saves an average over the steps. They are restored bit for bit.
    """
    if not hasattr(optimizer, "eval"):
        yield None
        return
    schedule_free = cast(_ScheduleFree, optimizer)
    trained = [parameter.detach().clone() for parameter in parameters]
    schedule_free.eval()
    try:
        yield trained
    finally:
        schedule_free.train()
        copy_weights(parameters, trained)


@torch.no_grad()
def copy_weights(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy `values` into `parameters`, in order."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
