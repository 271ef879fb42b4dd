"""Max-mean similarity with captions of at most one token, in plain PyTorch: the maximum is over one score.

So the mean over a clip's frames comes first, and what is left is one product of two vectors per pair.
"""

from itertools import repeat

import torch
from torch import Tensor

from atk.kernels.sequences import Sequences
from atk.ops.max_mean_op import NO_SECOND_DERIVATIVE
from atk.ops.once_differentiable import once_differentiable

CACHED_ELEMENTS = 1 << 19  # the float32 copy of so many elements stays in the cache of a CPU core


def one_token_score(audio: Sequences, text: Sequences, *, pairs: bool) -> Tensor:
    """`atk.ops.max_mean_op.score` for captions of at most one token: the mean of a clip's frames times the token.

    Both have rows, and the rows of each sequence are padded to the same number.
    """
    clips, has_frame = _masked_means(audio)
    captions, has_token = _masked_means(text)
    with torch.autocast(clips.device.type, enabled=False):
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
    rows = sequences.rows
    if not torch.compiler.is_compiling():  # a compiled graph rejects second derivatives itself
        rows = once_differentiable(rows, NO_SECOND_DERIVATIVE)
    rows = rows.view(sequences.num_sequences, sequences.longest, -1)
    mask = None if sequences.mask is None else sequences.mask.view(rows.shape[:2])
    group = _sequences_at_once(rows, mask)
    masks = repeat(None) if mask is None else mask.split(group)
    sums = torch.cat([_masked_sum(*part) for part in zip(rows.split(group), masks, strict=False)])
    if mask is None:
        return sums / sequences.longest, None
    counts = mask.sum(1, keepdim=True)
    return sums / counts.clamp(min=1), counts[:, 0] > 0


def _sequences_at_once(rows: Tensor, mask: Tensor | None) -> int:
    """The number of sequences to sum at once: on a CPU, as many as can be copied within its cache; all if none are."""
    copied = mask is not None or rows.dtype.itemsize < 4
    if not copied or not rows.is_cpu or torch.compiler.is_compiling():
        return rows.shape[0]
    return max(1, CACHED_ELEMENTS // rows[0].numel())


def _masked_sum(rows: Tensor, mask: Tensor | None) -> Tensor:
    """The sum of the valid rows `[n, L, D]` of each sequence, in float32 at least."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return (rows if mask is None else rows.masked_fill(~mask[..., None], 0)).sum(1)
