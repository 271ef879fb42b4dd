"""Optimizers: Adam with linear warmup and cosine decay, and schedule-free Adam, which averages the weights instead."""

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from atk.extras import optional_imports
from atk.train.config import OptimConfig

ParameterGroups = Iterable[Tensor] | Iterable[dict[str, Any]]


class _ScheduleFree(Protocol):
    """Switches the weights between those being trained and their average."""

    def train(self) -> None:
        """Put the weights being trained into the parameters."""

    def eval(self) -> None:
        """Put the average into the parameters."""


def make_optimizer(parameters: ParameterGroups, optim: OptimConfig, steps: int) -> torch.optim.Optimizer:
    """The optimizer that `optim` names.

    Args:
        parameters: parameters, or groups of them.
        optim: configuration.
        steps: number of steps of the whole run.
    """
    if optim.name == "adam":
        return torch.optim.AdamW(parameters, optim.lr, weight_decay=optim.weight_decay)
    with optional_imports:
        from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(
        parameters, optim.lr, weight_decay=optim.weight_decay, warmup_steps=round(optim.warmup * steps)
    )
    optimizer.train()
    return optimizer


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
    """Put the weights to validate and save into the parameters; afterwards restore the trained weights bit for bit.

    Yields:
        A copy of the weights being trained, which a checkpoint needs too, if they differ from the weights to save: the
        schedule-free optimizer saves an average over the steps. None with Adam.
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
