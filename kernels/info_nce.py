"""Streaming InfoNCE (3.3)-(3.5) in Triton: what launches the kernels. Results repeat bit for bit, no host waits.

Shapes: N_a clips, N_t captions, D channels, logits S = scale * audio @ text^T. Memory beyond inputs and results:
64 MiB of workspace and float32 sums of the gradients, linear in N_a and N_t.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from atk.kernels.info_nce_kernels import grad_logits_kernel, lse_kernel, merge_kernel
from atk.kernels.launch import (
    Device,
    column_span,
    info_nce_launch,
    merge_launch,
    on_device,
    packed_width,
    unavailable,
)

__all__ = ["backward", "forward", "unavailable"]

PART_BYTES = 32 * 2**20  # of partial log-sum-exps of columns at a time
WEIGHT_BYTES = 32 * 2**20  # of gradients of logits at a time: they stay in the L2 cache of an H200
WEIGHT_COLUMNS = 4096  # square chunks read and write the fewest sums of gradients
_GROUP = 16  # tiles of clips
_ALIGNMENT = 64  # elements of a row of weights: what matrix instructions load at once


def forward(audio: Tensor, text: Tensor, scale: Tensor, columns: bool = True) -> tuple[Tensor, Tensor | None]:
    """rows_i = logsumexp_j(S_ij) and columns_j = logsumexp_i(S_ij), S = scale * audio @ text^T, in one pass.

    Args:
        audio: [N_a, D], contiguous, float32, bfloat16 or float16; products add up in float32.
        text: [N_t, D], contiguous, of the same dtype.
        scale: a float32 scalar tensor on the same device.
        columns: whether to return the second.

    Returns:
        rows [N_a] and columns [N_t] (None when not wanted), float32; -inf where the other side is empty.
    """
    with on_device(audio.device):
        N_a, N_t = len(audio), len(text)
        rows = torch.full((N_a,), -torch.inf, device=audio.device)
        column_lse = torch.full((N_t,), -torch.inf, device=audio.device) if columns else None
        if N_a == 0 or N_t == 0:
            return rows, column_lse
        audio, text = _packed(audio), _packed(text)
        launch = info_nce_launch(audio.dtype, audio.shape[1], Device.of(audio.device))
        tiles = max(1, PART_BYTES // (4 * N_t)) if columns else triton.cdiv(N_a, launch.rows)
        for number, chunk in enumerate(_chunks(N_a, tiles * launch.rows)):
            parts = _lse(audio[chunk], text, scale, columns, rows[chunk])
            if columns:
                # The chunks before count as one more part.
                _merge(parts if number == 0 else torch.cat((parts, column_lse[None])), column_lse)
    return rows, column_lse


def backward(
    audio: Tensor, text: Tensor, scale: Tensor, rows: Tensor, columns: Tensor | None, grad_rows: Tensor,
    grad_columns: Tensor | None, positive: Tensor | None = None, grad_positive: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of audio, text and scale, from logits computed again.

        dS_ij = grad_rows_i e^(S_ij - rows_i) + grad_columns_j e^(S_ij - columns_j) + [j = positive_i] grad_positive_i
        grad_audio = scale * dS @ text, grad_text = scale * dS^T @ audio, grad_scale = sum dS * (audio @ text^T)

    In half precision dS is rounded, relative to itself, before the products. A positive near 1 in both softmaxes has a
    dS near 0, so its three terms are added here, in float32, rather than by the caller after the rounding.

    Args:
        audio, text, scale: as handed to `forward`.
        rows, columns: as `forward` returned them; `columns` and `grad_columns` None: rows only.
        grad_rows, grad_columns: [N_a] and [N_t] float32.
        positive, grad_positive: [N_a] int64 caption of each clip and [N_a] float32 gradient of its logit; None: none.

    Returns:
        grad_audio [N_a, D] and grad_text [N_t, D] of the inputs' dtype, grad_scale a float32 scalar.
    """
    with on_device(audio.device):
        if len(audio) == 0 or len(text) == 0:
            return torch.zeros_like(audio), torch.zeros_like(text), torch.zeros_like(scale, dtype=torch.float32)
        sides = rows, columns, grad_rows, grad_columns, positive, grad_positive
        # The gradient of a mean arrives as one number expanded.
        sides = tuple(None if side is None else side.contiguous() for side in sides)
        grads = [grad for grad in (grad_rows, grad_columns, grad_positive) if grad is not None]
        # No logit's gradient is larger; no gradient at all is no division by 0.
        largest = sum(torch.linalg.vector_norm(grad, torch.inf) for grad in grads).clamp(min=1e-30)
        return _backward(audio, text, scale, sides, largest)


def _backward(audio: Tensor, text: Tensor, scale: Tensor, sides: tuple, largest: Tensor):
    """What `backward` returns; `sides` are its arguments from `rows` on, `largest` a bound on |dS|."""
    rows, columns, grad_rows, grad_columns, positive, grad_positive = sides
    D, a, t = audio.shape[1], _packed(audio), _packed(text)
    grad_audio, grad_text = torch.empty_like(audio), torch.empty_like(text)
    unit = largest / 2**14  # of the weights
    factor = unit * scale
    height, width = _chunk_sides(len(a), len(t), a.dtype)
    weights = a.new_empty(height, width)
    text_sum = a.new_empty(t.shape, dtype=torch.float32)
    scale_parts = []
    for i in _chunks(len(a), height):
        audio_sum = a.new_empty(a[i].shape, dtype=torch.float32)
        for j in _chunks(len(t), width):
            w = weights[: len(a[i]), : len(t[j])]
            vectors = (_part(rows, i), _part(columns, j), _part(grad_rows, i), _part(grad_columns, j))
            positives = _part(positive, i), _part(grad_positive, i)
            scale_parts.append(_grad_logits(a[i], t[j], scale, (*vectors, *positives), largest, w, j.start))
            _add_product(audio_sum, w, t[j], first=j.start == 0)
            _add_product(text_sum[j], w.T, a[i], first=i.start == 0)
        torch.mul(audio_sum[:, :D], factor, out=grad_audio[i])
    torch.mul(text_sum[:, :D], factor, out=grad_text)
    return grad_audio, grad_text, torch.cat(scale_parts).sum() * unit


def _packed(rows: Tensor) -> Tensor:
    """`rows` with zeros behind, so that tiles of channels are whole and aligned; products do not change."""
    missing = packed_width(rows.shape[1]) - rows.shape[1]
    return F.pad(rows, (0, missing)) if missing else rows


def _chunks(N: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, N)) for start in range(0, N, size))


def _part(vector: Tensor | None, chunk: slice) -> Tensor | None:
    return None if vector is None else vector[chunk]


def _chunk_sides(N_a: int, N_t: int, dtype: torch.dtype) -> tuple[int, int]:
    """Clips and captions of a chunk of WEIGHT_BYTES, near square, the captions a multiple of the alignment."""
    room = WEIGHT_BYTES // dtype.itemsize
    height = min(N_a, max(room // min(N_t + -N_t % _ALIGNMENT, WEIGHT_COLUMNS), _ALIGNMENT))
    height -= height % _ALIGNMENT if height < N_a else 0
    width = max(room // height // _ALIGNMENT, 1) * _ALIGNMENT
    return height, min(width, N_t + -N_t % _ALIGNMENT)


def _lse(audio: Tensor, text: Tensor, scale: Tensor, columns: bool, rows: Tensor) -> Tensor | None:
    """Writes `rows`; returns the log-sum-exps of the columns, one row for each tile of clips."""
    (N_a, D), N_t, device = audio.shape, len(text), Device.of(audio.device)
    launch = info_nce_launch(audio.dtype, D, device)
    row_tiles, column_tiles = triton.cdiv(N_a, launch.rows), triton.cdiv(N_t, launch.columns)
    span = column_span(row_tiles, column_tiles, device)
    parts = triton.cdiv(column_tiles, span)
    row_parts = rows.new_empty(parts, N_a)
    column_parts = rows.new_empty(row_tiles, N_t) if columns else None
    lse_kernel[(row_tiles * parts,)](
        audio, text, scale, row_parts, column_parts, N_a, N_t, D, span, GROUP=_GROUP, **launch.meta()
    )
    _merge(row_parts, rows)
    return column_parts


def _merge(partial: Tensor, lse: Tensor) -> None:
    """Writes the log-sum-exp over the first axis of `partial`."""
    meta = merge_launch()
    merge_kernel[(triton.cdiv(len(lse), meta["SIZE"]),)](partial, lse, *partial.shape, **meta)


def _grad_logits(audio, text, scale, vectors, largest, weights, first_column) -> Tensor:
    """Writes the weights of one chunk; returns their products with the logits over `scale`, one sum a tile."""
    (N_a, D), N_t = audio.shape, len(text)
    launch = info_nce_launch(audio.dtype, D, Device.of(audio.device))
    programs = triton.cdiv(N_a, launch.rows) * triton.cdiv(N_t, launch.columns)
    scale_parts = largest.new_empty(programs)
    grad_logits_kernel[(programs,)](
        audio, text, scale, *vectors, largest, weights, scale_parts, N_a, N_t, D, weights.stride(0), first_column,
        **launch.meta(),
    )  # fmt: skip
    return scale_parts


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a @ b in float32, or total = a @ b where `first`."""
    if a.dtype == torch.float32:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
    elif not a.is_cuda:
        _add_product(total, a.float(), b.float(), first)
    elif first:
        torch.mm(a, b, out_dtype=torch.float32, out=total)
    else:
        total += torch.mm(a, b, out_dtype=torch.float32)
