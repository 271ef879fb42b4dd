"""Streaming log-sum-exp of logits in plain PyTorch, on any device, in float32 at least; two runs give the same bits.

Shapes: N_a clips, N_t captions, D channels. Logits `S = scale * audio @ text^T` exist a chunk [n, m] at a time.
One exponential an element serves both directions: `e^(S - c)`, with one c for all of S, summed along both axes. Where
c does not keep every sum within the range of the type, each direction gets exponentials of its own.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ROWS = 512  # enough for the full rate of the products
CHUNK_ELEMENTS = 4 << 20  # 16 MiB of float32: in a last-level cache
SMALLEST_SUM = 1e-24  # of exponentials: what underflows beside it does not count
REACH = 60.0  # e^60 times a gradient stays within float32, and so does e^-60


def forward(
    audio: Tensor, text: Tensor, scale: Tensor, positive: Tensor | None, columns: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """rows_i = logsumexp_j(S_ij), columns_j = logsumexp_i(S_ij), and the logits S[i, positive_i].

    Args:
        audio: [N_a, D], N_a >= 1, any floating type; 16-bit types are widened to float32 before the products.
        text: [N_t, D], N_t >= 1, of the same type.
        scale: scalar tensor, float32 (float64 for float64).
        positive: [N_a] int64 caption of each clip, or None.
        columns: whether the second result is wanted.

    Returns:
        [N_a], [N_t] (None when not wanted) and [N_a] (None without `positive`), of the type of `scale`.
    """
    text = text.to(scale.dtype)
    results = _shared_exponentials(audio, text, scale, positive, columns)
    return results or _separate_exponentials(audio, text, scale, positive, columns)


def backward(
    audio: Tensor, text: Tensor, scale: Tensor, rows: Tensor, columns: Tensor | None, grad_rows: Tensor,
    grad_columns: Tensor | None, positive: Tensor | None, grad_positive: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of audio, text and scale, from logits computed again.

        dS_ij = grad_rows_i e^(S_ij - rows_i) + grad_columns_j e^(S_ij - columns_j) + [j = positive_i] grad_positive_i
        grad_audio = scale * dS @ text, grad_text = scale * dS^T @ audio, grad_scale = sum dS * (audio @ text^T)

    Args:
        audio, text, scale, positive: as handed to `forward`.
        rows, columns: as `forward` returned them; `columns` and `grad_columns` None: rows only.
        grad_rows, grad_columns, grad_positive: [N_a], [N_t], [N_a], of the type of `scale`.

    Returns:
        [N_a, D] and [N_t, D] in the type of the inputs, summed in that of `scale`, and a scalar.
    """
    wide_text = text.to(scale.dtype)
    grad_audio, grad_text = torch.empty_like(audio), torch.zeros_like(wide_text)
    grad_scale = torch.zeros((), dtype=torch.float64, device=audio.device)
    differentiate = _LogitGradients(rows, columns, grad_rows, grad_columns)
    for i, j, clips, logits in _chunks(audio, wide_text, scale):
        if positive is None:
            weights = differentiate(i, j, logits)
        else:
            pairs = _pairs(positive, i, j)
            of_pairs = differentiate.of_pairs(i, j, pairs, logits[pairs]) + grad_positive[i][pairs[0]]
            weights = differentiate(i, j, logits)
            weights[pairs] = of_pairs
        if j.start == 0:
            chunk_sum = torch.zeros_like(clips)  # dS @ text
        chunk_sum.addmm_(weights, wide_text[j])
        grad_text[j].addmm_(weights.T, clips)
        if j.stop == len(text):
            grad_scale += (chunk_sum * audio[i]).sum(dtype=torch.float64)
            torch.mul(chunk_sum, scale, out=grad_audio[i])
    return grad_audio, grad_text.to(text.dtype), grad_scale.to(scale.dtype)


def _chunks(audio: Tensor, text: Tensor, scale: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Rows and columns of each chunk of S, `scale * audio` of the rows, and the logits, all in one buffer."""
    height = min(len(audio), CHUNK_ROWS)
    width = min(len(text), CHUNK_ELEMENTS // height)
    buffer = text.new_empty(height * width)
    for i in _slices(len(audio), height):
        clips = audio[i].to(scale.dtype) * scale
        for j in _slices(len(text), width):
            logits = buffer[: len(clips) * (j.stop - j.start)].view(len(clips), -1)
            yield i, j, clips, torch.mm(clips, text[j].T, out=logits)


def _slices(number: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]


def _pairs(positive: Tensor, i: slice, j: slice) -> tuple[Tensor, Tensor]:
    """Row and column within the chunk of each positive that lies in it."""
    column = positive[i] - j.start
    row = ((column >= 0) & (column < j.stop - j.start)).nonzero().squeeze(1)
    return row, column[row]


def _shared_exponentials(audio: Tensor, text: Tensor, scale: Tensor, positive: Tensor | None, columns: bool):
    """What `forward` returns, or None where a sum leaves the range of the type (or is not a number)."""
    norms = (float(torch.linalg.vector_norm(side.to(scale.dtype), dim=1).max()) for side in (audio, text))
    bound = abs(float(scale)) * math.prod(norms)  # of |S|, by Cauchy-Schwarz
    room = math.log(torch.finfo(scale.dtype).max / max(len(audio), len(text))) - 1
    shift = max(bound - room, 0.0)
    if not math.isfinite(shift):
        return None
    row_sums, column_sums = scale.new_zeros(len(audio)), scale.new_zeros(len(text) if columns else 0)
    paired = None if positive is None else scale.new_full((len(audio),), torch.nan)
    paired_exponentials = None if positive is None else scale.new_full((len(audio),), torch.nan)
    for i, j, _, logits in _chunks(audio, text, scale):
        _keep_pairs(paired, positive, i, j, logits)
        if shift:
            logits.sub_(shift)
        logits.exp_()
        _keep_pairs(paired_exponentials, positive, i, j, logits)
        row_sums[i] += logits.sum(1)
        if columns:
            column_sums[j] += logits.sum(0)
        if j.stop == len(text) and row_sums[i].min() < SMALLEST_SUM:
            return None
    if columns and column_sums.min() < SMALLEST_SUM:
        return None
    rows, column_lse = row_sums.log() + shift, column_sums.log() + shift if columns else None
    if positive is not None:
        rows = _beside_positive(rows, row_sums, paired, paired_exponentials)
        if columns:
            sides = column_lse[positive], column_sums[positive]
            column_lse[positive] = _beside_positive(*sides, paired, paired_exponentials)
    return rows, column_lse, paired


def _beside_positive(lse: Tensor, sums: Tensor, paired: Tensor, exponentials: Tensor) -> Tensor:
    """`lse` as the positive's logit plus a small logarithm, which loses no digits where the positive has it all."""
    ratio = sums / exponentials
    return torch.where(ratio < 1e3, paired + ratio.log(), lse)


def _separate_exponentials(audio: Tensor, text: Tensor, scale: Tensor, positive: Tensor | None, columns: bool):
    """What `forward` returns, for logits of any size."""
    rows = scale.new_full((len(audio),), -math.inf)
    column_lse = scale.new_full((len(text),), -math.inf) if columns else None
    paired = None if positive is None else scale.new_full((len(audio),), torch.nan)
    for i, j, _, logits in _chunks(audio, text, scale):
        _keep_pairs(paired, positive, i, j, logits)
        rows[i] = torch.logaddexp(rows[i], logits.logsumexp(1))
        if columns:
            column_lse[j] = torch.logaddexp(column_lse[j], logits.logsumexp(0))
    return rows, column_lse, paired


def _keep_pairs(kept: Tensor | None, positive: Tensor | None, i: slice, j: slice, chunk: Tensor) -> None:
    if positive is not None:
        row, column = _pairs(positive, i, j)
        kept[i][row] = chunk[row, column]


class _LogitGradients:
    """dS of a chunk without its positives, written over its logits where one exponential an element is enough."""

    def __init__(self, rows: Tensor, columns: Tensor | None, grad_rows: Tensor, grad_columns: Tensor | None):
        self.rows, self.columns, self.grad_rows, self.grad_columns = rows, columns, grad_rows, grad_columns
        low, high = (value.item() for value in torch.aminmax(rows if columns is None else torch.cat((rows, columns))))
        self.shared = high - low <= 2 * REACH  # False for NaN
        if not self.shared:
            return
        self.shift = 0.0 if max(-low, high) <= REACH else (low + high) / 2
        self.row_factors = grad_rows * (self.shift - rows).exp()
        if columns is not None:
            self.column_factors = grad_columns * (self.shift - columns).exp()
            self.buffer = rows.new_empty(0)

    def of_pairs(self, i: slice, j: slice, pairs: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
        """dS of single entries, which a softmax of 1 makes exactly `grad_rows + grad_columns`."""
        row, column = pairs
        weights = self.grad_rows[i][row] * (logits - self.rows[i][row]).exp()
        if self.columns is not None:
            weights += self.grad_columns[j][column] * (logits - self.columns[j][column]).exp()
        return weights

    def __call__(self, i: slice, j: slice, logits: Tensor) -> Tensor:
        if not self.shared:
            weights = (logits - self.rows[i, None]).exp_().mul_(self.grad_rows[i, None])
            if self.columns is not None:
                weights.addcmul_(logits.sub_(self.columns[j]).exp_(), self.grad_columns[j])
            return weights
        if self.shift:
            logits.sub_(self.shift)
        logits.exp_()
        if self.columns is None:
            return logits.mul_(self.row_factors[i, None])
        if self.buffer.numel() < logits.numel():
            self.buffer = torch.empty_like(logits).flatten()
        factors = self.buffer[: logits.numel()].view(logits.shape)
        return logits.mul_(torch.add(self.row_factors[i, None], self.column_factors[j], out=factors))
