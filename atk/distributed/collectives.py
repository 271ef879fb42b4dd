"""Collectives of `torch.distributed` with gradients, for batches that ranks hold in parts of unequal size.

K ranks, rank r with n_r of the N rows. What is minimised is the sum of what the ranks call `backward` on: the gradient
that leaves a collective on one rank holds what every rank has asked for. All ranks must run the same collectives in
the same order, in the backward too; so `take_part` puts ranks without a gradient of their own into the graph.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from atk.ops import checks


def world_size(group: "dist.ProcessGroup | None" = None) -> int:
    """K; 1 without an initialised process group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


class Layout(NamedTuple):
    """Who holds what: items (pairs, or rows) and rows of every rank, and what all ranks have to agree on."""

    rank: int
    items: list[int]
    rows: list[int]
    longest: int  # item, in rows
    rows_differentiable: bool  # on any rank
    differentiable: bool  # anything, on any rank

    @property
    def own(self) -> slice:
        """This rank's items among all."""
        start = sum(self.items[: self.rank])
        return slice(start, start + self.items[self.rank])


def meet(
    name: str, rows: Tensor, items: int, longest: int, differentiable: bool, group: "dist.ProcessGroup | None"
) -> Layout:
    """Tell all ranks how many items are here, in how many `rows` `[T, D]`; waits for the device.

    Raises:
        ValueError, TypeError: D or the dtype of `rows`, called `name`, is not the same everywhere; on every rank.
    """
    grad = torch.is_grad_enabled()
    flags = grad and rows.requires_grad, grad and (differentiable or rows.requires_grad)
    numbers = items, len(rows), longest, rows.shape[1], checks.DTYPES.index(rows.dtype), *flags
    own = torch.tensor(numbers, dtype=torch.int64, device=rows.device)
    everyone = own.new_empty(world_size(group), len(own))
    dist.all_gather(list(everyone), own, group)
    items, counts, longest, widths, dtypes, *flags = (list(column) for column in zip(*everyone.tolist(), strict=True))
    if len(set(widths)) > 1:
        raise ValueError(f"{name} must have the same width D on all ranks, got {widths}")
    if len(set(dtypes)) > 1:
        raise TypeError(f"{name} must have the same dtype on all ranks, got {[checks.DTYPES[i] for i in dtypes]}")
    return Layout(dist.get_rank(group), items, counts, max(longest), any(flags[0]), any(flags[1]))


def take_part(value: Tensor, differentiable: bool) -> Tensor:
    """`value`, in the graph when `differentiable`, so that this rank's backward runs the collectives of the others."""
    return value.detach().requires_grad_() if differentiable and not value.requires_grad else value


def gather_rows(rows: Tensor, counts: list[int], group: "dist.ProcessGroup | None") -> Tensor:
    """The rows of all ranks, one rank after another; `counts` says how many each has. No gradient.

    Sent padded to the largest count, so that one `all_gather` does.
    """
    most = max(counts)
    if most == 0:
        return rows
    if len(rows) < most:
        rows = torch.cat((rows, rows.new_zeros(most - len(rows), *rows.shape[1:])))
    everyone = rows.new_empty(len(counts) * most, *rows.shape[1:])
    parts = everyone.split(most)
    dist.all_gather(list(parts), rows.contiguous(), group)
    if min(counts) == most:
        return everyone
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class Gather(torch.autograd.Function):
    """`gather_rows`; the backward is a reduce-scatter: each rank gets the sum over ranks of its rows' gradients.

    As an all-to-all and a sum in the order of ranks: the bytes of a reduce-scatter, unequal counts, the same bits on
    every network. 16-bit gradients are summed in float32 and rounded once.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int], group: "dist.ProcessGroup | None") -> Tensor:
        ctx.counts, ctx.group, ctx.dtype = counts, group, rows.dtype
        return gather_rows(rows, counts, group)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        counts, own = ctx.counts, ctx.counts[dist.get_rank(ctx.group)]
        grad = grad.contiguous()
        found = grad.new_empty(len(counts) * own, *grad.shape[1:])
        dist.all_to_all_single(found, grad, [own] * len(counts), counts, group=ctx.group)
        found = found.view(len(counts), own, *grad.shape[1:])
        return found.sum(0, dtype=sum_dtype(grad)).to(ctx.dtype), None, None


def sum_dtype(value: Tensor) -> torch.dtype:
    """In which gradients like `value` are summed: float32 at least."""
    return torch.promote_types(value.dtype, torch.float32)


class LogSumExp(torch.autograd.Function):
    """`log sum_r exp(value_r)` over ranks, element by element; every rank gets all of it.

    An all-reduce of the maximum and one of the sum. Gradient: `e^(value_r - result)` times the sum over ranks of the
    gradients of `result`, a third all-reduce.
    """

    @staticmethod
    def forward(ctx, value: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
        shift = value.clone()
        dist.all_reduce(shift, dist.ReduceOp.MAX, group)
        shift = shift.masked_fill(~shift.isfinite(), 0)
        result = (value - shift).exp()
        dist.all_reduce(result, dist.ReduceOp.SUM, group)
        result = result.log_().add_(shift)
        ctx.group = group
        ctx.save_for_backward(value, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        value, result = ctx.saved_tensors
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, dist.ReduceOp.SUM, ctx.group)
        return grad * (value - result).exp(), None
