"""Exponentials of the logits S [N, M] of InfoNCE, in plain PyTorch or one pass in C++, one chunk after the other.

Of a chunk, i and j are its slices of S, and `scratch` is memory of the shape and dtype of its logits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from atk.kernels import cpp, cpp_info_nce
from atk.ops.logit_chunks import pairs_within

_MAX_EXPONENT = 60.0  # of shared exponentials: e^60 and e^-60, times a gradient, are in the range of float32


class Direction(NamedTuple):
    """Log-sum-exps along one axis of S, and their gradients."""

    lse: Tensor
    grad: Tensor


class Positives(NamedTuple):
    """The column of each row's positive, int64 [N], and the gradients of the positives' logits [N]."""

    column: Tensor
    grad: Tensor


def _in_one_pass(like: Tensor) -> bool:
    return like.device.type == "cpu" and like.dtype == torch.float32 and cpp.unavailable() is None


class Sums:
    """Sums of `e^(S - shift)` along both axes, and log-sum-exps from them.

    Args:
        like: of the device and dtype of S.
        shape: of S.
        shift: a bound on S, minus the largest exponent whose sums are in the range of the dtype.
        columns: whether to sum columns too.
        positive: [N] int64 column of each row's positive, or None.

    Attributes:
        rows, columns: the sums, [N] and [M] or None.
        positive_logits: [N], or None without `positive`.
    """

    def __init__(self, like: Tensor, shape: tuple[int, int], shift: float, columns: bool, positive: Tensor | None):
        self.rows = like.new_zeros(shape[0])
        self.columns = like.new_zeros(shape[1]) if columns else None
        self.positive_logits = None if positive is None else torch.empty_like(self.rows)
        self._shift, self._positive = shift, positive
        self._kernel = None
        if _in_one_pass(like):
            self._kernel = cpp_info_nce.Sums(self.rows, self.columns, positive, self.positive_logits, shift)

    def add(self, i: slice, j: slice, logits: Tensor, scratch: Tensor) -> None:
        """Add a chunk. `scratch` is overwritten; it may be the memory of `logits`."""
        if self._kernel is not None:
            self._kernel.add(i.start, j.start, logits)
            return
        collect_positives(self._positive, i, j, logits, self.positive_logits)
        _exponentials(logits, self._shift, scratch)
        self.rows[i] += scratch.sum(1)
        if self.columns is not None:
            self.columns[j] += scratch.sum(0)

    def to_logarithms(self, smallest: float) -> bool:
        """Replace the sums by log-sum-exps, unless one of them is below `smallest` or NaN: then return False.

        Where a positive has at least a thousandth of the probability, they are its logit plus a small logarithm, so no
        digits are lost.
        """
        if self._kernel is not None:
            return self._kernel.to_logarithms(smallest)
        sums = [self.rows] if self.columns is None else [self.rows, self.columns]
        if not all((value >= smallest).all() for value in sums):
            return False
        lse = [value.log() + self._shift for value in sums]
        if self._positive is not None and self.positive_logits is not None:
            # Computed like the sums, which are then equal if nothing else counts.
            of_positives = (self.positive_logits - self._shift if self._shift else self.positive_logits).exp()
            for value, logarithms, index in zip(sums, lse, (slice(None), self._positive), strict=False):
                ratio = value[index] / of_positives
                relative = self.positive_logits + ratio.log()
                logarithms[index] = torch.where(ratio < 1e3, relative, logarithms[index])
        for value, logarithms in zip(sums, lse, strict=True):
            value.copy_(logarithms)
        return True


def collect_positives(
    positive: Tensor | None, i: slice, j: slice, logits: Tensor, positive_logits: Tensor | None
) -> None:
    """Store the logits of the positives in one chunk."""
    if positive is not None and positive_logits is not None:
        row, column = pairs_within(positive, i, j)
        positive_logits[i][row] = logits[row, column]


def _exponentials(logits: Tensor, shift: float, out: Tensor) -> None:
    torch.exp(torch.sub(logits, shift, out=out) if shift else logits, out=out)


class LogitGradients:
    """dS from log-sum-exps, their gradients, and those of the positives' logits.

        dS_ij = grad_rows_i e^(S_ij - rows_i) + grad_columns_j e^(S_ij - columns_j) + [j = positive_i] grad_positive_i

    If all log-sum-exps lie within `2 * _MAX_EXPONENT` of one another, one exponential per element serves both
    directions: `e^(S - shift)` times a factor per row plus a factor per column. The entries of positives are always
    computed term by term.
    """

    def __init__(self, rows: Direction, columns: Direction | None, positives: Positives | None):
        self.rows, self.columns, self.positives = rows, columns, positives
        self._shift = 0.0
        self._row_factors: Tensor | None = None  # None: each direction takes its own exponential
        self._column_factors: Tensor | None = None
        self._kernel = None
        if _in_one_pass(rows.lse):
            kernel = cpp_info_nce.LogitGradients(*rows, *(columns or (None, None)), *(positives or (None, None)))
            if kernel.set_shift(_MAX_EXPONENT):
                self._kernel = kernel
            return
        lse = rows.lse if columns is None else torch.cat((rows.lse, columns.lse))
        low, high = (value.item() for value in torch.aminmax(lse))
        if high - low <= 2 * _MAX_EXPONENT:  # False for NaN
            self._shift = 0.0 if max(-low, high) <= _MAX_EXPONENT else (low + high) / 2
            self._row_factors = self._factors(rows)
            self._column_factors = None if columns is None else self._factors(columns)

    def _factors(self, direction: Direction) -> Tensor:
        return direction.grad * (self._shift - direction.lse).exp()

    def __call__(
        self, i: slice, j: slice, logits: Tensor, scratch: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, float | None]:
        """dS of a chunk.

        Args:
            i, j, logits: the chunk.
            scratch: overwritten; it may be the memory of `logits` if `dtype` is theirs.
            dtype: of the products with dS: that of `logits`, or bfloat16.

        Returns:
            dS in the memory of `scratch`, and `sum S * dS`. One pass in C++ writes dS in `dtype`. Otherwise, dS has the
            dtype of `logits`, and the sum is None.
        """
        if self._kernel is not None:
            out = scratch.flatten().view(dtype)[: scratch.numel()].view_as(scratch)
            return out, self._kernel.write(i.start, j.start, logits, out)
        pairs = None if self.positives is None else self._at_positives(self.positives, i, j, logits)
        if self._row_factors is not None:
            _exponentials(logits, self._shift, scratch)
            factors = self._row_factors[i, None]
            scratch.mul_(factors if self._column_factors is None else factors + self._column_factors[j])
            weights = scratch
        else:
            weights = (logits - self.rows.lse[i, None]).exp_().mul_(self.rows.grad[i, None])
            if self.columns is not None:
                weights.addcmul_((logits - self.columns.lse[j]).exp_(), self.columns.grad[j])
        if pairs is not None:
            row, column, values = pairs
            weights[row, column] = values
        return weights, None

    def _at_positives(self, positives: Positives, i: slice, j: slice, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and columns of the positives in a chunk, and dS there.

        Where both softmaxes are 1, it is exactly `rows.grad + columns.grad + positives.grad`.
        """
        row, column = pairs_within(positives.column, i, j)
        values = logits[row, column]
        weights = self.rows.grad[i][row] * (values - self.rows.lse[i][row]).exp()
        if self.columns is not None:
            weights += self.columns.grad[j][column] * (values - self.columns.lse[j][column]).exp()
        return row, column, weights + positives.grad[i][row]
