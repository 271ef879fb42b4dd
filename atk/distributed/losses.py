"""Contrastive losses over the pairs of all ranks: captions travel, frames stay where they are (docs/distributed.md).

K ranks of `torch.distributed`, rank r with N_r of the N pairs. A loss is this rank's share: the shares add up to the
loss of the whole batch, and so do the gradients of replicated parameters, the temperature among them. Where gradients
are averaged over ranks (DDP, FSDP), multiply the share by `ddp_factor()` before `backward`.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from atk.distributed.collectives import Gather, Layout, LogSumExp, gather_rows, meet, take_part, world_size
from atk.distributed.ring import ring
from atk.kernels.sequences import Sequences, from_padded
from atk.ops import checks
from atk.ops.backend import choose
from atk.ops.info_nce import REDUCTIONS, check_skip_below, check_vectors, choose_backend
from atk.ops.info_nce import aligned_info_nce as aligned_info_nce_of_one_rank
from atk.ops.info_nce import info_nce as info_nce_of_one_rank
from atk.ops.info_nce_op import dispatch
from atk.ops.max_mean import DIRECTIONS, similarity
from atk.ops.max_mean_op import normalize_rows

GATHERS = ("all", "ring")


def ddp_factor(group: "dist.ProcessGroup | None" = None) -> int:
    """The number of ranks (1 without a process group): what a share is multiplied by where gradients are averaged."""
    return world_size(group)


@torch.no_grad()
def total(share: Tensor, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """The sum of the shares of all ranks, without a gradient: the whole loss, for the log."""
    value = share.detach().clone()
    if world_size(group) > 1:
        dist.all_reduce(value, group=group)
    return value


def gather(rows: Tensor, group: "dist.ProcessGroup | None" = None) -> tuple[Tensor, slice]:
    """The rows of all ranks, in the order of ranks, with a gradient.

    Each row's gradient is the sum of what all ranks ask for, summed in float32 at least and in the order of ranks.

    Args:
        rows: `[N_r, D]`, any N_r, 0 too; float32, bfloat16, float16 or float64.
        group: the ranks; None: all. Without an initialised process group there is one.

    Returns:
        `[N, D]`, and the slice of this rank's rows.

    Raises:
        ValueError, TypeError: not rows, or another width or dtype than on other ranks (on all of them).
        RuntimeError: when a second derivative is taken.
    """
    checks.embeddings("rows", rows, "N, D")
    if world_size(group) == 1:
        return rows, slice(0, len(rows))
    layout = meet("rows", rows, len(rows), 1, False, group)
    return Gather.apply(take_part(rows, layout.rows_differentiable), layout.rows, group), layout.own


def gather_packed(
    text: Tensor, cu_seqlens_text: Tensor, group: "dist.ProcessGroup | None" = None
) -> tuple[Tensor, Tensor, slice]:
    """`gather` of packed captions of unequal length, as `atk.max_mean_similarity_varlen` takes them.

    Args:
        text: token embeddings `[T_r, D]`, the captions of this rank one after another.
        cu_seqlens_text: int32 `[N_r + 1]`, from 0 to T_r.
        group: as in `gather`.

    Returns:
        `[T, D]` and `[N + 1]` of all ranks, and the slice of this rank's captions among the N.

    Raises:
        ValueError, TypeError, RuntimeError: as `gather`; `cu_seqlens_text` does not cut `text`.
    """
    checks.embeddings("text", text, "T, D")
    checks.cu_seqlens("cu_seqlens_text", cu_seqlens_text, "text", text, None)
    lengths = cu_seqlens_text.diff()
    if world_size(group) == 1:
        return text, cu_seqlens_text, slice(0, len(lengths))
    layout = meet("text", text, len(lengths), 0, False, group)
    rows = Gather.apply(take_part(text, layout.rows_differentiable), layout.rows, group)
    return rows, _cumulated(gather_rows(lengths, layout.items, group)), layout.own


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

        share_r = 1/N sum_{i of rank r} (logsumexp_j S_ij - S_ii) + (logsumexp_j S_ji - S_ii),   j over all N

    Args:
        audio: clip embeddings `[N_r, D]` of this rank; N_r may differ between ranks, and be 0.
        text: caption embeddings `[N_r, D]`, same dtype and device; row i belongs to clip i.
        logit_scale: as in `atk.info_nce`, the same number on all ranks.
        gather: `"all"`: every rank gathers all captions; `"ring"`: blocks of captions pass round, a rank holds two at
            a time and computes logits a second time in the backward. None: of this rank's pairs alone.
        reduction, backend: as in `atk.info_nce`.
        group: the ranks; None: all. With one rank, or no process group, this is `atk.info_nce`.

    Returns:
        Scalar in float32 (float64 for float64 input). A rank without a pair has a share of 0, and must call
        `backward` as the others do.

    Raises:
        ValueError, TypeError: what `atk.info_nce` refuses, also where ranks differ; no rank has a pair.
        atk.BackendError, RuntimeError: as `atk.info_nce`.
    """
    if _alone(gather, group):
        return info_nce_of_one_rank(audio, text, logit_scale, reduction=reduction, backend=backend)
    check_vectors(audio, text, logit_scale)
    _check_pairs(audio, text, logit_scale, reduction)
    backend = choose_backend(audio, backend)
    layout = _meet(text, len(text), 1, (audio, logit_scale), group)
    own = torch.arange(len(audio), device=audio.device)
    if gather == "all":
        text = Gather.apply(take_part(text, layout.rows_differentiable), layout.rows, group)
        found = dispatch(audio, text, logit_scale, own + layout.own.start, True, backend)
        return _share(*found, layout, reduction, group)

    def score(source: int, block: Tensor, audio: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        paired = own if source == layout.rank else None
        return tuple(x for x in dispatch(audio, block, scale, paired, True, backend) if x is not None)

    scale = torch.as_tensor(logit_scale, dtype=torch.float64)  # dispatch takes the type it wants
    found = ring(score, take_part(text, layout.differentiable), (audio, scale), layout.rows, group)
    rows, columns = torch.stack([block[0] for block in found]).logsumexp(0), torch.cat([block[1] for block in found])
    return _share(rows, columns, found[layout.rank][2], layout, reduction, group)


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
    """This rank's share of `atk.aligned_info_nce` over the pairs of all ranks; valid tokens travel, frames never do.

    Args:
        audio: frame embeddings `[N_r, L_a, D]` of this rank; N_r and L_a may differ between ranks, and N_r be 0.
        text: token embeddings `[N_r, L_t, D]`, same dtype and device; caption i belongs to clip i.
        logit_scale: as in `atk.info_nce`, the same number on all ranks.
        audio_mask, text_mask: boolean `[N_r, L_a]` and `[N_r, L_t]`, True = valid, None = all.
        gather: `"all"`: every rank gathers all captions; `"ring"`: blocks of captions pass round, a rank holds two at
            a time and scores them a second time in the backward. None: of this rank's pairs alone.
        reduction, normalize, direction, skip_below, save_index, backend: as in `atk.aligned_info_nce`.
        group: the ranks; None: all. With one rank, or no process group, this is `atk.aligned_info_nce`.

    Returns, raises: as `info_nce` here.
    """
    if _alone(gather, group):
        return aligned_info_nce_of_one_rank(
            audio, text, logit_scale, audio_mask, text_mask, reduction=reduction, normalize=normalize,
            direction=direction, skip_below=skip_below, save_index=save_index, backend=backend,
        )  # fmt: skip
    checks.padded(audio, text, audio_mask, text_mask)
    _check_pairs(audio, text, logit_scale, reduction)
    checks.one_of("direction", direction, DIRECTIONS)
    check_skip_below(skip_below)
    backend = choose(backend, audio.device, audio.dtype)
    clips, captions = from_padded(audio, audio_mask), _packed(text, text_mask)
    if normalize:  # once, and not once more for every block
        clips, captions = (
            side._replace(rows=normalize_rows(side.rows, side.mask, backend)) for side in (clips, captions)
        )
    layout = _meet(captions.rows, captions.number, captions.longest, (clips.rows, logit_scale), group)
    lengths = gather_rows(captions.cu_seqlens.diff(), layout.items, group)  # [N], of all captions

    def score(source: int | None, block: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        cu_seqlens = _cumulated(lengths if source is None else lengths.split(layout.items)[source])
        sides = clips._replace(rows=frames), Sequences(block, cu_seqlens, None, layout.longest)
        return (similarity(*sides, False, direction, save_index, backend, sparse=skip_below > 0),)

    if gather == "all":
        rows = Gather.apply(take_part(captions.rows, layout.rows_differentiable), layout.rows, group)
        sim = score(None, rows, clips.rows)[0]
    else:
        rows = take_part(captions.rows, layout.differentiable)
        sim = torch.cat([block for (block,) in ring(score, rows, (clips.rows,), layout.rows, group)], 1)
    if skip_below > 0:
        sim = torch.where(_weights(sim.detach(), logit_scale, layout, group) < skip_below, sim.detach(), sim)
    logits = sim * logit_scale  # [N_r, N]
    paired = logits.diagonal(layout.own.start)
    return _share(logits.logsumexp(1), logits.logsumexp(0), paired, layout, reduction, group)


def _alone(gather: str | None, group: "dist.ProcessGroup | None") -> bool:
    if gather is not None:
        checks.one_of("gather", gather, GATHERS)
    return gather is None or world_size(group) == 1


def _check_pairs(audio: Tensor, text: Tensor, logit_scale: Tensor | float, reduction: str) -> None:
    checks.same_count(audio, text)
    checks.scalar("logit_scale", logit_scale)
    checks.one_of("reduction", reduction, REDUCTIONS)


def _meet(rows: Tensor, items: int, longest: int, others: tuple, group: "dist.ProcessGroup | None") -> Layout:
    differentiable = any(isinstance(value, Tensor) and value.requires_grad for value in others)
    layout = meet("text", rows, items, longest, differentiable, group)
    if sum(layout.items) == 0:
        raise ValueError("audio and text must hold at least one pair on some rank, got 0 on all of them")
    return layout


def _packed(text: Tensor, mask: Tensor | None) -> Sequences:
    """The valid tokens of `[N, L, D]`, so that no padding travels; waits for the device when there is a mask."""
    if mask is None:
        return from_padded(text, None)
    lengths = mask.sum(1, dtype=torch.int32)
    longest = int(lengths.max()) if len(lengths) else 0
    return Sequences(text[mask], _cumulated(lengths), None, longest)


def _cumulated(lengths: Tensor) -> Tensor:
    """`cu_seqlens` `[N + 1]` of int32 lengths `[N]`."""
    return torch.cat((lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)))


def _share(
    rows: Tensor, columns: Tensor, paired: Tensor, layout: Layout, reduction: str, group: "dist.ProcessGroup | None"
) -> Tensor:
    """Loss of this rank's pairs: complete rows `[N_r]`, columns `[N]` over its clips, logits of the pairs `[N_r]`."""
    columns = LogSumExp.apply(take_part(columns, layout.differentiable), group)[layout.own]
    share = ((rows - paired).sum() + (columns - paired).sum()) / sum(layout.items)
    return share if reduction == "sum" else share / 2


@torch.no_grad()
def _weights(sim: Tensor, logit_scale: Tensor | float, layout: Layout, group: "dist.ProcessGroup | None") -> Tensor:
    """`|P + Q - 2 I|` of this rank's clips `[N_r, N]`, with the columns' softmax over the clips of all ranks."""
    logits = sim * logit_scale
    columns = LogSumExp.apply(logits.logsumexp(0), group)
    weights = logits.softmax(1) + (logits - columns).exp()
    weights.diagonal(layout.own.start).sub_(2)
    return weights.abs()
