"""SigLIP's sigmoid loss on global vectors and on frame-token max-mean similarity: the public functions.

`atk.sigmoid_loss` and `atk.aligned_sigmoid_loss`. The autograd op behind the first is in `sigmoid_op`.
"""

import torch
from torch import Tensor

from atk.kernels.sequences import from_padded
from atk.ops import checks, reference
from atk.ops.info_nce import check_skip_below, check_vectors, choose_backend
from atk.ops.max_mean import similarity
from atk.ops.sigmoid_op import dispatch

NO_POSITIVE = -1


def sigmoid_loss(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    positive: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The sigmoid loss between N clips and their N captions (Zhai et al. 2023, "SigLIP", eq. 1).

        L = -1/N sum_ij log sigmoid(z_ij S_ij),   S = logit_scale * audio @ text.T + logit_bias

    where z is 1 for a clip and its own caption and -1 for all other pairs: every pair is judged by itself, without a
    softmax over the batch. Vectors are not normalized here: pass unit-length vectors for cosine similarity. On
    the CPU, logits of up to 256 MiB are kept for the backward; beyond that, and on a GPU, only `"reference"`
    materializes them.

    Args:
        audio: clip embeddings `[N, D]`, float32, bfloat16, float16, or float64 (not `"triton"`).
        text: caption embeddings `[N, D]`, same dtype and device; row i belongs to clip i.
        logit_scale: factor of the similarity, a number or a scalar tensor; a tensor receives a gradient. SigLIP learns
            its logarithm, starting from a factor of 10.
        logit_bias: added to the logits, a number or a scalar tensor; a tensor receives a gradient. SigLIP learns it,
            starting from -10, because nearly all pairs are negatives.
        positive: int64 `[N_a]`: the caption of clip i is row `positive[i]` of `text` `[N_t, D]`, with any N_t; -1: no
            row of `text` belongs to clip i. The loss is averaged over the N_a clips, so the losses of all blocks of
            captions add up to that of all captions. None: row i.
        backend: `"auto"`, `"triton"`, `"chunked"` (plain PyTorch, any device) or `"reference"`; see
            `atk.backends("sigmoid_loss")`.

    Returns:
        Scalar loss in float32 (float64 for float64 input). Logits of 16-bit embeddings are accumulated in float32,
        also under autocast. NaN propagates. Results are bitwise reproducible on one machine.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option is invalid; the message names the argument.
        atk.BackendError: the requested backend cannot run here.
        RuntimeError: when a second derivative is taken, except with `"reference"`.
    """
    check_vectors(audio, text, logit_scale)
    checks.scalar("logit_bias", logit_bias)
    if positive is None:
        checks.pairs(audio, text)
    else:
        checks.positive(positive, audio, text, lowest=NO_POSITIVE)
        if len(audio) == 0:
            raise ValueError("audio must hold at least one clip, got 0")
    backend = choose_backend(audio, backend, "sigmoid_loss")
    if positive is None:
        positive = torch.arange(len(audio), device=audio.device)
    return dispatch(audio, text, logit_scale, logit_bias, positive, backend).mean()


def aligned_sigmoid_loss(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    audio_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    normalize: bool = False,
    direction: str = "audio",
    skip_below: float = 0.0,
    save_index: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """The sigmoid loss over the max-mean similarity of N clips and their N captions: `atk.aligned_info_nce`'s sibling.

    `L = -1/N sum_ij log sigmoid(z_ij S_ij)` with `S = logit_scale * max_mean_similarity(audio, text) + logit_bias`
    `[N, N]`, and z as in `atk.sigmoid_loss`. Embeddings are not normalized unless `normalize=True`.

    Args:
        audio: frame embeddings `[N, L_a, D]`.
        text: token embeddings `[N, L_t, D]`, same dtype and device; caption i belongs to clip i.
        logit_scale, logit_bias: as in `atk.sigmoid_loss`.
        audio_mask, text_mask, normalize, direction, save_index, backend: as in `atk.max_mean_similarity`.
        skip_below: the backward skips pairs whose weight `sigmoid(-z_ij S_ij)`, between 0 and 1, is below this value.
            The loss and the gradients of `logit_scale` and `logit_bias` stay exact; the bounds on the error of the
            others are those of `atk.aligned_info_nce`. 0 skips nothing.

    Returns:
        Scalar loss in float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: a shape, dtype, device, mask or option is invalid; the message names the argument.
        atk.BackendError: the requested backend cannot run here.
        RuntimeError: when a second derivative is taken.
    """
    checks.padded(audio, text, audio_mask, text_mask)
    checks.pairs(audio, text)
    check_scalars(logit_scale, logit_bias)
    check_skip_below(skip_below, 1)
    clips, captions = from_padded(audio, audio_mask), from_padded(text, text_mask)
    sim = similarity(clips, captions, normalize, direction, save_index, backend, padded=True, sparse=skip_below > 0)
    positive = torch.arange(len(audio), device=audio.device)
    return losses_of_scores(sim, logit_scale, logit_bias, positive, skip_below).mean()


def losses_of_scores(
    sim: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float, positive: Tensor, skip_below: float
) -> Tensor:
    """The summed loss of each clip `[N_a]` from scores `[N_a, N_t]`; `positive` as in `atk.sigmoid_loss`.

    Scores of pairs whose weight is below `skip_below` receive no gradient.
    """
    if skip_below > 0:
        with torch.no_grad():
            weight = reference.opposed(sim * logit_scale + logit_bias, positive).sigmoid()
        sim = torch.where(weight < skip_below, sim.detach(), sim)
    return reference.sigmoid_losses(sim * logit_scale + logit_bias, positive)


def check_scalars(logit_scale: Tensor | float, logit_bias: Tensor | float) -> None:
    """`logit_scale` and `logit_bias` are scalars."""
    checks.scalar("logit_scale", logit_scale)
    checks.scalar("logit_bias", logit_bias)
