"""Launchers for streaming InfoNCE (3.3)-(3.5) in Triton. Results are bitwise reproducible; nothing synchronizes.

Shapes: N_a clips, N_t captions, D channels; logits S = scale * audio @ text^T. Beyond inputs and results, memory is
64 MiB of workspace and float32 sums of the gradients, linear in N_a and N_t.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atk.kernels.availability import unavailable
from atk.kernels.info_nce_kernels import grad_logits_kernel, lse_kernel, merge_kernel
from atk.kernels.launch import (
    UNFUSED,
    Device,
    cdiv,
    column_span,
    info_nce_launch,
    merge_launch,
    on_device,
)
from atk.kernels.sequences import packed_width

__all__ = ["backward", "forward", "unavailable"]

PART_BYTES = 32 * 2**20  # workspace for partial log-sum-exps of the columns
WEIGHT_BYTES = 32 * 2**20  # workspace for gradients of logits; fits the L2 cache of an H200
WEIGHT_COLUMNS = 4096  # square chunks minimize the traffic of gradient sums
GROUP = 16  # tiles of clips
_ALIGNMENT = 64  # elements of a row of weights that a matrix instruction loads at once


@dataclass(frozen=True)
class _LogitTerms:
    """The vectors that the gradient of the logits is computed from. Rows are clips, columns are captions."""

    rows: Tensor  # [N_a] float32: log-sum-exp of each row
    columns: Tensor | None  # [N_t] float32: log-sum-exp of each column; None: rows only
    grad_rows: Tensor  # [N_a] float32
    grad_columns: Tensor | None  # [N_t] float32; None: rows only
    positive: Tensor | None  # [N_a] int64: caption of each clip; None: no positives
    grad_positive: Tensor | None  # [N_a] float32: gradient of the positive's logit

    def contiguous(self) -> "_LogitTerms":
        """The same vectors, contiguous. The gradient of a mean arrives as an expanded scalar."""
        return _LogitTerms(
            self.rows.contiguous(),
            None if self.columns is None else self.columns.contiguous(),
            self.grad_rows.contiguous(),
            None if self.grad_columns is None else self.grad_columns.contiguous(),
            None if self.positive is None else self.positive.contiguous(),
            None if self.grad_positive is None else self.grad_positive.contiguous(),
        )

    def chunk(self, i: slice, j: slice) -> "_LogitTerms":
        """The vectors for rows `i` and columns `j`."""
        return _LogitTerms(
            self.rows[i],
            None if self.columns is None else self.columns[j],
            self.grad_rows[i],
            None if self.grad_columns is None else self.grad_columns[j],
            None if self.positive is None else self.positive[i],
            None if self.grad_positive is None else self.grad_positive[i],
        )

    def max_gradient(self) -> Tensor:
        """An upper bound on the magnitude of the logits' gradients: a positive float32 scalar."""
        bound = torch.linalg.vector_norm(self.grad_rows, torch.inf)
        for grad in (self.grad_columns, self.grad_positive):
            if grad is not None:
                bound = bound + torch.linalg.vector_norm(grad, torch.inf)
        return bound.clamp(min=1e-30)  # avoids dividing by 0 when there is no gradient


def forward(audio: Tensor, text: Tensor, scale: Tensor, columns: bool = True) -> tuple[Tensor, Tensor | None]:
    """rows_i = logsumexp_j(S_ij) and columns_j = logsumexp_i(S_ij), with S = scale * audio @ text^T, in one pass.

    Args:
        audio: [N_a, D] float32, bfloat16 or float16, contiguous. Products accumulate in float32.
        text: [N_t, D] of the same dtype, contiguous.
        scale: float32 scalar tensor on the same device.
        columns: whether to compute columns.

    Returns:
        rows [N_a] and columns [N_t] (None unless requested), float32; -inf if there is nothing to sum over.
    """
    with on_device(audio.device):
        N_a = len(audio)
        N_t = len(text)
        row_lse = torch.full((N_a,), -torch.inf, dtype=torch.float32, device=audio.device)
        column_lse = torch.full((N_t,), -torch.inf, dtype=torch.float32, device=audio.device) if columns else None
        if N_a == 0 or N_t == 0:
            return row_lse, column_lse
        audio = packed(audio)
        text = packed(text)
        launch = info_nce_launch(audio.dtype, audio.shape[1], Device.of(audio.device))
        tiles = max(1, PART_BYTES // (4 * N_t)) if columns else cdiv(N_a, launch.rows)
        for chunk in chunks(N_a, tiles * launch.rows):
            if column_lse is None:
                _lse(audio[chunk], text, scale, row_lse[chunk], None)
                continue
            parts = row_lse.new_empty(cdiv(len(row_lse[chunk]), launch.rows), N_t)
            _lse(audio[chunk], text, scale, row_lse[chunk], parts)
            # The result of the earlier chunks counts as one more part.
            _merge(parts if chunk.start == 0 else torch.cat((parts, column_lse[None])), column_lse)
    return row_lse, column_lse


def backward(
    audio: Tensor, text: Tensor, scale: Tensor, rows: Tensor, columns: Tensor | None, grad_rows: Tensor,
    grad_columns: Tensor | None, positive: Tensor | None = None, grad_positive: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of audio, text and scale, from recomputed logits.

        dS_ij = grad_rows_i e^(S_ij - rows_i) + grad_columns_j e^(S_ij - columns_j) + [j = positive_i] grad_positive_i
        grad_audio = scale * dS @ text, grad_text = scale * dS^T @ audio, grad_scale = sum dS * (audio @ text^T)

    In half precision, dS is rounded before the products. For a positive with a probability near 1 in both directions
    the three terms nearly cancel, so they are added here in float32 instead of by the caller after rounding.

    Args:
        audio, text, scale: as passed to `forward`.
        rows, columns: as returned by `forward`. `columns` and `grad_columns` None: rows only.
        grad_rows: [N_a] float32.
        grad_columns: [N_t] float32.
        positive: [N_a] int64, the caption of each clip. None: no positives.
        grad_positive: [N_a] float32, the gradient of the positive's logit.

    Returns:
        grad_audio [N_a, D] and grad_text [N_t, D] of the dtype of the inputs, and grad_scale, a float32 scalar.
    """
    with on_device(audio.device):
        if len(audio) == 0 or len(text) == 0:
            return torch.zeros_like(audio), torch.zeros_like(text), torch.zeros_like(scale, dtype=torch.float32)
        terms = _LogitTerms(rows, columns, grad_rows, grad_columns, positive, grad_positive)
        return _backward(audio, text, scale, terms.contiguous(), terms.max_gradient())


def _backward(
    audio: Tensor, text: Tensor, scale: Tensor, terms: _LogitTerms, largest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of `backward`; `largest` is a float32 scalar, an upper bound on |dS|."""
    unit = largest / 2**14  # scale of the weights

    def grad_logits(clips: Tensor, captions: Tensor, weights: Tensor, i: slice, j: slice) -> Tensor:
        return _grad_logits(clips, captions, scale, terms.chunk(i, j), largest, weights, j.start)

    grad_audio, grad_text, scale_parts = embedding_gradients(audio, text, unit * scale, grad_logits)
    return grad_audio, grad_text, torch.cat(scale_parts).sum() * unit


def embedding_gradients(
    audio: Tensor, text: Tensor, factor: Tensor, grad_logits: Callable[[Tensor, Tensor, Tensor, slice, slice], Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """factor * W @ text and factor * W^T @ audio for a matrix W [N_a, N_t] of which there is only a chunk at a time.

    Args:
        audio: [N_a, D] float32, bfloat16 or float16, contiguous.
        text: [N_t, D] of the same dtype, contiguous.
        factor: float32 scalar.
        grad_logits: called with clips and captions, packed; a buffer of their dtype, into which it writes W for them;
            and the slices that they are of all clips and captions.

    Returns:
        The gradients [N_a, D] and [N_t, D] of the dtype of the inputs, and what the calls of `grad_logits` returned.
    """
    D = audio.shape[1]
    a, t = packed(audio), packed(text)
    grad_audio, grad_text = torch.empty_like(audio), torch.empty_like(text)
    height, width = chunk_shape(len(a), len(t), a.dtype)
    weights = a.new_empty(height, width)
    text_sum = a.new_empty(t.shape, dtype=torch.float32)
    parts = []
    for i in chunks(len(a), height):
        rows = weights[: len(a[i])]
        audio_sum = a.new_empty(a[i].shape, dtype=torch.float32)
        for j in chunks(len(t), width):
            parts.append(grad_logits(a[i], t[j], rows, i, j))
            w = rows[:, : len(t[j])]
            add_product(audio_sum, w, t[j], first=j.start == 0)
            add_product(text_sum[j], w.T, a[i], first=i.start == 0)
        torch.mul(audio_sum[:, :D], factor, out=grad_audio[i])
    torch.mul(text_sum[:, :D], factor, out=grad_text)
    return grad_audio, grad_text, parts


def packed(rows: Tensor) -> Tensor:
    """`rows` [N, D] zero-padded to full, aligned channel tiles, which does not change the products."""
    missing = packed_width(rows.shape[1]) - rows.shape[1]
    return F.pad(rows, (0, missing)) if missing else rows


def chunks(N: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, N)) for start in range(0, N, size))


def chunk_shape(N_a: int, N_t: int, dtype: torch.dtype) -> tuple[int, int]:
    """Clips and captions in a chunk of WEIGHT_BYTES: nearly square, with an aligned number of captions."""
    capacity = WEIGHT_BYTES // dtype.itemsize
    height = min(N_a, max(capacity // min(N_t + -N_t % _ALIGNMENT, WEIGHT_COLUMNS), _ALIGNMENT))
    height -= height % _ALIGNMENT if height < N_a else 0
    width = max(capacity // height // _ALIGNMENT, 1) * _ALIGNMENT
    return height, min(width, N_t + -N_t % _ALIGNMENT)


def _lse(audio: Tensor, text: Tensor, scale: Tensor, rows: Tensor, column_parts: Tensor | None) -> None:
    """Writes the log-sum-exps of a chunk of clips.

    Args:
        audio: [N, D], packed.
        text: [N_t, D] of the same dtype, packed.
        scale: float32 scalar.
        rows: written, [N] float32.
        column_parts: written unless None, [tiles of clips, N_t] float32: log-sum-exp over each tile of clips.
    """
    N, D = audio.shape
    device = Device.of(audio.device)
    launch = info_nce_launch(audio.dtype, D, device)
    row_tiles = cdiv(N, launch.rows)
    column_tiles = cdiv(len(text), launch.columns)
    span = column_span(row_tiles, column_tiles, device)
    parts = cdiv(column_tiles, span)
    row_parts = rows.new_empty(parts, N)
    lse_kernel[(row_tiles * parts,)](
        audio, text, scale, row_parts, column_parts, N, len(text), D, span, GROUP=GROUP, **launch.meta()
    )
    _merge(row_parts, rows)


def _merge(partial: Tensor, lse: Tensor) -> None:
    """Writes `lse` [N] float32, the log-sum-exp over the first axis of `partial` [parts, N] float32."""
    meta = merge_launch()
    parts, N = partial.shape
    merge_kernel[(cdiv(N, meta["SIZE"]),)](partial, lse, parts, N, **meta)


def _grad_logits(
    audio: Tensor, text: Tensor, scale: Tensor, terms: _LogitTerms, largest: Tensor, weights: Tensor, first_column: int
) -> Tensor:
    """Computes the gradients of one chunk of logits, scaled by 2^14 / largest.

    Args:
        audio: [M, D], packed.
        text: [N, D] of the same dtype, packed.
        scale: float32 scalar.
        terms: the vectors for these rows and columns.
        largest: float32 scalar, an upper bound on the gradients' magnitude.
        weights: written, [M, stride] of the dtype of the inputs; stride is a multiple of 16. Only N columns matter.
        first_column: caption of the first column.

    Returns:
        [tiles] float32: the sum over each tile of weights * (audio @ text^T).
    """
    M, D = audio.shape
    N = len(text)
    launch = info_nce_launch(audio.dtype, D, Device.of(audio.device))
    programs = cdiv(M, launch.rows) * cdiv(N, launch.columns)
    scale_parts = largest.new_empty(programs)
    grad_logits_kernel[(programs,)](
        audio, text, scale, terms.rows, terms.columns, terms.grad_rows, terms.grad_columns, terms.positive,
        terms.grad_positive, largest, weights, scale_parts, M, N, D, weights.stride(0), first_column,
        **launch.meta() | UNFUSED,
    )  # fmt: skip
    return scale_parts


def add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a @ b in float32, or total = a @ b if `first`."""
    if a.dtype == torch.float32:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
    elif not a.is_cuda:
        add_product(total, a.float(), b.float(), first)
    elif first:
        torch.mm(a, b, out_dtype=torch.float32, out=total)
    else:
        total += torch.mm(a, b, out_dtype=torch.float32)
