"""The optimisers: Adam with warm-up and cosine decay, and the schedule-free one, which averages the weights instead."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from atk.train.config import OptimConfig


def make_optimizer(parameters: list, optim: OptimConfig, steps: int) -> torch.optim.Optimizer:
    """The optimiser that `optim` names, for parameters or groups of them, and a run of `steps` steps."""
    if optim.name == "adam":
        return torch.optim.AdamW(parameters, optim.lr, weight_decay=optim.weight_decay)
    from schedulefree import AdamWScheduleFree

    warmup = round(optim.warmup * steps)
    optimizer = AdamWScheduleFree(parameters, optim.lr, weight_decay=optim.weight_decay, warmup_steps=warmup)
    optimizer.train()
    return optimizer


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """The rate to set at `step` (from 0) of `steps`; the schedule-free optimiser makes its own warm-up of it."""
    return optim.lr * (lr_factor(step, steps, optim) if optim.name == "adam" else 1.0)


def lr_factor(step: int, steps: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at `step` (from 0) of `steps`: linear warm-up, then cosine decay."""
    warmup = max(1, round(optim.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return optim.final + (1 - optim.final) * 0.5 * (1 + math.cos(math.pi * done))


@contextmanager
def weights_to_use(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> Iterator[list[Tensor] | None]:
    """The weights to validate and keep, for the time of the context; afterwards those being trained, bit for bit.

    With the schedule-free optimiser they are an average over the steps, and what it gives is a copy of the weights
    being trained, which a checkpoint needs too; with Adam they are the same and it gives None.
    """
    if not hasattr(optimizer, "eval"):
        yield None
        return
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield trained
    finally:
        optimizer.train()
        put_back(parameters, trained)


@torch.no_grad()
def put_back(parameters: list[Tensor], values: list[Tensor]) -> None:
    """Give `parameters` the `values` kept of them."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
