"""Symmetric InfoNCE on global vectors, and on frame-token max-mean similarity."""

import torch
from torch import Tensor

from atk import checks, reference
from atk.max_mean import max_mean_similarity

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
    if audio.dtype in (torch.float16, torch.bfloat16):
        audio, text = audio.float(), text.float()
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
    backend: str = "auto",
) -> Tensor:
    """Symmetric InfoNCE over the max-mean similarity of N clips and their N captions: `L_align` of thesis eq. 3.7.

    Args:
        audio: frame embeddings `[N, L_a, D]`.
        text: token embeddings `[N, L_t, D]`, same dtype and device; caption i belongs to clip i.
        logit_scale: `1 / temperature`, a number or a scalar tensor (gradients reach it).
        audio_mask, text_mask, normalize, direction, backend: as in `atk.max_mean_similarity`.
        reduction: `"sum"` of the two directions as in (3.5), or their `"mean"`.

    Returns:
        Scalar loss in float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: a shape, dtype, device, mask or option does not fit; the message names the argument.
        atk.BackendError: the backend asked for cannot run here.
    """
    sim = max_mean_similarity(
        audio, text, audio_mask, text_mask, normalize=normalize, direction=direction, backend=backend
    )
    _check_pairs(audio, text, reduction)
    return reference.info_nce(sim, logit_scale, reduction)


def _check_pairs(audio: Tensor, text: Tensor, reduction: str) -> None:
    if audio.shape[0] != text.shape[0] or audio.shape[0] == 0:
        raise ValueError(
            f"audio and text must hold the same number N >= 1 of pairs, got {audio.shape[0]} and {text.shape[0]}"
        )
    checks.one_of("reduction", reduction, REDUCTIONS)
