"""Symmetric InfoNCE on global vectors, and on frame-token max-mean similarity."""

import torch
from torch import Tensor

from atk.kernels.sequences import from_padded
from atk.ops import checks, reference
from atk.ops.backend import OPS, choose
from atk.ops.info_nce_op import dispatch
from atk.ops.max_mean import similarity

BACKENDS = OPS["info_nce"]
REDUCTIONS = ("sum", "mean")


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

    `logits = logit_scale * audio @ text.T`; cross-entropy of the diagonal along rows (audio to text) and along columns
    (text to audio), each averaged over the batch. Vectors are taken as given: pass unit-length ones for the cosine. No
    backend but `"reference"` ever holds the logits, in the forward or the backward.

    Args:
        audio: clip embeddings `[N, D]`, float32, bfloat16, float16, or float64 (not `"triton"`).
        text: caption embeddings `[N, D]`, same dtype and device; row i belongs to clip i.
        logit_scale: `1 / temperature`, a number or a scalar tensor (gradients reach it).
        positive: int64 `[N_a]`: clip i belongs to row `positive[i]` of `text`, `[N_t, D]` with any N_t, such as the
            captions gathered from all ranks. Then the loss is that of audio to text alone, averaged over the N_a
            clips: columns are complete on no rank. Exchange audio and text for the other direction, or take both from
            one `pairwise_logsumexp`. None: row i, and both directions.
        reduction: `"sum"` of the two directions as in (3.5), or their `"mean"`, which halves each; so the two calls
            with `positive` add up to the symmetric loss under either.
        backend: `"auto"`, `"triton"`, `"chunked"` (plain PyTorch, any device) or `"reference"`; see
            `atk.backends("info_nce")`.

    Returns:
        Scalar loss in float32 (float64 for float64 input). Logits are accumulated in float32 from 16-bit embeddings,
        under autocast too. NaN propagates. The same bits run after run on one machine.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option does not fit; the message names the argument.
        atk.BackendError: the backend asked for cannot run here.
        RuntimeError: when a second derivative is taken, except with `"reference"`.
    """
    check_vectors(audio, text, logit_scale)
    if positive is None:
        _check_pairs(audio, text, reduction)
    else:
        checks.positive(positive, audio, text)
        if len(audio) == 0:
            raise ValueError("audio must hold at least one clip, got 0")
        checks.one_of("reduction", reduction, REDUCTIONS)
    both = positive is None
    if both:
        positive = torch.arange(len(audio), device=audio.device)
    backend = choose_backend(audio, backend)
    rows, columns, paired = dispatch(audio, text, logit_scale, positive, both, backend)
    loss = (rows - paired).mean()
    if both:
        loss = loss + (columns - paired).mean()
    return loss if reduction == "sum" else loss / 2


def pairwise_logsumexp(
    audio: Tensor, text: Tensor, logit_scale: Tensor | float, *, columns: bool = True, backend: str = "auto"
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of every row and column of `S = logit_scale * audio @ text.T`, which is never held.

    `rows[i] = logsumexp_j S[i, j]` and `columns[j] = logsumexp_i S[i, j]`: what a contrastive loss over blocks of a
    larger problem is made of, where the log-sum-exp of the blocks' columns is the whole's.

    Args:
        audio: clip embeddings `[N_a, D]`, float32, bfloat16, float16, or float64 (not `"triton"`).
        text: caption embeddings `[N_t, D]`, same dtype and device.
        logit_scale: `1 / temperature`, a number or a scalar tensor (gradients reach it).
        columns: whether columns are wanted; without them the pass is cheaper.
        backend: as in `atk.info_nce`.

    Returns:
        `rows` `[N_a]` and `columns` `[N_t]`, or None when not wanted, in float32 (float64 for float64 input), with
        gradients to all three inputs. -inf over an empty side.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option does not fit; the message names the argument.
        atk.BackendError: the backend asked for cannot run here.
        RuntimeError: when a second derivative is taken, except with `"reference"`.
    """
    check_vectors(audio, text, logit_scale)
    return dispatch(audio, text, logit_scale, None, columns, choose_backend(audio, backend))[:2]


def check_vectors(audio: Tensor, text: Tensor, logit_scale: Tensor | float) -> None:
    """Global vectors `[N_a, D]` and `[N_t, D]` of one kind, and a scale for their products."""
    checks.embeddings("audio", audio, "N, D")
    checks.embeddings("text", text, "N, D", like=("audio", audio))
    checks.scalar("logit_scale", logit_scale)


def choose_backend(audio: Tensor, backend: str) -> str:
    """The backend of InfoNCE on global vectors that `backend` stands for, here."""
    checks.one_of("backend", backend, ("auto", *BACKENDS))
    return choose(backend, audio.device, audio.dtype, among=BACKENDS)


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

    `logits = logit_scale * max_mean_similarity(audio, text)` `[N, N]`; cross-entropy of the diagonal along rows and
    along columns, each averaged over the batch. Embeddings are taken as given unless `normalize=True`.

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
        RuntimeError: when a second derivative is taken.
    """
    checks.padded(audio, text, audio_mask, text_mask)
    _check_pairs(audio, text, reduction)
    check_skip_below(skip_below)
    sides = from_padded(audio, audio_mask), from_padded(text, text_mask)
    sim = similarity(*sides, normalize, direction, save_index, backend, sparse=skip_below > 0)
    if skip_below > 0:
        sim = torch.where(pair_weights(sim.detach(), logit_scale) < skip_below, sim.detach(), sim)
    return reference.info_nce(sim, logit_scale, reduction)


@torch.no_grad()
def pair_weights(sim: Tensor, logit_scale: Tensor | float) -> Tensor:
    """`|P + Q - 2 I|` [N, N]: the gradient of N times the summed loss with respect to the logits, without its sign."""
    logits = sim * logit_scale
    return (logits.softmax(1) + logits.softmax(0) - 2 * torch.eye(len(sim), device=sim.device)).abs()


def check_skip_below(skip_below: float) -> None:
    """`skip_below` is below the largest weight a pair can have."""
    if not 0 <= skip_below < 2:
        raise ValueError(f"skip_below must be at least 0 and below 2, the largest weight, got {skip_below}")


def _check_pairs(audio: Tensor, text: Tensor, reduction: str) -> None:
    checks.same_count(audio, text)
    if audio.shape[0] == 0:
        raise ValueError("audio and text must hold at least one pair, got 0 and 0")
    checks.one_of("reduction", reduction, REDUCTIONS)
