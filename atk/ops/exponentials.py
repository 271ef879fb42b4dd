"""Exponentials of a chunk of logits S [n, m], for log-sum-exps and their gradients: one pass in C++, or PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor

from atk.kernels import cpp


class Pairs(NamedTuple):
    """Single entries of a chunk, at most one in each row."""

    row: Tensor  # int64
    column: Tensor  # int64
    values: Tensor


def _in_one_pass(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and cpp.unavailable() is None


def add_sums(logits: Tensor, shift: float, rows: Tensor, columns: Tensor | None, scratch: Tensor) -> None:
    """Add the sums of `e^(S - shift)` along both axes to rows [n] and columns [m] (None: not needed).

    `scratch` [n, m] is overwritten; it may be the memory of `logits`.
    """
    if _in_one_pass(logits):
        cpp.add_exponentials(logits, shift, rows, columns)
        return
    torch.exp(torch.sub(logits, shift, out=scratch) if shift else logits, out=scratch)
    rows += scratch.sum(1)
    if columns is not None:
        columns += scratch.sum(0)


def weighted(
    logits: Tensor, shift: float, rows: Tensor, columns: Tensor | None, pairs: Pairs | None, scratch: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, float]:  # fmt: skip
    """Exponentials times factors, `W = e^(S - shift) * (rows[:, None] + columns)`, where W is given in `pairs`.

    Args:
        logits, shift: as for `add_sums`.
        rows, columns: factors [n] and [m]; columns None: zeros.
        pairs: entries of W that are given.
        scratch: [n, m] of the dtype of `logits`; it may be their memory if `dtype` is theirs.
        dtype: dtype of W: that of `logits`, or bfloat16.

    Returns:
        W in the memory of `scratch`, and `sum S * W` before W was rounded to bfloat16 (0 without rounding).
    """
    if _in_one_pass(logits):
        out = scratch.flatten().view(dtype)[: scratch.numel()].view_as(scratch)
        dense = None
        if pairs is not None:
            dense = pairs.row.new_full((len(logits),), -1), logits.new_empty(len(logits))
            dense[0][pairs.row], dense[1][pairs.row] = pairs.column, pairs.values
        total = cpp.logit_gradients(logits, shift, rows, columns, dense, out)
        return out, total if dtype == torch.bfloat16 else 0.0
    torch.exp(torch.sub(logits, shift, out=scratch) if shift else logits, out=scratch)
    if columns is None:
        scratch.mul_(rows[:, None])
    else:
        scratch.mul_(rows[:, None] + columns)
    if pairs is not None:
        scratch[pairs.row, pairs.column] = pairs.values
    return scratch, 0.0
