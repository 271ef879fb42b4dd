"""Blocks of rows that pass round a ring of ranks: each rank sees all of them and holds two at a time.

K ranks in a ring; in step s rank r holds the block of rank `(r - s) mod K` and sends it to rank `r + 1`.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from atk.distributed.collectives import sum_dtype

Score = Callable[..., tuple[Tensor, ...]]


def ring(
    score: Score, rows: Tensor, local: tuple[Tensor, ...], counts: list[int], group: "dist.ProcessGroup | None"
) -> list[tuple[Tensor, ...]]:
    """`score(k, rows_k, *local)` for the block of every rank k, in that order, with gradients to `rows` and `local`.

    The forward keeps `rows` and `local`. In the backward the blocks pass round again, `score` is computed again with
    its graph, one block at a time, and what a block's gradient has gathered travels one step behind it, in float32 at
    least. The sums go on in the order of the ring: two runs give the same bits.

    Args:
        score: gives at least one tensor; whatever it needs beside its arguments must be constant.
        rows: this rank's block `[T_r, D]`.
        local: floating tensors of this rank that `score` takes.
        counts: `T_k` of every rank.
        group: the ranks, at least two; None: all.
    """
    sizes = []
    flat = iter(_Ring.apply(score, counts, group, sizes, rows, *local))
    return [tuple(next(flat) for _ in range(size)) for size in sizes]


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx, score, counts, group, sizes, rows, *local):
        device = rows.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.score, ctx.counts, ctx.group, ctx.sizes = score, counts, group, sizes
        ctx.save_for_backward(rows, *local)
        blocks = _travel(rows, counts, group)
        results = {source: score(source, block, *local) for source, block in blocks}
        results = [results[source] for source in range(len(counts))]
        sizes.extend(len(result) for result in results)
        return tuple(value for result in results for value in result)

    @staticmethod
    @once_differentiable
    def backward(ctx, *flat):
        rows, *local = ctx.saved_tensors
        flat = iter(flat)
        grads = [tuple(next(flat) for _ in range(size)) for size in ctx.sizes]
        rank, following = dist.get_rank(ctx.group), None
        sums = [torch.zeros_like(value, dtype=sum_dtype(value)) for value in local]
        for source, block in _travel(rows, ctx.counts, ctx.group):
            grad, *found = _differentiate(ctx, source, (block, *local), grads[source])
            grad = grad.to(sum_dtype(grad))
            for total, more in zip(sums, found, strict=True):
                total += more
            if source == rank:
                home = grad
                continue
            if following is not None:
                grad = grad + following.wait()
            following = _Passing(grad, ctx.counts[source - 1], ctx.group)
        home = home + following.wait()
        sums = (total.to(value.dtype) for total, value in zip(sums, local, strict=True))
        return None, None, None, None, home.to(rows.dtype), *sums


def _differentiate(ctx, source: int, inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of what `score` takes of one block."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    device, dtype, enabled = ctx.autocast
    with torch.enable_grad(), torch.autocast(device, dtype, enabled):
        results = ctx.score(source, *leaves)
    return torch.autograd.grad(results, leaves, grads, materialize_grads=True)


def _travel(rows: Tensor, counts: list[int], group: "dist.ProcessGroup | None") -> Iterator[tuple[int, Tensor]]:
    """(k, rows of rank k) from this rank's on; the next block is on its way while one is in use."""
    rank, size = dist.get_rank(group), len(counts)
    for step in range(size):
        source = (rank - step) % size
        if step + 1 == size:
            yield source, rows
            return
        following = _Passing(rows, counts[source - 1], group)
        yield source, rows
        rows = following.wait()


class _Passing:
    """Rows on their way to the next rank, and `count` rows from the previous one; nothing is sent of an empty block."""

    def __init__(self, rows: Tensor, count: int, group: "dist.ProcessGroup | None"):
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        self.sent, self.received = rows.contiguous(), rows.new_empty(count, *rows.shape[1:])
        sides = (dist.isend, self.sent, rank + 1), (dist.irecv, self.received, rank - 1)
        ranks = group or dist.group.WORLD
        transfers = [
            dist.P2POp(side, value, dist.get_global_rank(ranks, peer % size), group)
            for side, value, peer in sides
            if value.numel()
        ]
        self.works = dist.batch_isend_irecv(transfers) if transfers else []

    def wait(self) -> Tensor:
        """What came."""
        for work in self.works:
            work.wait()
        return self.received
