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
    criterion: nn.Module

    def encode(self, batch: object) -> Embeddings:
        """Embeddings of a batch or of a part of one; a part may lack some."""

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a whole batch, and its named terms."""

    def silence(self) -> object:
        """A batch of one silent clip, which stands for none."""


def backward(
    task: CachedTask,
    parts: list,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    *,
    encode_last: Callable[[object], tuple[Embeddings, list[Tensor]]] | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of the loss of a batch given in parts, added to those of the weights: exactly those of the whole.

    Random numbers (dropout, noise) are drawn anew for each part and replayed when it is encoded again; batch
    normalisation sees a part at a time, and counts it once. A single part is encoded once.

    Args:
        task: its `encode` is called twice a part, its `loss_of` once.
        parts: batches for `encode`, at least one; None is a part without a clip.
        device: where the model is.
        autocast: makes the context to compute in, anew for each use, as it would keep weights cast without a graph.
        encode_last: encodes the part whose backward is the last one; gives the embeddings and outputs beside them from
            which that backward starts too. Gradients are reduced over ranks there.
        scale: of the gradients.

    Returns:
        The loss and its named terms, as `task.loss_of` gives them.
    """
    if encode_last is None:

        def encode_last(part: object) -> tuple[Embeddings, list[Tensor]]:
            return encode(task, part), []

    if len(parts) == 1:
        with autocast():
            embeddings, beside = encode_last(parts[0])
        loss, terms, gradients = _loss(task, [embeddings], autocast, scale)
        _carry(embeddings, beside, gradients)
        return loss, terms
    states, encoded = [], []
    with torch.no_grad(), autocast(), _statistics_kept(task.model):
        for part in parts:
            states.append(_random_state(device))
            encoded.append(encode(task, part))
    loss, terms, gradients = _loss(task, encoded, autocast, scale)
    encoded.clear()  # their gradients are what is left to keep
    after, first = _random_state(device), dict.fromkeys(gradients, 0)
    for number, (part, state) in enumerate(zip(parts, states, strict=True)):
        _set_random_state(device, state)
        with autocast():
            again, beside = encode_last(part) if number == len(parts) - 1 else (encode(task, part), [])
        rows = {name: slice(first[name], first[name] + len(again[name])) for name in first if name in again}
        first |= {name: own.stop for name, own in rows.items()}
        _carry(again, beside, {name: gradients[name][own] for name, own in rows.items()})
    _set_random_state(device, after)
    return loss, terms


def encode(task: CachedTask, part: object | None) -> Embeddings:
    """`task.encode(part)`; of None the same names and types without a row, still a function of the weights."""
    if part is not None:
        return task.encode(part)
    with _statistics_kept(task.model):
        return {name: value[:0] for name, value in task.encode(task.silence()).items()}


def _loss(
    task: CachedTask, encoded: list[Embeddings], autocast: Callable[[], AbstractContextManager], scale: float
) -> tuple[Tensor, dict[str, Tensor], Embeddings]:
    """Loss and terms of the embeddings of all parts, and `scale` times the loss's gradient of each embedding."""
    whole = _join(encoded)
    with autocast():
        loss, terms = task.loss_of(whole)
    return loss.detach(), terms, _gradients(task, loss * scale, whole)


def _gradients(task: CachedTask, loss: Tensor, whole: Embeddings) -> Embeddings:
    """Of the embeddings that the loss depends on; those of the criterion's parameters go to their `grad`."""
    leaves = {name: value for name, value in whole.items() if value.requires_grad}
    trained = [parameter for parameter in task.criterion.parameters() if parameter.requires_grad]
    # Not `loss.backward()`, after which DDP would take these parameters for done.
    found = torch.autograd.grad(loss, [*leaves.values(), *trained], allow_unused=True)
    for parameter, gradient in zip(trained, found[len(leaves) :], strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    pairs = zip(leaves, found, strict=False)
    return {name: gradient for name, gradient in pairs if gradient is not None}


def _carry(embeddings: Embeddings, beside: list[Tensor], gradients: Embeddings) -> None:
    """Backward through the encoders, from the gradients of the embeddings."""
    names = [name for name, value in embeddings.items() if name in gradients and value.requires_grad]
    outputs = [embeddings[name] for name in names]
    fitting = [gradients[name][:, : embeddings[name].shape[1]] if embeddings[name].dim() > 1 else gradients[name]
               for name in names]  # fmt: skip
    torch.autograd.backward([*outputs, *beside], [*fitting, *(torch.zeros_like(value) for value in beside)])


def _join(parts: list[Embeddings]) -> Embeddings:
    """The embeddings of all parts, as leaves that take a gradient."""
    whole = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        if values[0].dim() > 1:
            longest = max(value.shape[1] for value in values)
            values = [F.pad(v, (0, 0) * (v.dim() - 2) + (0, longest - v.shape[1])) for v in values]
        value = values[0].detach() if len(values) == 1 else torch.cat(values)
        whole[name] = value.requires_grad_(value.is_floating_point())
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
