"""Launchers of the C++ kernels for InfoNCE: exponentials of float32 logits S [N, M], one block after the other."""

from typing import Any

import torch
from torch import Tensor

from atk.kernels import cpp


class Sums:
    """Adds `e^(S - shift)` along both axes, in the same order for any number of threads.

    Args:
        rows, columns: float32 sums `[N]` and `[M]`, contiguous; columns None: they are not needed.
        positive, positive_logits: `[N]` int64, the column of each row's positive, and `[N]` float32, where its logit is
            written; or both None.
        shift: at least `S.max() - 88`.
    """

    def __init__(
        self, rows: Tensor, columns: Tensor | None, positive: Tensor | None, positive_logits: Tensor | None,
        shift: float,
    ):  # fmt: skip
        self.rows, self.columns, self.positive_logits, self.shift = rows, columns, positive_logits, shift
        self.positive = None if positive is None else positive.contiguous()

    def add(self, row: int, column: int, logits: Tensor) -> None:
        """Add the block of S that starts at `row` and `column`; its rows are contiguous."""
        _block(row, column, logits, self.positive).add_exponentials(
            shift=self.shift,
            threads=torch.get_num_threads(),
            row_sums=self.rows.data_ptr(),
            column_sums=cpp.address(self.columns),
            positive_logits=cpp.address(self.positive_logits),
        )

    def to_logarithms(self, smallest: float) -> bool:
        """Replace the sums over all blocks by log-sum-exps, unless one is below `smallest` or NaN: then return False.

        Where a positive has at least a thousandth of the probability, they are its logit plus a small logarithm.
        """
        return cpp.extension().log_sum_exps(
            row_sums=self.rows.data_ptr(),
            rows=self.rows.shape[0],
            column_sums=cpp.address(self.columns),
            columns=0 if self.columns is None else self.columns.shape[0],
            positive=cpp.address(self.positive),
            positive_logits=cpp.address(self.positive_logits),
            shift=self.shift,
            smallest=smallest,
        )


class LogitGradients:
    """dS from log-sum-exps and their gradients, all contiguous and, but for `positive`, float32.

        dS_ij = grad_rows_i e^(S_ij - rows_i) + grad_columns_j e^(S_ij - columns_j) + [j = positive_i] grad_positive_i

    Args:
        rows, grad_rows: `[N]`.
        columns, grad_columns: `[M]`, or both None: no second term.
        positive, grad_positive: `[N]` int64 and `[N]`, or both None: no third term.
    """

    def __init__(
        self, rows: Tensor, grad_rows: Tensor, columns: Tensor | None, grad_columns: Tensor | None,
        positive: Tensor | None, grad_positive: Tensor | None,
    ):  # fmt: skip
        self.pointed_to = rows, grad_rows, columns, grad_columns, positive, grad_positive
        self.positive = positive
        self.gradients = cpp.extension().LogitGradients(
            row_lse=rows.data_ptr(),
            row_grads=grad_rows.data_ptr(),
            rows=rows.shape[0],
            column_lse=cpp.address(columns),
            column_grads=cpp.address(grad_columns),
            columns=0 if columns is None else columns.shape[0],
            positive_grads=cpp.address(grad_positive),
        )

    def set_shift(self, largest: float) -> bool:
        """Choose c so that `|rows - c|` and `|columns - c|` are at most `largest`; False if there is none."""
        return self.gradients.set_shift(largest)

    def write(self, row: int, column: int, logits: Tensor, out: Tensor) -> float:
        """Write the block of dS that starts at `row` and `column`, once a shift is set.

        Args:
            row, column: of S.
            logits: the block of S; its rows are contiguous.
            out: of the same shape, float32 or bfloat16; its rows are contiguous. In float32, it may be `logits` itself.

        Returns:
            `sum S * dS` of the block, before `out` is rounded.
        """
        return self.gradients.write(
            block=_block(row, column, logits, self.positive),
            threads=torch.get_num_threads(),
            out=out.data_ptr(),
            out_dtype=cpp.dtype(out),
            out_stride=out.stride(0),
        )


def _block(row: int, column: int, logits: Tensor, positive: Tensor | None) -> Any:
    """The `_C.LogitBlock` that points to `logits`."""
    rows, columns = logits.shape
    return cpp.extension().LogitBlock(
        values=logits.data_ptr(),
        rows=rows,
        columns=columns,
        stride=logits.stride(0),
        row=row,
        column=column,
        positive=cpp.address(positive),
    )
