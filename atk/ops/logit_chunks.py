"""The logits of a loss on global vectors, one chunk at a time, and the matrix products with them.

Shapes: N_a clips, N_t captions, D channels; logits `S = scale * audio @ text^T` [N_a, N_t] in the dtype of `scale`,
float32 or float64. 16-bit embeddings are widened to float32 before the products, except for bfloat16 on a CPU that
multiplies it: there S is summed in float32, and the products of the backward take dS rounded to bfloat16.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from atk.kernels import cpp

CHUNK_ROWS = 512  # at least; enough for matrix products at full speed
CHUNK_ELEMENTS = 4 << 20  # 16 MiB in float32, which fits in a last-level cache

Columns = Iterator[tuple[slice, Tensor, Tensor]]


class Logits:
    """The logits S in chunks, which are visited in the same order every time.

    Args:
        audio: [N_a, D], N_a >= 1, any floating-point dtype.
        text: [N_t, D], N_t >= 1, of the same dtype.
        scale: scalar tensor, float32 (float64 for float64 inputs).
        kept: memory for all logits [N_a, N_t], or None: chunks are computed whenever they are visited.

    Attributes:
        factor: the value of `scale`.
        in_bfloat16: whether the products are those of bfloat16.
    """

    def __init__(self, audio: Tensor, text: Tensor, scale: Tensor, kept: Tensor | None):
        self.in_bfloat16 = audio.dtype == torch.bfloat16 and audio.device.type == "cpu" and cpp.multiplies_bfloat16()
        self.factor = scale.item()
        if self.factor == 0:
            self.in_bfloat16 = False  # `Gradients` divides by the scale
        dtype = torch.bfloat16 if self.in_bfloat16 else scale.dtype
        self.audio, self.text, self.scale = audio.contiguous().to(dtype), text.contiguous().to(dtype), scale
        self.kept = kept

    def chunks(self, *, write: bool) -> Iterator[tuple[slice, Columns]]:
        """Visit the chunks.

        Args:
            write: whether to compute the logits and write them to `kept`. Otherwise they are read from it.

        Yields:
            For each chunk of rows, its slice, and an iterator over chunks of columns. That one yields their slice, the
            logits, and a buffer of the same shape: the same memory, unless the logits are kept or `in_bfloat16`.
        """
        rows, columns = self.audio.shape[0], self.text.shape[0]
        height = min(rows, max(CHUNK_ROWS, CHUNK_ELEMENTS // columns))
        width = min(columns, CHUNK_ELEMENTS // height)
        buffer = self.scale.new_empty(height * width)
        unkept = torch.empty_like(buffer) if self.in_bfloat16 and self.kept is None else buffer
        for i in _slices(rows, height):
            yield i, self._columns(i, width, buffer, unkept, write or self.kept is None)

    def _columns(self, i: slice, width: int, buffer: Tensor, unkept: Tensor, compute: bool) -> Columns:
        clips, rows = self.audio[i], i.stop - i.start
        for j in _slices(self.text.shape[0], width):
            size = rows * (j.stop - j.start)
            scratch = buffer[:size].view(rows, -1)
            logits = unkept[:size].view_as(scratch) if self.kept is None else self.kept[i, j]
            if compute and self.in_bfloat16:
                cpp.bfloat16_product(clips, self.text[j], self.factor, logits)
            elif compute:
                torch.addmm(logits, clips, self.text[j].T, beta=0, alpha=self.factor, out=logits)
                if math.isnan(self.factor):  # which MKL takes for 1
                    logits.fill_(math.nan)
            yield j, logits, scratch


class Gradients:
    """Gradients of the embeddings and the scale, summed over chunks of dS.

    Attributes:
        logits: the logits whose gradient is dS.
    """

    def __init__(self, logits: Logits):
        self.logits = logits
        dtype = logits.scale.dtype
        self.audio, self.text = (torch.empty_like(rows, dtype=dtype) for rows in (logits.audio, logits.text))
        self.scale = torch.zeros((), dtype=torch.float64, device=logits.scale.device)

    def add(self, i: slice, j: slice, grad: Tensor, chunk: Tensor, product_sum: float | None = None) -> None:
        """Add the share of rows i and columns j of dS, `grad`; `chunk` holds S, unless dS has replaced it.

        `product_sum` is `sum dS * S` before dS was rounded to bfloat16; None: dS was not rounded.
        """
        audio, text = self.logits.audio[i], self.logits.text[j]
        if self.logits.in_bfloat16:
            self.scale += torch.dot(grad.flatten(), chunk.flatten()) if product_sum is None else product_sum
            grad = grad.bfloat16()
        _add_product(self.audio[i], grad, text, first=j.start == 0)
        _add_product(self.text[j], grad.T, audio, first=i.start == 0)

    def finish(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """`scale * dS @ text` and `scale * dS^T @ audio` in `dtype`, and `sum dS * (audio @ text^T)`; call it once."""
        scale = self.logits.scale
        if self.logits.in_bfloat16:
            grad_scale = self.scale / scale  # the products round dS
        else:
            rows = zip(self.audio.split(CHUNK_ROWS), self.logits.audio.split(CHUNK_ROWS), strict=True)
            dots = [torch.dot(sums.flatten(), clips.flatten()).double() for sums, clips in rows]
            grad_scale = torch.stack(dots).sum()
        return self.audio.mul_(scale).to(dtype), self.text.mul_(scale).to(dtype), grad_scale.to(scale.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """total += a @ b, or total = a @ b if `first`."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, beta=0 if first else 1, out=total)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def pairs_within(positive: Tensor, i: slice, j: slice) -> tuple[Tensor, Tensor]:
    """Row and column, within the chunk, of each positive that lies in it."""
    column = positive[i] - j.start
    row = ((column >= 0) & (column < j.stop - j.start)).nonzero().squeeze(1)
    return row, column[row]
