"""Backend `"chunked"` of the sigmoid loss: plain PyTorch on any device, bitwise reproducible.

Shapes: N_a clips, N_t captions, D channels. Logits `S = scale * audio @ text^T + bias`, in float32 at least, are
processed in chunks [n, m] (`logit_chunks.py`), and can be kept for the backward, without the bias. One term per logit:
`softplus(S)`, or `softplus(-S)` for a positive, whose sign is changed in place.
"""

import torch
from torch import Tensor

from atk.ops.logit_chunks import Gradients, Logits, pairs_within

# softplus(x) is x beyond this: e^-40 is below the rounding of float64, and e^40 within the range of float32.
_LINEAR_FROM = 40


def forward(
    audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positive: Tensor | None, kept: Tensor | None = None
) -> Tensor:
    """losses_i = sum_j softplus(S_ij), with -S_ij instead for j = positive_i.

    Args:
        audio, text, scale, kept: as for `Logits`; `kept` is overwritten with `S - bias`.
        bias: scalar tensor of the dtype of `scale`.
        positive: [N_a] int64, the caption of each clip, -1 for none; or None: no clip has one.

    Returns:
        [N_a] in the dtype of `scale`.
    """
    losses = scale.new_zeros(len(audio))
    for i, chunks in Logits(audio, text, scale, kept).chunks(write=True):
        for j, products, logits in chunks:
            torch.add(products, bias, out=logits)
            _negate_positives(logits, positive, i, j)
            torch.ops.aten.softplus.out(logits, 1, _LINEAR_FROM, out=logits)
            losses[i] += logits.sum(1)
    return losses


def backward(
    audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positive: Tensor | None, grad_losses: Tensor,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of audio, text, scale and bias, from kept or recomputed logits.

        dS_ij = grad_losses_i sigmoid(S_ij), or -grad_losses_i sigmoid(-S_ij) for j = positive_i
        grad_audio = scale * dS @ text, grad_text = scale * dS^T @ audio, grad_scale = sum dS * (audio @ text^T),
        grad_bias = sum dS

    Args:
        audio, text, scale, bias, positive: as passed to `forward`.
        grad_losses: [N_a], in the dtype of `scale`.
        kept: what `forward` kept; None: the logits are recomputed.

    Returns:
        [N_a, D] and [N_t, D] in the dtype of the inputs, accumulated in the dtype of `scale`, and two scalars.
    """
    gradients = Gradients(Logits(audio, text, scale, kept))
    grad_bias = torch.zeros((), dtype=torch.float64, device=audio.device)
    for i, chunks in gradients.logits.chunks(write=False):
        for j, products, logits in chunks:
            torch.add(products, bias, out=logits)
            pairs = _negate_positives(logits, positive, i, j)
            weights = logits.sigmoid_().mul_(grad_losses[i, None])
            if pairs is not None:
                weights[pairs] = -weights[pairs]
            gradients.add(i, j, weights, products)
            grad_bias += weights.sum()
    return *gradients.finish(audio.dtype), grad_bias.to(scale.dtype)


def _negate_positives(logits: Tensor, positive: Tensor | None, i: slice, j: slice) -> tuple[Tensor, Tensor] | None:
    """Change the sign of the positives in a chunk of logits; returns their rows and columns within it."""
    if positive is None:
        return None
    pairs = pairs_within(positive, i, j)
    logits[pairs] = -logits[pairs]
    return pairs
