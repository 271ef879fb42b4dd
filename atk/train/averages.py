"""Weights that are validated and saved in place of those being trained: averages over the steps of training."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor

_WARMUP = 10  # steps after which the decay is about a half, unless it is configured lower


class _ScheduleFree(Protocol):
    """Switches the weights between those being trained and their average."""

    def train(self) -> None:
        """Put the weights being trained into the parameters."""

    def eval(self) -> None:
        """Put the average into the parameters."""


class MovingAverage:
    """Exponential moving average of weights, each on the device and with the sharding of its weight.

    The decay at step k (from 0) is at most `(1 + k) / (10 + k)`, so that the first weights are soon forgotten.

    Args:
        parameters: the weights, which are the first average.
        decay: decay after the first steps.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float):
        self.parameters = parameters
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights after step `step`, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (_WARMUP + step))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, weight)


@contextmanager
def evaluation_weights(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], average: MovingAverage | None = None
) -> Generator[list[Tensor] | None, None, None]:
    """Load into the parameters the weights that are validated and saved; at the end, restore those being trained.

    Yields:
        A copy of the weights being trained, which a checkpoint also needs, or None if they are the weights to save, as
        with plain Adam. The schedule-free optimizer and a moving average save an average over the steps. The weights
        being trained are restored bit for bit.
    """
    if average is None and not hasattr(optimizer, "eval"):
        yield None
        return
    trained = [parameter.detach().clone() for parameter in parameters]
    if average is not None:
        copy_weights(parameters, average.values)
    else:
        cast(_ScheduleFree, optimizer).eval()
    try:
        yield trained
    finally:
        if average is None:
            cast(_ScheduleFree, optimizer).train()
        copy_weights(parameters, trained)


@torch.no_grad()
def copy_weights(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy `values` into `parameters`, in order."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
