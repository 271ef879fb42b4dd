"""Ring exchange: blocks of rows pass around a ring of ranks, so that each rank sees all blocks but holds only two.

K ranks in a ring; in step s rank r holds the block of rank `(r - s) mod K` and sends it to rank `r + 1`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from atk.distributed.collectives import sum_dtype

Score = Callable[..., tuple[Tensor, ...]]


def ring(
    score: Score, rows: Tensor, local: tuple[Tensor, ...], counts: list[int], group: "dist.ProcessGroup | None"
) -> list[tuple[Tensor, ...]]:
    """`score(k, rows_k, *local)` for the block of every rank k, in order of k, with gradients to `rows` and `local`.

    The forward saves `rows` and `local`. In the backward the blocks pass around again and `score` is recomputed with
    its graph, one block at a time. The gradient of a block follows one step behind it and is accumulated in float32 at
    least. Sums are taken in the order of the ring, so results are bitwise reproducible.

    Args:
        score: returns at least one tensor; only `rows_k` and `local` get gradients.
        rows: block of this rank `[T_r, D]`.
        local: floating-point tensors of this rank, passed to `score`.
        counts: the number of rows T_k of every rank.
        group: the ranks, at least two; None: all.
    """
    sizes: list[int] = []
    flat = iter(_Ring.apply(score, counts, group, sizes, rows, *local))
    return [tuple(next(flat) for _ in range(size)) for size in sizes]


class _Ring(torch.autograd.Function):
    """The results of `ring` in one flat tuple; `forward` fills `sizes` with the number of results per block."""

    @staticmethod
    def forward(
        ctx: Any,
        score: Score,
        counts: list[int],
        group: "dist.ProcessGroup | None",
        sizes: list[int],
        rows: Tensor,
        *local: Tensor,
    ) -> tuple[Tensor, ...]:
        device = rows.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.score = score
        ctx.counts = counts
        ctx.group = group
        ctx.sizes = sizes
        ctx.save_for_backward(rows, *local)
        by_source = {source: score(source, block, *local) for source, block in _circulate(rows, counts, group)}
        results = [by_source[source] for source in range(len(counts))]
        sizes.extend(len(result) for result in results)
        return tuple(value for result in results for value in result)

    @staticmethod
    @once_differentiable
    # once_differentiable makes ctx positional-only, which its base class does not.
    def backward(ctx: Any, *flat: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        rows, *local = ctx.saved_tensors
        remaining = iter(flat)
        grads = [tuple(next(remaining) for _ in range(size)) for size in ctx.sizes]
        grad_local = [torch.zeros_like(value, dtype=sum_dtype(value)) for value in local]

        def differentiate(source: int, block: Tensor) -> Tensor:
            """Return the gradient of one block and add the block's share to `grad_local`."""
            grad_block, *terms = _recompute(ctx, source, (block, *local), grads[source])
            for accumulated, term in zip(grad_local, terms, strict=True):
                accumulated.add_(term)
            return grad_block.to(sum_dtype(grad_block))

        blocks = _circulate(rows, ctx.counts, ctx.group)
        grad_rows = differentiate(*next(blocks))  # the block of this rank comes first
        transfer = None
        for source, block in blocks:
            grad = differentiate(source, block)
            if transfer is not None:
                grad = grad + transfer.wait()
            transfer = _Transfer(grad, ctx.counts[source - 1], ctx.group)
        if transfer is not None:
            grad_rows = grad_rows + transfer.wait()
        grad_local = [grad.to(value.dtype) for grad, value in zip(grad_local, local, strict=True)]
        return None, None, None, None, grad_rows.to(rows.dtype), *grad_local


def _recompute(ctx: Any, source: int, inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of the inputs of `score` for one block, under the autocast setting of the forward."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    device, dtype, enabled = ctx.autocast
    with torch.enable_grad(), torch.autocast(device, dtype, enabled):
        results = ctx.score(source, *leaves)
    return torch.autograd.grad(results, leaves, grads, materialize_grads=True)


def _circulate(rows: Tensor, counts: list[int], group: "dist.ProcessGroup | None") -> Iterator[tuple[int, Tensor]]:
    """Yield (k, rows of rank k), this rank's block first. The next block arrives while the current one is in use."""
    rank, size = dist.get_rank(group), len(counts)
    for step in range(size):
        source = (rank - step) % size
        if step + 1 == size:
            yield source, rows
            return
        transfer = _Transfer(rows, counts[source - 1], group)
        yield source, rows
        rows = transfer.wait()


class _Transfer:
    """Starts sending `rows` to the next rank and receiving `count` rows from the previous one; skips empty blocks."""

    def __init__(self, rows: Tensor, count: int, group: "dist.ProcessGroup | None"):
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        self.sent = rows.contiguous()  # kept alive until the transfer is complete
        self.received = rows.new_empty(count, *rows.shape[1:])
        members = dist.group.WORLD if group is None else group
        assert members is not None
        directions = (dist.isend, self.sent, rank + 1), (dist.irecv, self.received, rank - 1)
        operations = [
            dist.P2POp(operation, value, dist.get_global_rank(members, peer % size), group)
            for operation, value, peer in directions
            if value.numel()
        ]
        self.works = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> Tensor:
        """The received rows."""
        for work in self.works:
            work.wait()
        return self.received
