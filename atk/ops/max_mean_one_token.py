"""Max-mean similarity with captions of at most one token, in plain PyTorch: the maximum is over one score.

So the mean over a clip's frames comes first, and what is left is one product of two vectors per pair.
"""

from typing import Any

import torch
from torch import Tensor

from atk.kernels.sequences import Sequences
from atk.ops.custom_op import hooks_see_saved_tensors, watched, without_autocast
from atk.ops.max_mean_op import NO_SECOND_DERIVATIVE
from atk.ops.once_differentiable import once_differentiable

CACHED_ELEMENTS = 1 << 18  # copied at a time, unless a sequence has more: 1 MiB in float32, in the cache of a core


def one_token_score(audio: Sequences, text: Sequences, *, pairs: bool) -> Tensor:
    """`atk.ops.max_mean_op.score` for captions of at most one token: the mean of a clip's frames times the token.

    Both have rows, and the rows of each sequence are padded to the same number.
    """
    clips, has_frame = _masked_means(audio)
    captions, has_token = _masked_means(text)
    with without_autocast(clips.device.type):
        sim = (clips * captions).sum(1) if pairs else clips @ captions.T
    if not pairs and has_frame is not None:
        has_frame = has_frame[:, None]
    for valid in (has_frame, has_token):
        if valid is not None:
            sim = sim.masked_fill(~valid, 0)  # also where the other factor is NaN
    return sim


def _masked_means(sequences: Sequences) -> tuple[Tensor, Tensor | None]:
    """The mean of the valid rows of each padded sequence `[N, D]`, 0 if there is none, in float32 at least.

    With a mask, also whether each sequence has a valid row `[N]`.
    """
    rows, mask = once_differentiable(sequences.rows, NO_SECOND_DERIVATIVE), sequences.mask
    rows = rows.view(sequences.num_sequences, sequences.longest, -1)
    if mask is None:
        return _sums(rows, None) / sequences.longest, None
    mask = mask.view(rows.shape[:2])
    counts = mask.sum(1, keepdim=True)
    return _sums(rows, mask) / counts.clamp(min=1), counts[:, 0] > 0


def _sums(rows: Tensor, mask: Tensor | None) -> Tensor:
    """The sum of the valid rows `[N, L, D]` of each sequence, in float32 at least."""
    copied = mask is not None or rows.dtype.itemsize < 4
    seen = watched(rows, *([] if mask is None else [mask])) or hooks_see_saved_tensors()
    if copied and rows.is_cpu and not seen:
        return _SumsByGroup.apply(rows, mask)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return (rows if mask is None else rows.masked_fill(~mask[..., None], 0)).sum(1)


class _SumsByGroup(torch.autograd.Function):
    """`_sums` on a CPU, for rows that must be copied: a few sequences at a time, always to the same memory.

    New memory for all sequences at once can take several times as long as the sums.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, mask: Tensor | None) -> Tensor:
        ctx.shape, ctx.dtype = rows.shape, rows.dtype
        ctx.save_for_backward(mask)
        N, L, D = rows.shape
        group = min(N, max(1, CACHED_ELEMENTS // (L * D)))
        copy = rows.new_empty((group, L, D), dtype=torch.promote_types(rows.dtype, torch.float32))
        sums = copy.new_empty((N, D))
        for begin in range(0, N, group):
            part = rows[begin : begin + group]
            valid = copy[: len(part)].copy_(part)
            if mask is not None:
                valid.masked_fill_(~mask[begin : begin + group, :, None], 0)
            torch.sum(valid, 1, out=sums[begin : begin + group])
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        (mask,) = ctx.saved_tensors
        grad_rows = grad.to(ctx.dtype)[:, None].expand(ctx.shape)
        return (grad_rows if mask is None else grad_rows.masked_fill(~mask[..., None], 0)), None
