"""Gradient caching (Gao et al. 2021): the step of a large contrastive batch in the memory of a small one.

The loss needs the embeddings of the whole batch, the encoders need not see it at once: parts are encoded without a
graph, the loss gives the gradient of every embedding, and each part is encoded again to carry its share to the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Embeddings = dict[
    str, Tensor
]  # [N, ...] each; axis 1 may differ in length between parts, and is padded with 0 or False


class CachedTask(Protocol):
    """A task whose loss is a function of embeddings."""

    model: nn.Module

    def encode(self, batch: object) -> Embeddings:
        """Embeddings of a batch or of a part of one; a part may lack some."""

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a whole batch, and its named parts for the log."""


def backward(
    task: CachedTask, parts: list, device: torch.device, autocast: Callable[[], AbstractContextManager]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of the loss of a batch given in parts, added to those of the weights: exactly those of the whole.

    Random numbers (dropout, noise) are drawn anew for each part and replayed when it is encoded again; batch
    normalisation sees a part at a time, and counts it once.

    Args:
        task: its `encode` is called twice a part, its `loss_of` once.
        parts: batches for `encode`.
        device: where the model is.
        autocast: makes the context to compute in, anew for each use, as it would keep weights cast without a graph.

    Returns:
        The loss and its named parts, as `task.loss_of` gives them.
    """
    states, encoded = [], []
    with torch.no_grad(), autocast(), _statistics_kept(task.model):
        for part in parts:
            states.append(_random_state(device))
            encoded.append(task.encode(part))
    whole = _join(encoded)
    with autocast():
        loss, terms = task.loss_of(whole)
    after = _random_state(device)
    loss.backward()
    first = dict.fromkeys(whole, 0)
    for part, state, cached in zip(parts, states, encoded, strict=True):
        _set_random_state(device, state)
        with autocast():
            again = task.encode(part)
        outputs, gradients = [], []
        for name, value in again.items():
            rows = slice(first[name], first[name] + len(value))
            first[name] += len(value)
            if whole[name].grad is None or not value.requires_grad:
                continue
            gradient = whole[name].grad[rows]
            outputs.append(value)
            gradients.append(gradient[:, : cached[name].shape[1]] if gradient.dim() > 1 else gradient)
        torch.autograd.backward(outputs, gradients)
    _set_random_state(device, after)
    return loss, terms


def _join(parts: list[Embeddings]) -> Embeddings:
    """The embeddings of all parts, as leaves that take a gradient."""
    whole = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        if values[0].dim() > 1:
            longest = max(value.shape[1] for value in values)
            values = [F.pad(v, (0, 0) * (v.dim() - 2) + (0, longest - v.shape[1])) for v in values]
        whole[name] = torch.cat(values)
        whole[name].requires_grad_(whole[name].is_floating_point())
    return whole


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch normalisation uses the batch but does not count it."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
