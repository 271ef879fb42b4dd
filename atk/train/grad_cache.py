"""Gradient caching (Gao et al. 2021): the step of a large contrastive batch in the memory of a small one.

The loss needs the embeddings of the whole batch, but the encoders do not have to see it at once. The parts of a batch
are encoded without a graph, the loss gives the gradient of every embedding, and each part is encoded again to propagate
its gradients to the weights.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Embeddings = dict[str, Tensor]  # [N, ...] each; parts may differ in the length of axis 1, which is padded with 0
Autocast = Callable[[], AbstractContextManager[object]]
EncodeLast = Callable[[Any], tuple[Embeddings, list[Tensor]]]


@runtime_checkable
class AdditiveTask(Protocol):
    """A task whose loss is a sum over the parts of a batch, each of which gives its own "loss" `[1]`."""

    def shares(self, parts: Sequence[Any], /) -> list[Tensor]:
        """The factor of the loss of each part, a scalar each; over all ranks they add up to 1."""
        ...


class CachedTask(Protocol):
    """A task whose loss is a function of embeddings.

    `model` and `criterion` are modules, typed as Any because tasks narrow them.
    """

    model: Any
    criterion: Any

    def encode(self, batch: Any, /) -> Embeddings:
        """Embeddings of a batch or of a part of it; a part may lack some of them."""
        ...

    def loss_of(self, embeddings: Embeddings, /) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a whole batch, and its named terms."""
        ...

    def silence(self) -> Any:
        """A batch of one silent clip, a placeholder for a part without clips."""
        ...


def backward(
    task: CachedTask,
    parts: Sequence[Any],
    device: torch.device,
    autocast: Autocast,
    *,
    encode_last: EncodeLast | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Accumulate the gradients of the loss of a batch that is given in parts, equal to those of the whole batch.

    Every part draws its own random numbers (dropout, noise), which are replayed when it is encoded again. Batch
    normalization uses the statistics of a part, and counts each part once. A single part is encoded once, and so is
    every part of an `AdditiveTask`, whose gradients are accumulated part by part.

    Args:
        task: `encode` is called twice per part, `loss_of` once.
        parts: batches for `encode`, at least one; None is a part without clips.
        device: device of the model.
        autocast: makes a new autocast context for each use, because its weight cache must not be shared between code
            with and without a graph.
        encode_last: encodes the part whose backward runs last, where ranks reduce their gradients. Returns the
            embeddings, and other outputs from which the backward starts as well.
        scale: factor of the gradients.

    Returns:
        The loss and its named terms, as `task.loss_of` returns them.
    """
    if encode_last is None:

        def encode_last(part: Any) -> tuple[Embeddings, list[Tensor]]:
            return encode(task, part), []

    if len(parts) == 1:
        with autocast():
            embeddings, extra = encode_last(parts[0])
        loss, terms, grads = _loss_and_grads(task, [embeddings], autocast, scale)
        _backward_encoders(embeddings, extra, grads)
        return loss, terms
    if isinstance(task, AdditiveTask):
        return _accumulate(task, task.shares(parts), parts, autocast, encode_last, scale)
    states, encoded = _encode_without_graph(task, parts, device, autocast)
    loss, terms, grads = _loss_and_grads(task, encoded, autocast, scale)
    encoded.clear()  # only their gradients are still needed
    end_state = _random_state(device)
    offsets = dict.fromkeys(grads, 0)
    for index, (part, state) in enumerate(zip(parts, states, strict=True)):
        _set_random_state(device, state)
        with autocast():
            embeddings, extra = encode_last(part) if index == len(parts) - 1 else (encode(task, part), [])
        rows = {
            name: slice(start, start + len(embeddings[name])) for name, start in offsets.items() if name in embeddings
        }
        offsets |= {name: part_rows.stop for name, part_rows in rows.items()}
        _backward_encoders(embeddings, extra, {name: grads[name][part_rows] for name, part_rows in rows.items()})
    _set_random_state(device, end_state)
    return loss, terms


def _accumulate(
    task: CachedTask,
    shares: Sequence[Tensor],
    parts: Sequence[Any],
    autocast: Autocast,
    encode_last: EncodeLast,
    scale: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Accumulate the gradients of the parts of an additive loss; each part is encoded once."""
    loss = torch.zeros((), device=shares[0].device)
    for index, (part, share) in enumerate(zip(parts, shares, strict=True)):
        with autocast():
            embeddings, extra = encode_last(part) if index == len(parts) - 1 else (encode(task, part), [])
        value = embeddings["loss"].sum() * share
        _backward_encoders({"loss": value}, extra, {"loss": torch.full_like(value, scale)})
        loss = loss + value.detach()
    return loss, {}


def encode(task: CachedTask, part: Any) -> Embeddings:
    """`task.encode(part)`; for None, the same embeddings with 0 rows, which still depend on the weights."""
    if part is not None:
        return task.encode(part)
    with _frozen_statistics(task.model):
        return {name: value[:0] for name, value in task.encode(task.silence()).items()}


def _encode_without_graph(
    task: CachedTask, parts: Sequence[Any], device: torch.device, autocast: Autocast
) -> tuple[list[tuple[Tensor, ...]], list[Embeddings]]:
    """The random state before each part, and its embeddings."""
    states, encoded = [], []
    with torch.no_grad(), autocast(), _frozen_statistics(task.model):
        for part in parts:
            states.append(_random_state(device))
            encoded.append(encode(task, part))
    return states, encoded


def _loss_and_grads(
    task: CachedTask, encoded: Sequence[Embeddings], autocast: Autocast, scale: float
) -> tuple[Tensor, dict[str, Tensor], Embeddings]:
    """Loss and terms of the embeddings of all parts, and `scale` times the gradient of the loss for each embedding."""
    embeddings = _join(encoded)
    with autocast():
        loss, terms = task.loss_of(embeddings)
    return loss.detach(), terms, _embedding_grads(task, loss * scale, embeddings)


def _embedding_grads(task: CachedTask, loss: Tensor, embeddings: Embeddings) -> Embeddings:
    """Gradients of the embeddings that the loss depends on; also accumulates those of the criterion's parameters."""
    leaves = {name: value for name, value in embeddings.items() if value.requires_grad}
    trained = [parameter for parameter in task.criterion.parameters() if parameter.requires_grad]
    # Not `loss.backward()`, which would mark these parameters as ready for DDP.
    grads = torch.autograd.grad(loss, [*leaves.values(), *trained], allow_unused=True)
    for parameter, grad in zip(trained, grads[len(leaves) :], strict=True):
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    return {name: grad for name, grad in zip(leaves, grads, strict=False) if grad is not None}


def _backward_encoders(embeddings: Embeddings, extra: Sequence[Tensor], grads: Embeddings) -> None:
    """Backward through the encoders, from the gradients of the embeddings; those of `extra` outputs are 0."""
    names = [name for name, value in embeddings.items() if name in grads and value.requires_grad]
    outputs = [embeddings[name] for name in names]
    output_grads = [_without_padding(grads[name], embeddings[name]) for name in names]
    torch.autograd.backward([*outputs, *extra], [*output_grads, *(torch.zeros_like(value) for value in extra)])


def _without_padding(grad: Tensor, embedding: Tensor) -> Tensor:
    return grad[:, : embedding.shape[1]] if embedding.dim() > 1 else grad


def _join(parts: Sequence[Embeddings]) -> Embeddings:
    """The embeddings of all parts, as leaves that take a gradient."""
    joined = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        if values[0].dim() > 1:
            longest = max(value.shape[1] for value in values)
            values = [F.pad(v, (0, 0) * (v.dim() - 2) + (0, longest - v.shape[1])) for v in values]
        value = values[0].detach() if len(values) == 1 else torch.cat(values)
        joined[name] = value.requires_grad_(value.is_floating_point())
    return joined


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def _frozen_statistics(model: nn.Module) -> Generator[None, None, None]:
    """A context in which batch normalization uses the statistics of the batch without updating its running ones."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
