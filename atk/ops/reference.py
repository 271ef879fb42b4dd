"""The ops in plain PyTorch: slow, but differentiable in any floating-point dtype; all backends are tested against them.

Shapes, with the same names everywhere in atk: N_a clips, N_t captions, L_a frames, L_t tokens, D channels, L_ref
frames of a reference, H heads. Masks are boolean, True = valid. Padding contributes nothing, whatever values it holds.
Numbers such as (3.6) are equations of the thesis (see CITATION.cff).
"""

import torch
from torch import Tensor

from atk.kernels.sequences import Sequences

SMALLEST_NORM = 1e-12  # vectors with a smaller norm are set to 0


def max_mean_similarity(
    audio: Tensor,
    text: Tensor,
    audio_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    pairs: bool = False,
) -> Tensor:
    """Frame-token max-mean similarity (3.6), by an einsum that materializes all `N_a * N_t * L_a * L_t` scores.

    `sim[i, j] = mean over valid frames t of max over valid tokens l of <audio[i, t], text[j, l]>`, as `[N_a, N_t]`,
    0 for a clip without a valid frame or a caption without a valid token. With `pairs`, only i = j, as `[N]`.
    """
    if pairs:  # N problems of one clip and one caption each
        single = [
            max_mean_similarity(audio[i : i + 1], text[i : i + 1], _row(audio_mask, i), _row(text_mask, i)).view(1)
            for i in range(len(audio))
        ]
        return torch.cat(single) if single else audio.new_zeros(0)
    # audio [N_a, L_a, D], text [N_t, L_t, D]
    if audio_mask is not None:
        audio = audio.masked_fill(~audio_mask[..., None], 0)
    if text_mask is not None:
        text = text.masked_fill(~text_mask[..., None], 0)
    scores = torch.einsum("atd,bld->abtl", audio, text)  # [N_a, N_t, L_a, L_t]
    if 0 in scores.shape[2:]:
        return scores.sum((2, 3))
    best = _max_over_tokens(scores, text_mask)  # [N_a, N_t, L_a]
    if audio_mask is None:
        sim = best.mean(-1)
    else:
        frame_counts = audio_mask.sum(-1).clamp(min=1)  # [N_a]
        sim = best.masked_fill(~audio_mask[:, None], 0).sum(-1) / frame_counts[:, None]
    if text_mask is not None:
        sim = sim.masked_fill(~text_mask.any(-1), 0)
    return sim


def _row(mask: Tensor | None, i: int) -> Tensor | None:
    return None if mask is None else mask[i : i + 1]


def _max_over_tokens(scores: Tensor, text_mask: Tensor | None) -> Tensor:
    """Max over the last axis of [N_a, N_t, L_a, L_t] over valid tokens.

    If several tokens tie or all scores are -inf, the gradient goes to the first valid token.
    """
    if text_mask is None:
        return scores.max(-1).values
    mask = text_mask[None, :, None]  # [1, N_t, 1, L_t]
    index = scores.masked_fill(~mask, float("-inf")).max(-1, keepdim=True).indices
    first = mask.int().argmax(-1, keepdim=True).expand_as(index)
    # If all scores are -inf, max may pick a padded token.
    index = torch.where(mask.expand_as(scores).gather(-1, index), index, first)
    return scores.gather(-1, index).squeeze(-1)


def pad(sequences: Sequences) -> tuple[Tensor, Tensor | None]:
    """Unpack rows to `[N, L, D]` and their mask `[N, L]`, which is None if every row is valid."""
    rows, cu_seqlens, mask, length = sequences
    count, total = sequences.num_sequences, rows.shape[0]
    length = min(length, total)
    if total == count * length:  # no sequence is longer than `length`, so every one has exactly that length
        return rows.view(count, length, rows.shape[1]), None if mask is None else mask.view(count, length)
    position = cu_seqlens[:-1, None].long() + torch.arange(length, device=rows.device)  # [N, L]
    valid = position < cu_seqlens[1:, None]
    position = position.clamp(max=total - 1)
    return rows[position], valid if mask is None else valid & mask[position]


def normalize(value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Divide `value` by its L2 norm along the last axis, computed in float32 at least.

    Vectors that are masked out or have a norm below 1e-12 become 0, with zero gradient.
    """
    if mask is not None:  # NaN padding would make the gradient of the norm NaN
        value = value.masked_fill(~mask[..., None], 0)
    wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return torch.where(norm < SMALLEST_NORM, 0, wide / norm.clamp(min=SMALLEST_NORM)).to(value.dtype)


def cross_attention_difference(
    source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int,
) -> Tensor:  # fmt: skip
    """`(1 - sigmoid(Z_sim)) * source` (4.12), with all attention weights materialized; twice differentiable.

    `Z_sim = concat_h(softmax(q_h k_h^T / sqrt(D / H)) v_h) out_weight^T + out_bias` (4.11) over valid keys, with source
    and q `[N, L_a, D]`, k and v `[N, L_ref, D]`, and key_mask `[N, L_ref]`. Without a valid key, a clip stays as it is.
    """
    valid = q.new_ones(k.shape[:2], dtype=torch.bool) if key_mask is None else key_mask  # [N, L_ref]
    present = valid.any(1)[:, None, None]  # [N, 1, 1]
    q = q.masked_fill(~present, 0)
    k, v = (value.masked_fill(~valid[..., None], 0) for value in (k, v))
    q, k, v = (value.unflatten(-1, (num_heads, -1)).transpose(1, 2) for value in (q, k, v))  # [N, H, L, D / H]
    scores = q @ k.mT / q.shape[-1] ** 0.5  # [N, H, L_a, L_ref]
    attended_keys = (valid[:, None] | ~present)[:, None]  # [N, 1, 1, L_ref]; a softmax over no keys would be NaN
    weights = scores.masked_fill(~attended_keys, float("-inf")).softmax(-1)
    attended = (weights @ v).transpose(1, 2).flatten(2)  # [N, L_a, D]
    similarity = torch.nn.functional.linear(attended, out_weight, out_bias)
    return torch.where(present, torch.sigmoid(-similarity), 1) * source


def info_nce(similarity: Tensor, logit_scale: Tensor | float, reduction: str = "sum") -> Tensor:
    """Symmetric InfoNCE over a score matrix [N, N] with the pairs on the diagonal (3.3)-(3.5).

    Each direction is averaged over the batch (2.3). `reduction="sum"` adds the two; `"mean"` takes half of the sum.
    """
    logits = similarity * logit_scale
    audio_to_text = logits.logsumexp(1) - logits.diagonal()
    text_to_audio = logits.logsumexp(0) - logits.diagonal()
    loss = audio_to_text.mean() + text_to_audio.mean()
    return loss if reduction == "sum" else loss / 2


def pairwise_logsumexp(
    audio: Tensor, text: Tensor, logit_scale: Tensor, positive: Tensor | None, columns: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-sum-exps along rows and columns of the materialized logits `S = logit_scale * audio @ text^T`.

    Returns:
        `logsumexp_j S_ij` [N_a], `logsumexp_i S_ij` [N_t] (None unless `columns`), and `S[i, positive_i]` [N_a]
        (None if `positive` is None).
    """
    logits = (audio @ text.T) * logit_scale  # [N_a, N_t]
    positive_logits = None if positive is None else logits.gather(1, positive[:, None]).squeeze(1)
    return logits.logsumexp(1), logits.logsumexp(0) if columns else None, positive_logits


def sigmoid_losses(logits: Tensor, positive: Tensor | None) -> Tensor:
    """`-sum_j log sigmoid(z_ij logits_ij)` of each row of logits `[N_a, N_t]`; z and `positive` as in `opposed`."""
    return -torch.nn.functional.logsigmoid(-opposed(logits, positive)).sum(1)


def opposed(logits: Tensor, positive: Tensor | None) -> Tensor:
    """`-z_ij logits_ij` `[N_a, N_t]`, where z is 1 at the positive of a row and -1 elsewhere.

    `positive` is int64 `[N_a]`, the column of each row; -1, or None for all rows: the row has no positive.
    """
    if positive is None:
        return logits
    is_positive = positive[:, None] == torch.arange(logits.shape[1], device=logits.device)
    return torch.where(is_positive, -logits, logits)
