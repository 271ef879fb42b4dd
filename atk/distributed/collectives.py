"""Differentiable collectives for batches that are split across ranks into parts of unequal size.

K ranks; rank r holds n_r of the N rows. The objective is the sum of the scalars on which the ranks call `backward`, so
the gradient of a collective's input on one rank includes the gradients of its outputs on all ranks. All ranks must run
the same collectives in the same order, in the backward too. `join_graph` therefore puts ranks whose inputs need no
gradient into the graph.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from atk.ops import checks


def world_size(group: "dist.ProcessGroup | None" = None) -> int:
    """The number of ranks K; 1 without an initialized process group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


class Layout(NamedTuple):
    """How a batch is split across ranks, and the values on which all ranks must agree. Lists have one entry per rank.

    An item is a pair, a caption, or a row, depending on the caller.
    """

    rank: int  # of this process
    items: list[int]
    rows: list[int]
    longest: int  # rows of the longest item on any rank
    rows_differentiable: bool  # the rows need a gradient on some rank
    differentiable: bool  # some input needs a gradient on some rank

    @property
    def local(self) -> slice:
        """Position of this rank's items among the items of all ranks."""
        start = sum(self.items[: self.rank])
        return slice(start, start + self.items[self.rank])


def exchange_layout(
    name: str, rows: Tensor, items: int, longest: int, differentiable: bool, group: "dist.ProcessGroup | None"
) -> Layout:
    """Exchange sizes and flags with all ranks; synchronizes with the device.

    Args:
        name: name of `rows` in error messages.
        rows: rows of this rank `[T, D]`.
        items: number of items of this rank.
        longest: rows of the longest item of this rank.
        differentiable: whether an input other than `rows` needs a gradient.
        group: the ranks; None: all.

    Raises:
        ValueError, TypeError: D or the dtype of `rows` differs between ranks. Raised on every rank.
    """
    grad = torch.is_grad_enabled()
    rows_differentiable = grad and rows.requires_grad
    differentiable = grad and (differentiable or rows.requires_grad)
    dtype = checks.DTYPES.index(rows.dtype)
    values = items, len(rows), longest, rows.shape[1], dtype, rows_differentiable, differentiable
    local = torch.tensor(values, dtype=torch.int64, device=rows.device)
    gathered = local.new_empty(world_size(group), len(local))
    dist.all_gather(list(gathered), local, group)
    all_items, row_counts, lengths, widths, dtypes, rows_flags, flags = gathered.T.tolist()
    if len(set(widths)) > 1:
        raise ValueError(f"{name} must have the same width D on all ranks, got {widths}")
    if len(set(dtypes)) > 1:
        raise TypeError(f"{name} must have the same dtype on all ranks, got {[checks.DTYPES[i] for i in dtypes]}")
    return Layout(dist.get_rank(group), all_items, row_counts, max(lengths), any(rows_flags), any(flags))


def join_graph(value: Tensor, differentiable: bool) -> Tensor:
    """`value`, requiring a gradient if `differentiable`, so that the backward of this rank runs the collectives too."""
    return value.detach().requires_grad_() if differentiable and not value.requires_grad else value


def gather_rows(rows: Tensor, counts: list[int], group: "dist.ProcessGroup | None") -> Tensor:
    """The rows of all ranks in rank order, without a gradient. `counts` holds the row count of every rank.

    Rows are padded to the largest count, so that one `all_gather` is enough.
    """
    largest = max(counts)
    if largest == 0:
        return rows
    if len(rows) < largest:
        rows = torch.cat((rows, rows.new_zeros(largest - len(rows), *rows.shape[1:])))
    gathered = rows.new_empty(len(counts) * largest, *rows.shape[1:])
    parts = gathered.split(largest)
    dist.all_gather(list(parts), rows.contiguous(), group)
    if min(counts) == largest:
        return gathered
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class Gather(torch.autograd.Function):
    """`gather_rows` with a gradient. The backward is a reduce-scatter: each rank gets the summed gradient of its rows.

    It runs as an all-to-all and a sum in rank order, which moves as many bytes as a reduce-scatter primitive, takes
    unequal counts, and gives the same bits on every network. 16-bit gradients are summed in float32 and rounded once.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: "dist.ProcessGroup | None") -> Tensor:
        ctx.counts = counts
        ctx.group = group
        ctx.dtype = rows.dtype
        return gather_rows(rows, counts, group)

    @staticmethod
    @once_differentiable
    # once_differentiable makes ctx positional-only, which its base class does not.
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyrefly: ignore[bad-override]
        grad = grad.contiguous()
        counts = ctx.counts
        count = counts[dist.get_rank(ctx.group)]
        received = grad.new_empty(len(counts) * count, *grad.shape[1:])
        dist.all_to_all_single(received, grad, [count] * len(counts), counts, group=ctx.group)
        received = received.view(len(counts), count, *grad.shape[1:])
        return received.sum(0, dtype=sum_dtype(grad)).to(ctx.dtype), None, None


def sum_dtype(value: Tensor) -> torch.dtype:
    """The dtype in which gradients like `value` are summed: float32 at least."""
    return torch.promote_types(value.dtype, torch.float32)


class LogSumExp(torch.autograd.Function):
    """`log sum_r exp(value_r)` over ranks, elementwise; every rank gets the full result.

    The forward runs one all-reduce of the maximum and one of the sum. The gradient is `e^(value_r - result)` times
    the sum over ranks of the gradients of `result`, which takes a third all-reduce.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyrefly: ignore[bad-override] as in Gather
        value, result = ctx.saved_tensors
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, dist.ReduceOp.SUM, ctx.group)
        return grad * (value - result).exp(), None
