"""Backend `"chunked"` of InfoNCE: streaming log-sum-exps in plain PyTorch, on any device, bitwise reproducible.

Shapes: N_a clips, N_t captions, D channels. Logits `S = scale * audio @ text^T`, in float32 at least, are processed in
chunks [n, m] (`logit_chunks.py`) and can be kept for the backward. The fast path takes one exponential per element,
`e^(S - c)` with one c for all of S, and sums it along both axes. If a sum leaves the range of the dtype, the forward
starts over with separate log-sum-exps for rows and columns.
"""

import math

import torch
from torch import Tensor

from atk.ops.exponentials import Direction, LogitGradients, Positives, Sums, collect_positives
from atk.ops.logit_chunks import Gradients, Logits

SMALLEST_SUM = 1e-24  # of exponentials; terms that underflow are negligible next to it


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
    along_columns = None if columns is None or grad_columns is None else Direction(columns, grad_columns)
    positives = None if positive is None or grad_positive is None else Positives(positive, grad_positive)
    differentiate = LogitGradients(Direction(rows, grad_rows), along_columns, positives)
    for i, chunks in gradients.logits.chunks(write=False):
        for j, logits, scratch in chunks:
            weights, product_sum = differentiate(i, j, logits, scratch, gradients.logits.audio.dtype)
            gradients.add(i, j, weights, logits, product_sum)
    return gradients.finish(audio.dtype)


def _shared_exponentials(
    logits: Logits, positive: Tensor | None, columns: bool
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """The result of `forward`, or None if a sum leaves the range of the dtype or is NaN."""
    audio, text, scale = logits.audio, logits.text, logits.scale
    norms = [torch.linalg.vector_norm(rows, dim=1, dtype=scale.dtype).max().item() for rows in (audio, text)]
    bound = abs(logits.factor) * math.prod(norms)  # of |S|, by Cauchy-Schwarz
    shape = audio.shape[0], text.shape[0]
    largest_exponent = math.log(torch.finfo(scale.dtype).max / max(shape)) - 1
    shift = max(bound - largest_exponent, 0.0)
    if not math.isfinite(shift):
        return None
    sums = Sums(scale, shape, shift, columns, positive)
    for i, chunks in logits.chunks(write=True):
        for j, chunk, scratch in chunks:
            sums.add(i, j, chunk, scratch)
        if i.stop < shape[0] and sums.rows[i].min() < SMALLEST_SUM:
            return None
    return (sums.rows, sums.columns, sums.positive_logits) if sums.to_logarithms(SMALLEST_SUM) else None


def _separate_exponentials(
    all_logits: Logits, positive: Tensor | None, columns: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The result of `forward`, for logits of any magnitude."""
    scale = all_logits.scale
    row_lse = scale.new_full((len(all_logits.audio),), -math.inf)
    column_lse = scale.new_full((len(all_logits.text),), -math.inf) if columns else None
    positive_logits = None if positive is None else torch.empty_like(row_lse)
    for i, chunks in all_logits.chunks(write=True):
        for j, logits, _ in chunks:
            collect_positives(positive, i, j, logits, positive_logits)
            row_lse[i] = torch.logaddexp(row_lse[i], logits.logsumexp(1))
            if column_lse is not None:
                column_lse[j] = torch.logaddexp(column_lse[j], logits.logsumexp(0))
    return row_lse, column_lse, positive_logits
