"""Symmetric InfoNCE on global vectors and on frame-token max-mean similarity: the public functions.

They are `atk.info_nce`, `atk.pairwise_logsumexp`, and `atk.aligned_info_nce`. The autograd op behind the first two is
in `info_nce_op`.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from atk.kernels.sequences import from_padded
from atk.ops import checks, reference
from atk.ops.backend import BACKENDS, choose
from atk.ops.info_nce_op import dispatch
from atk.ops.max_mean import similarity

Reduction = Literal["sum", "mean"]
REDUCTIONS = get_args(Reduction)


def info_nce(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    positive: Tensor | None = None,
    reduction: str = "sum",
    backend: str = "auto",
) -> Tensor:
    """Symmetric InfoNCE between N clips and their N captions (thesis eqs. 3.3-3.5).

    `logits = logit_scale * audio @ text.T`; the loss is the cross-entropy of the diagonal along rows (audio to text)
    and along columns (text to audio), each averaged over the batch. Vectors are not normalized here: pass unit-length
    vectors for cosine similarity. On the CPU, logits of up to 256 MiB are kept for the backward; beyond that, and on a
    GPU, only `"reference"` materializes them.

    Args:
        audio: clip embeddings `[N, D]`, float32, bfloat16, float16, or float64 (not `"triton"`).
        text: caption embeddings `[N, D]`, same dtype and device; row i belongs to clip i.
        logit_scale: `1 / temperature`, a number or a scalar tensor; a tensor receives a gradient.
        positive: int64 `[N_a]`: the caption of clip i is row `positive[i]` of `text` `[N_t, D]`, with any N_t, for
            example the captions gathered from all ranks. The loss is then the audio-to-text direction only, averaged
            over the N_a clips, because no rank has complete columns. For the other direction, swap audio and text, or
            take both directions from one call of `pairwise_logsumexp`. None: row i, and both directions of the loss.
        reduction: `"sum"` of the two directions as in (3.5), or their `"mean"`, which halves each direction. Under
            either reduction, two calls with `positive`, one per direction, add up to the symmetric loss.
        backend: `"auto"`, `"triton"`, `"chunked"` (plain PyTorch, any device), or `"reference"`; see
            `atk.backends("info_nce")`.

    Returns:
        Scalar loss in float32 (float64 for float64 input). Logits of 16-bit embeddings are accumulated in float32,
        even under autocast. NaN propagates. Results are bitwise reproducible on one machine.

    Raises:
        ValueError, TypeError: a shape, dtype, device, or option is invalid; the message names the argument.
        atk.BackendError: the requested backend cannot run here.
        RuntimeError: when a second derivative is taken, except with `"reference"`.
    """
    check_vectors(audio, text, logit_scale)
    if positive is None:
        check_pairs(audio, text, reduction)
    else:
        checks.positive(positive, audio, text)
        if len(audio) == 0:
            raise ValueError("audio must hold at least one clip, got 0")
        checks.one_of("reduction", reduction, REDUCTIONS)
    backend = choose_backend(audio, backend)
    symmetric = positive is None
    if positive is None:
        positive = torch.arange(len(audio), device=audio.device)
    row_lse, column_lse, positive_logits = dispatch(audio, text, logit_scale, positive, symmetric, backend)
    assert positive_logits is not None
    losses = row_lse - positive_logits
    if column_lse is not None:
        losses = losses + (column_lse - positive_logits)
    loss = losses.mean()
    return loss if reduction == "sum" else loss / 2


def pairwise_logsumexp(
    audio: Tensor, text: Tensor, logit_scale: Tensor | float, *, columns: bool = True, backend: str = "auto"
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of every row and column of `S = logit_scale * audio @ text.T`, without materializing S.

    `rows[i] = logsumexp_j S[i, j]` and `columns[j] = logsumexp_i S[i, j]`. Use it to compute a contrastive loss in
    blocks of clips: the log-sum-exp of the blocks' `columns` is `columns` of the full matrix.

    Args:
        audio: clip embeddings `[N_a, D]`, float32, bfloat16, float16, or float64 (not `"triton"`).
        text: caption embeddings `[N_t, D]`, same dtype and device.
        logit_scale: `1 / temperature`, a number or a scalar tensor; a tensor receives a gradient.
        columns: whether to compute `columns`; without it, the pass is cheaper.
        backend: as in `atk.info_nce`.

    Returns:
        `rows` `[N_a]` and `columns` `[N_t]` (None if `columns=False`) in float32 (float64 for float64 input), with
        gradients to all three inputs; -inf where the other input is empty.

    Raises:
        ValueError, TypeError: a shape, dtype, device, or option is invalid; the message names the argument.
        atk.BackendError: the requested backend cannot run here.
        RuntimeError: when a second derivative is taken, except with `"reference"`.
    """
    check_vectors(audio, text, logit_scale)
    row_lse, column_lse, _ = dispatch(audio, text, logit_scale, None, columns, choose_backend(audio, backend))
    return row_lse, column_lse


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

    `logits = logit_scale * max_mean_similarity(audio, text)` `[N, N]`; the loss is the cross-entropy of the diagonal
    along rows and along columns, each averaged over the batch. Embeddings are not normalized unless `normalize=True`.

    Args:
        audio: frame embeddings `[N, L_a, D]`.
        text: token embeddings `[N, L_t, D]`, same dtype and device; caption i belongs to clip i.
        logit_scale: `1 / temperature`, a number or a scalar tensor; a tensor receives a gradient.
        audio_mask, text_mask, normalize, direction, save_index, backend: as in `atk.max_mean_similarity`.
        reduction: `"sum"` of the two directions as in (3.5), or their `"mean"`.
        skip_below: the backward skips pairs whose weight `|P_ij + Q_ij - 2 [i = j]|` is below this value, where P and
            Q are the softmax of the logits along rows and columns. The loss and the gradient of `logit_scale` stay
            exact. For unit-length embeddings and `direction="audio"`, the L2 error of the gradient is at most
            `skip_below * logit_scale / n_i` for each frame of clip i (n_i valid frames) and at most
            `skip_below * logit_scale` summed over the tokens of a caption. For `"text"`, frames and tokens swap roles;
            for `"both"`, each bound is the average of the two. `reduction="mean"` halves all bounds. 0 skips nothing.

    Returns:
        Scalar loss in float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: a shape, dtype, device, mask, or option is invalid; the message names the argument.
        atk.BackendError: the requested backend cannot run here.
        RuntimeError: when a second derivative is taken.
    """
    checks.padded(audio, text, audio_mask, text_mask)
    check_pairs(audio, text, reduction)
    check_skip_below(skip_below)
    clips, captions = from_padded(audio, audio_mask), from_padded(text, text_mask)
    sim = similarity(clips, captions, normalize, direction, save_index, backend, padded=True, sparse=skip_below > 0)
    if skip_below > 0:
        sim = torch.where(logit_gradient_magnitude(sim, logit_scale) < skip_below, sim.detach(), sim)
    return reference.info_nce(sim, logit_scale, reduction)


@torch.no_grad()
def logit_gradient_magnitude(
    sim: Tensor, logit_scale: Tensor | float, columns: Tensor | None = None, offset: int = 0
) -> Tensor:
    """`|P + Q - 2 I|`: magnitude of the gradient of N times the summed loss with respect to the logits.

    P and Q are the softmax of the logits along rows and columns.

    Args:
        sim: scores of some clips against all N captions.
        logit_scale: factor from scores to logits.
        columns: log-sum-exp of every column of logits `[N]` over all N clips; None: `sim` has all clips.
        offset: index of the first clip's caption.

    Returns:
        The magnitudes, in the shape of `sim`.
    """
    logits = sim * logit_scale
    gradient = logits.softmax(1) + (logits.softmax(0) if columns is None else (logits - columns).exp())
    gradient.diagonal(offset).sub_(2)
    return gradient.abs()


def choose_backend(audio: Tensor, backend: str, op: str = "info_nce") -> str:
    """The backend that runs `op`, a loss on global vectors, here."""
    checks.one_of("backend", backend, ("auto", *BACKENDS[op]))
    return choose(backend, audio.device, audio.dtype, op)


def check_vectors(audio: Tensor, text: Tensor, logit_scale: Tensor | float) -> None:
    """Check that global vectors `[N_a, D]`, `[N_t, D]` agree in width, dtype, and device, and the scale is a scalar."""
    checks.embeddings("audio", audio, "N, D")
    checks.embeddings("text", text, "N, D", like=("audio", audio))
    checks.scalar("logit_scale", logit_scale)


def check_pairs(audio: Tensor, text: Tensor, reduction: str, *, allow_empty: bool = False) -> None:
    """Check that there are as many clips as captions, not 0 unless `allow_empty`, and that `reduction` is known."""
    checks.pairs(audio, text, allow_empty=allow_empty)
    checks.one_of("reduction", reduction, REDUCTIONS)


def check_skip_below(skip_below: float, largest: int = 2) -> None:
    """Check that `skip_below` is at least 0 and below `largest`, the largest possible weight of a pair."""
    if not 0 <= skip_below < largest:
        raise ValueError(f"skip_below must be at least 0 and below {largest}, the largest weight, got {skip_below}")
