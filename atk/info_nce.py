"""Symmetric InfoNCE on global vectors, and on frame-token max-mean similarity."""

import torch
from torch import Tensor

from atk import checks, reference
from atk.max_mean import similarity
from atk.sequences import from_padded

REDUCTIONS = ("sum", "mean")


def info_nce(
    audio: Tensor, text: Tensor, logit_scale: Tensor | float, *, reduction: str = "sum", backend: str = "auto"
) -> Tensor:
    """Symmetric InfoNCE between N clips and their N captions (thesis eqs. 3.3-3.5).

    `logits = logit_scale * audio @ text.T`; cross-entropy of the diagonal along rows (audio to text) and along columns
    (text to audio), each averaged over the batch. Vectors are taken as given: pass unit-length ones for the cosine.

    Args:
        audio: clip embeddings `[N, D]`.
        text: caption embeddings `[N, D]`, same dtype and device; row i belongs to clip i.
        logit_scale: `1 / temperature`, a number or a scalar tensor (gradients reach it).
        reduction: `"sum"` of the two directions as in (3.5), or their `"mean"`.
        backend: `"auto"` or `"reference"`; this loss has no fused backend yet.

    Returns:
        Scalar loss in float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: a shape, dtype, device or option does not fit; the message names the argument.
    """
    checks.embeddings("audio", audio, "N, D")
    checks.embeddings("text", text, "N, D", like=("audio", audio))
    _check_pairs(audio, text, reduction)
    checks.one_of("backend", backend, ("auto", "reference"))
    audio, text = (
        value.float() if value.dtype in (torch.float16, torch.bfloat16) else value for value in (audio, text)
    )
    with torch.autocast(audio.device.type, enabled=False):
        return reference.info_nce(audio @ text.T, logit_scale, reduction)


def aligned_info_nce(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    audio_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    reduction: str = "sum",
    normalize: bool = False,
    direction: str = "audio",
    skip_below: float = 0.0,
    save_index: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """Symmetric InfoNCE over the max-mean similarity of N clips and their N captions: `L_align` of thesis eq. 3.7.

    Args:
        audio: frame embeddings `[N, L_a, D]`.
        text: token embeddings `[N, L_t, D]`, same dtype and device; caption i belongs to clip i.
        logit_scale: `1 / temperature`, a number or a scalar tensor (gradients reach it).
        audio_mask, text_mask, normalize, direction, save_index, backend: as in `atk.max_mean_similarity`.
        reduction: `"sum"` of the two directions as in (3.5), or their `"mean"`.
        skip_below: the backward leaves out pairs whose weight `|P_ij + Q_ij - 2 [i = j]|` is below this, with P and Q
            the softmax of the logits along rows and along columns. The loss and the gradient of `logit_scale` stay
            exact. With unit-length embeddings and `direction="audio"` the gradient of a frame of clip i is off by at
            most `skip_below * logit_scale / n_i` (n_i valid frames) and those of a caption's tokens by at most
            `skip_below * logit_scale` together, in L2 norm; frames and tokens change places for `"text"`, and half of
            each adds up for `"both"`. Half of all that for the mean. 0 leaves nothing out.

    Returns:
        Scalar loss in float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: a shape, dtype, device, mask or option does not fit; the message names the argument.
        atk.BackendError: the backend asked for cannot run here.
    """
    checks.padded(audio, text, audio_mask, text_mask)
    _check_pairs(audio, text, reduction)
    if not 0 <= skip_below < 2:
        raise ValueError(f"skip_below must be at least 0 and below 2, the largest weight, got {skip_below}")
    sides = from_padded(audio, audio_mask), from_padded(text, text_mask)
    sim = similarity(*sides, normalize, direction, save_index, backend, sparse=skip_below > 0)
    if skip_below > 0:
        sim = torch.where(_weights(sim.detach(), logit_scale) < skip_below, sim.detach(), sim)
    return reference.info_nce(sim, logit_scale, reduction)


@torch.no_grad()
def _weights(sim: Tensor, logit_scale: Tensor | float) -> Tensor:
    """`|P + Q - 2 I|` [N, N]: the gradient of N times the summed loss with respect to the logits, without its sign."""
    logits = sim * logit_scale
    return (logits.softmax(1) + logits.softmax(0) - 2 * torch.eye(len(sim), device=sim.device)).abs()


def _check_pairs(audio: Tensor, text: Tensor, reduction: str) -> None:
    checks.same_count(audio, text)
    if audio.shape[0] == 0:
        raise ValueError("audio and text must hold at least one pair, got 0 and 0")
    checks.one_of("reduction", reduction, REDUCTIONS)
