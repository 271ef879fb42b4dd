"""Contrastive losses over the pairs of all ranks. Captions are exchanged; frames stay local (docs/distributed.md).

K ranks of `torch.distributed`; rank r holds N_r of the N pairs. Each loss returns this rank's share: the shares of all
ranks add up to the loss of the whole batch, and so do the gradients of replicated parameters, including the
temperature. If gradients are averaged over ranks (DDP, FSDP), multiply the share by `ddp_factor()` before `backward`.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from atk.distributed.collectives import (
    Gather,
    Layout,
    LogSumExp,
    exchange_layout,
    gather_rows,
    join_graph,
    world_size,
)
from atk.distributed.exchange import caption_layout, cu_seqlens_of, only_local, similarity_to_all
from atk.distributed.ring import ring
from atk.ops import checks
from atk.ops.info_nce import (
    REDUCTIONS,
    check_pairs,
    check_skip_below,
    check_vectors,
    choose_backend,
    logit_gradient_magnitude,
)
from atk.ops.info_nce import aligned_info_nce as local_aligned_info_nce
from atk.ops.info_nce import info_nce as local_info_nce
from atk.ops.info_nce_op import dispatch


def ddp_factor(group: "dist.ProcessGroup | None" = None) -> int:
    """The number of ranks (1 without a process group): multiply shares by it if gradients are averaged over ranks."""
    return world_size(group)


@torch.no_grad()
def total(share: Tensor, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Sum of the shares of all ranks, without a gradient: the loss of the whole batch, for logging."""
    value = share.detach().clone()
    if world_size(group) > 1:
        dist.all_reduce(value, group=group)
    return value


def gather(rows: Tensor, group: "dist.ProcessGroup | None" = None) -> tuple[Tensor, slice]:
    """The rows of all ranks in rank order, with a gradient.

    The gradient of a row is the sum of its gradients on all ranks, accumulated in float32 at least, in rank order.

    Args:
        rows: `[N_r, D]` with any N_r, including 0; float32, bfloat16, float16, or float64.
        group: the ranks; None: all. Without an initialized process group, there is one rank.

    Returns:
        `[N, D]`, and the slice of this rank's rows.

    Raises:
        ValueError, TypeError: `rows` has the wrong shape or dtype, or D or the dtype differs between ranks (raised on
            every rank).
        RuntimeError: when a second derivative is taken.
    """
    checks.embeddings("rows", rows, "N, D")
    if world_size(group) == 1:
        return rows, slice(0, len(rows))
    layout = exchange_layout("rows", rows, len(rows), 1, False, group)
    return Gather.apply(join_graph(rows, layout.rows_differentiable), layout.rows, group), layout.local


def gather_packed(
    text: Tensor, cu_seqlens_text: Tensor, group: "dist.ProcessGroup | None" = None
) -> tuple[Tensor, Tensor, slice]:
    """`gather` for packed captions of unequal length, in the format of `atk.max_mean_similarity_varlen`.

    Args:
        text: token embeddings `[T_r, D]`, the captions of this rank concatenated.
        cu_seqlens_text: int32 `[N_r + 1]`, from 0 to T_r.
        group: as in `gather`.

    Returns:
        `[T, D]` and `[N + 1]` for all ranks, and the slice of this rank's captions among all N.

    Raises:
        ValueError, TypeError, RuntimeError: as in `gather`, or `cu_seqlens_text` does not match `text`.
    """
    checks.embeddings("text", text, "T, D")
    checks.cu_seqlens("cu_seqlens_text", cu_seqlens_text, "text", text, None)
    lengths = cu_seqlens_text.diff()
    if world_size(group) == 1:
        return text, cu_seqlens_text, slice(0, len(lengths))
    layout = exchange_layout("text", text, len(lengths), 0, False, group)
    rows = Gather.apply(join_graph(text, layout.rows_differentiable), layout.rows, group)
    return rows, cu_seqlens_of(gather_rows(lengths, layout.items, group)), layout.local


def info_nce(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    gather: str | None = "all",
    reduction: str = "sum",
    backend: str = "auto",
    group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """This rank's share of `atk.info_nce` over the pairs of all ranks.

        share_r = 1/N sum_{i of rank r} [(logsumexp_j S_ij - S_ii) + (logsumexp_j S_ji - S_ii)],   j over all N

    Args:
        audio: clip embeddings `[N_r, D]` of this rank; N_r may differ between ranks and may be 0.
        text: caption embeddings `[N_r, D]`, same dtype and device; row i belongs to clip i.
        logit_scale: as in `atk.info_nce`, with the same value on all ranks.
        gather: `"all"` gathers all captions on every rank. `"ring"` passes blocks of captions around a ring: a rank
            holds two at a time and recomputes the logits in the backward. None uses only the pairs of this rank.
        reduction, backend: as in `atk.info_nce`.
        group: the ranks; None: all. With one rank, or no process group, this is `atk.info_nce`.

    Returns:
        Scalar in float32 (float64 for float64 input). The share of a rank without pairs is 0; that rank must still
        call `backward`, because the backward communicates.

    Raises:
        ValueError, TypeError: as in `atk.info_nce`, or arguments differ between ranks, or no rank has a pair.
        atk.BackendError, RuntimeError: as in `atk.info_nce`.
    """
    if only_local(gather, group):
        return local_info_nce(audio, text, logit_scale, reduction=reduction, backend=backend)
    check_vectors(audio, text, logit_scale)
    check_pairs(audio, text, reduction, allow_empty=True)
    backend = choose_backend(audio, backend)
    layout = caption_layout(text, len(text), 1, (audio, logit_scale), group)
    local_index = torch.arange(len(audio), device=audio.device)
    if gather == "all":
        text = Gather.apply(join_graph(text, layout.rows_differentiable), layout.rows, group)
        positive = local_index + layout.local.start
        row_lse, column_lse, positive_logits = dispatch(audio, text, logit_scale, positive, True, backend)
        assert column_lse is not None and positive_logits is not None
        return _share(row_lse, column_lse, positive_logits, layout, reduction, group)

    def score(source: int, block: Tensor, audio: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        positive = local_index if source == layout.rank else None
        return tuple(x for x in dispatch(audio, block, scale, positive, True, backend) if x is not None)

    scale = torch.as_tensor(logit_scale, dtype=torch.float64)  # dispatch casts it to the dtype it needs
    blocks = ring(score, join_graph(text, layout.differentiable), (audio, scale), layout.rows, group)
    rows = torch.stack([block[0] for block in blocks]).logsumexp(0)
    columns = torch.cat([block[1] for block in blocks])
    return _share(rows, columns, blocks[layout.rank][2], layout, reduction, group)


def aligned_info_nce(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    audio_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    gather: str | None = "all",
    reduction: str = "sum",
    normalize: bool = False,
    direction: str = "audio",
    skip_below: float = 0.0,
    save_index: bool | None = None,
    backend: str = "auto",
    group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """This rank's share of `atk.aligned_info_nce` over the pairs of all ranks. Only valid tokens are exchanged.

    Args:
        audio: frame embeddings `[N_r, L_a, D]` of this rank; N_r and L_a may differ between ranks, and N_r may be 0.
        text: token embeddings `[N_r, L_t, D]`, same dtype and device; caption i belongs to clip i.
        logit_scale: as in `atk.info_nce`, with the same value on all ranks.
        audio_mask, text_mask: boolean `[N_r, L_a]` and `[N_r, L_t]`, True = valid; None = all valid.
        gather: `"all"` gathers all captions on every rank. `"ring"` passes blocks of captions around a ring: a rank
            holds two at a time and recomputes the scores in the backward. None uses only the pairs of this rank.
        reduction, normalize, direction, skip_below, save_index, backend: as in `atk.aligned_info_nce`.
        group: the ranks; None: all. With one rank, or no process group, this is `atk.aligned_info_nce`.

    Returns, raises: as in `atk.distributed.info_nce`.
    """
    if only_local(gather, group):
        return local_aligned_info_nce(
            audio, text, logit_scale, audio_mask, text_mask, reduction=reduction, normalize=normalize,
            direction=direction, skip_below=skip_below, save_index=save_index, backend=backend,
        )  # fmt: skip
    checks.scalar("logit_scale", logit_scale)
    checks.one_of("reduction", reduction, REDUCTIONS)
    check_skip_below(skip_below)
    assert gather is not None
    sim, layout = similarity_to_all(
        audio, text, (logit_scale,), audio_mask, text_mask, gather=gather, normalize=normalize, direction=direction,
        sparse=skip_below > 0, save_index=save_index, backend=backend, group=group,
    )  # fmt: skip
    if skip_below > 0:
        sim = torch.where(_gradient_magnitude(sim, logit_scale, layout, group) < skip_below, sim.detach(), sim)
    logits = sim * logit_scale  # [N_r, N]
    positive_logits = logits.diagonal(layout.local.start)
    return _share(logits.logsumexp(1), logits.logsumexp(0), positive_logits, layout, reduction, group)


@torch.no_grad()
def _gradient_magnitude(
    sim: Tensor, logit_scale: Tensor | float, layout: Layout, group: "dist.ProcessGroup | None"
) -> Tensor:
    """`logit_gradient_magnitude` of this rank's clips against all captions `[N_r, N]`."""
    columns = LogSumExp.apply((sim * logit_scale).logsumexp(0), group)
    return logit_gradient_magnitude(sim, logit_scale, columns, layout.local.start)


def _share(
    row_lse: Tensor,
    column_lse: Tensor,
    positive_logits: Tensor,
    layout: Layout,
    reduction: str,
    group: "dist.ProcessGroup | None",
) -> Tensor:
    """This rank's share of the loss.

    Args:
        row_lse: log-sum-exps over all captions for each clip of this rank `[N_r]`.
        column_lse: log-sum-exps over this rank's clips for each caption `[N]`.
        positive_logits: logits of this rank's pairs `[N_r]`.
        layout: from `caption_layout`.
        reduction: `"sum"` or `"mean"`.
        group: the ranks; None: all.
    """
    column_lse = LogSumExp.apply(join_graph(column_lse, layout.differentiable), group)[layout.local]
    share = ((row_lse - positive_logits).sum() + (column_lse - positive_logits).sum()) / sum(layout.items)
    return share if reduction == "sum" else share / 2
