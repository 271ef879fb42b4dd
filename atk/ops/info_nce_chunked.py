"""Backend `"chunked"` of InfoNCE: streaming log-sum-exps in plain PyTorch, on any device, bitwise reproducible.

Shapes: N_a clips, N_t captions, D channels. Logits `S = scale * audio @ text^T`, in float32 at least, are processed in
chunks [n, m] (`logit_chunks.py`) and can be kept for the backward. The fast path takes one exponential per element,
`e^(S - c)` with one c for all of S, and sums it along both axes. If a sum leaves the range of the dtype, the forward
starts over with separate log-sum-exps for rows and columns.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from atk.ops import exponentials
from atk.ops.exponentials import Pairs
from atk.ops.logit_chunks import Gradients, Logits, pairs_within

SMALLEST_SUM = 1e-24  # of exponentials; terms that underflow are negligible next to it
MAX_EXPONENT = 60.0  # of shared exponentials: e^60 and e^-60, times a gradient, are in the range of float32


class _Direction(NamedTuple):
    """Log-sum-exps along one axis of S, and their gradients."""

    lse: Tensor
    grad: Tensor


def forward(
    audio: Tensor,
    text: Tensor,
    scale: Tensor,
    positive: Tensor | None,
    columns: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """rows_i = logsumexp_j(S_ij), columns_j = logsumexp_i(S_ij), and the logits S[i, positive_i].

    Args:
        audio, text, scale, kept: as for `Logits`; `kept` is overwritten.
        positive: [N_a] int64 index of each clip's caption, or None.
        columns: whether to compute the log-sum-exps of the columns.

    Returns:
        [N_a], [N_t] (None unless `columns`), and [N_a] (None if `positive` is None), in the dtype of `scale`.
    """
    logits = Logits(audio, text, scale, kept)
    return _shared_exponentials(logits, positive, columns) or _separate_exponentials(logits, positive, columns)


def backward(
    audio: Tensor, text: Tensor, scale: Tensor, rows: Tensor, columns: Tensor | None, grad_rows: Tensor,
    grad_columns: Tensor | None, positive: Tensor | None, grad_positive: Tensor | None, kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of audio, text, and scale, from kept or recomputed logits.

        dS_ij = grad_rows_i e^(S_ij - rows_i) + grad_columns_j e^(S_ij - columns_j) + [j = positive_i] grad_positive_i
        grad_audio = scale * dS @ text, grad_text = scale * dS^T @ audio, grad_scale = sum dS * (audio @ text^T)

    Args:
        audio, text, scale, positive: as passed to `forward`.
        rows, columns: as returned by `forward`. With `columns` and `grad_columns` None, dS has no second term.
        grad_rows, grad_columns, grad_positive: [N_a], [N_t], and [N_a], in the dtype of `scale`.
        kept: the logits that `forward` kept; None: they are recomputed.

    Returns:
        [N_a, D] and [N_t, D] in the dtype of the inputs, accumulated in the dtype of `scale`, and a scalar.
    """
    gradients = Gradients(Logits(audio, text, scale, kept))
    along_columns = None if columns is None or grad_columns is None else _Direction(columns, grad_columns)
    differentiate = _LogitGradients(_Direction(rows, grad_rows), along_columns)
    for i, chunks in gradients.logits.chunks(write=False):
        for j, logits, scratch in chunks:
            pairs = None
            if positive is not None and grad_positive is not None:
                row, column = pairs_within(positive, i, j)
                values = differentiate.at_pairs(i, j, (row, column), logits[row, column])
                pairs = Pairs(row, column, values + grad_positive[i][row])
            weights, product_sum = differentiate(i, j, logits, pairs, scratch, gradients.logits.audio.dtype)
            gradients.scale += product_sum
            gradients.add(i, j, weights, logits)
    return gradients.finish(audio.dtype)


class _PositiveEntries:
    """Collects the entries `[i, positive_i]` of a matrix that is visited in chunks; none if `positive` is None."""

    def __init__(self, positive: Tensor | None, scale: Tensor):
        self.positive = positive
        self.values = scale.new_full((0 if positive is None else len(positive),), torch.nan)

    def collect(self, i: slice, j: slice, chunk: Tensor) -> None:
        """Store the entries of the positives in one chunk."""
        if self.positive is not None:
            row, column = pairs_within(self.positive, i, j)
            self.values[i][row] = chunk[row, column]


def _shared_exponentials(
    all_logits: Logits, positive: Tensor | None, columns: bool
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """The result of `forward`, or None if a sum leaves the range of the dtype or is NaN."""
    audio, text, scale = all_logits.audio, all_logits.text, all_logits.scale
    norms = (float(torch.linalg.vector_norm(rows.to(scale.dtype), dim=1).max()) for rows in (audio, text))
    bound = abs(float(scale)) * math.prod(norms)  # of |S|, by Cauchy-Schwarz
    largest_exponent = math.log(torch.finfo(scale.dtype).max / max(len(audio), len(text))) - 1
    shift = max(bound - largest_exponent, 0.0)
    if not math.isfinite(shift):
        return None
    row_sums, column_sums = scale.new_zeros(len(audio)), scale.new_zeros(len(text) if columns else 0)
    positive_logits = _PositiveEntries(positive, scale)
    for i, chunks in all_logits.chunks(write=True):
        for j, logits, scratch in chunks:
            positive_logits.collect(i, j, logits)
            exponentials.add_sums(logits, shift, row_sums[i], column_sums[j] if columns else None, scratch)
        if row_sums[i].min() < SMALLEST_SUM:
            return None
    if columns and column_sums.min() < SMALLEST_SUM:
        return None
    row_lse = row_sums.log() + shift
    column_lse = column_sums.log() + shift if columns else None
    if positive is None:
        return row_lse, column_lse, None
    of_positives = torch.zeros_like(row_sums)  # computed like the sums, which are then equal if nothing else counts
    values = positive_logits.values[:, None]
    exponentials.add_sums(values, shift, of_positives, None, torch.empty_like(values))
    row_lse = _relative_to_positive(row_lse, row_sums, positive_logits.values, of_positives)
    if column_lse is not None:
        lse, sums = column_lse[positive], column_sums[positive]
        column_lse[positive] = _relative_to_positive(lse, sums, positive_logits.values, of_positives)
    return row_lse, column_lse, positive_logits.values


def _relative_to_positive(lse: Tensor, sums: Tensor, positive_logits: Tensor, of_positives: Tensor) -> Tensor:
    """`lse`, but as the positive's logit plus a small logarithm where the positive dominates, so no digits are lost."""
    ratio = sums / of_positives
    return torch.where(ratio < 1e3, positive_logits + ratio.log(), lse)


def _separate_exponentials(
    all_logits: Logits, positive: Tensor | None, columns: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The result of `forward`, for logits of any magnitude."""
    scale = all_logits.scale
    row_lse = scale.new_full((len(all_logits.audio),), -math.inf)
    column_lse = scale.new_full((len(all_logits.text),), -math.inf) if columns else None
    positive_logits = _PositiveEntries(positive, scale)
    for i, chunks in all_logits.chunks(write=True):
        for j, logits, _ in chunks:
            positive_logits.collect(i, j, logits)
            row_lse[i] = torch.logaddexp(row_lse[i], logits.logsumexp(1))
            if column_lse is not None:
                column_lse[j] = torch.logaddexp(column_lse[j], logits.logsumexp(0))
    return row_lse, column_lse, None if positive is None else positive_logits.values


class _LogitGradients:
    """dS of a chunk, without the term of `grad_positive`.

    If all log-sum-exps lie within `2 * MAX_EXPONENT` of one another, one exponential per element serves both
    directions: `e^(S - shift)` times a factor per row plus a factor per column.
    """

    def __init__(self, rows: _Direction, columns: _Direction | None):
        self.rows, self.columns = rows, columns
        self.shift = 0.0
        self.row_factors: Tensor | None = None  # None: each direction takes its own exponential
        self.column_factors: Tensor | None = None
        lse = rows.lse if columns is None else torch.cat((rows.lse, columns.lse))
        low, high = (value.item() for value in torch.aminmax(lse))
        if high - low <= 2 * MAX_EXPONENT:  # False for NaN
            self.shift = 0.0 if max(-low, high) <= MAX_EXPONENT else (low + high) / 2
            self.row_factors = self._factors(rows)
            self.column_factors = None if columns is None else self._factors(columns)

    def _factors(self, direction: _Direction) -> Tensor:
        return direction.grad * (self.shift - direction.lse).exp()

    def at_pairs(self, i: slice, j: slice, pairs: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
        """dS at single entries. Where both softmaxes are 1, it is exactly `rows.grad + columns.grad`."""
        row, column = pairs
        weights = self.rows.grad[i][row] * (logits - self.rows.lse[i][row]).exp()
        if self.columns is not None:
            weights += self.columns.grad[j][column] * (logits - self.columns.lse[j][column]).exp()
        return weights

    def __call__(
        self, i: slice, j: slice, logits: Tensor, pairs: Pairs | None, scratch: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, float]:
        """dS of a chunk, with the entries in `pairs`, in the memory of `scratch`; see `exponentials.weighted`."""
        if self.row_factors is not None:
            columns = None if self.column_factors is None else self.column_factors[j]
            return exponentials.weighted(logits, self.shift, self.row_factors[i], columns, pairs, scratch, dtype)
        weights = (logits - self.rows.lse[i, None]).exp_().mul_(self.rows.grad[i, None])
        if self.columns is not None:
            weights.addcmul_((logits - self.columns.lse[j]).exp_(), self.columns.grad[j])
        if pairs is not None:
            weights[pairs.row, pairs.column] = pairs.values
        return weights, 0.0
