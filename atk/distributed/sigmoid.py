"""The sigmoid loss over the pairs of all ranks. Captions are exchanged, clips stay local (docs/distributed.md).

The loss is a sum over pairs, so unlike InfoNCE it needs nothing from other ranks but their captions. The shares of all
ranks add up to the loss of the whole batch, as in `atk.distributed.losses`.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from atk.distributed.collectives import Gather, Layout, join_graph
from atk.distributed.exchange import caption_layout, only_local, similarity_to_all
from atk.distributed.ring import ring
from atk.ops import checks
from atk.ops.info_nce import check_skip_below, check_vectors, choose_backend
from atk.ops.sigmoid import aligned_sigmoid_loss as local_aligned_sigmoid_loss
from atk.ops.sigmoid import check_scalars, losses_of_scores
from atk.ops.sigmoid import sigmoid_loss as local_sigmoid_loss
from atk.ops.sigmoid_op import dispatch


def sigmoid_loss(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    gather: str | None = "all",
    backend: str = "auto",
    group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """This rank's share of `atk.sigmoid_loss` over the pairs of all ranks.

        share_r = -1/N sum_{i of rank r} sum_j log sigmoid(z_ij S_ij),   j over all N

    Args:
        audio: clip embeddings `[N_r, D]` of this rank; N_r may differ between ranks and may be 0.
        text: caption embeddings `[N_r, D]`, same dtype and device; row i belongs to clip i.
        logit_scale, logit_bias: as in `atk.sigmoid_loss`, with the same values on all ranks.
        gather: `"all"` gathers all captions on every rank. `"ring"` passes blocks of captions around a ring: a rank
            holds two at a time and recomputes the logits in the backward. None uses only the pairs of this rank.
        backend: as in `atk.sigmoid_loss`.
        group: the ranks; None: all. With one rank, or no process group, this is `atk.sigmoid_loss`.

    Returns:
        Scalar in float32 (float64 for float64 input). The share of a rank without pairs is 0; it must still call
        `backward`, because the backward communicates.

    Raises:
        ValueError, TypeError: as for `atk.sigmoid_loss`, or if arguments differ between ranks or no rank has a pair.
        atk.BackendError, RuntimeError: as for `atk.sigmoid_loss`.
    """
    if only_local(gather, group):
        return local_sigmoid_loss(audio, text, logit_scale, logit_bias, backend=backend)
    check_vectors(audio, text, logit_scale)
    check_scalars(logit_scale, logit_bias)
    checks.pairs(audio, text, allow_empty=True)
    backend = choose_backend(audio, backend, "sigmoid_loss")
    layout = caption_layout(text, len(text), 1, (audio, logit_scale, logit_bias), group)
    local_index = torch.arange(len(audio), device=audio.device)
    if gather == "all":
        text = Gather.apply(join_graph(text, layout.rows_differentiable), layout.rows, group)
        positive = local_index + layout.local.start
        return _share(dispatch(audio, text, logit_scale, logit_bias, positive, backend), layout)

    def score(source: int, block: Tensor, audio: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        positive = local_index if source == layout.rank else None
        return (dispatch(audio, block, scale, bias, positive, backend),)

    # dispatch casts the scalars to the dtype it needs.
    scalars = (torch.as_tensor(value, dtype=torch.float64) for value in (logit_scale, logit_bias))
    blocks = ring(score, join_graph(text, layout.differentiable), (audio, *scalars), layout.rows, group)
    return _share(torch.stack([losses for (losses,) in blocks]).sum(0), layout)


def aligned_sigmoid_loss(
    audio: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    audio_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    gather: str | None = "all",
    normalize: bool = False,
    direction: str = "audio",
    skip_below: float = 0.0,
    save_index: bool | None = None,
    backend: str = "auto",
    group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """This rank's share of `atk.aligned_sigmoid_loss` over the pairs of all ranks. Only valid tokens are exchanged.

    Args:
        audio: frame embeddings `[N_r, L_a, D]` of this rank; N_r and L_a may differ between ranks, and N_r may be 0.
        text: token embeddings `[N_r, L_t, D]`, same dtype and device; caption i belongs to clip i.
        logit_scale, logit_bias: as in `atk.sigmoid_loss`, with the same values on all ranks.
        audio_mask, text_mask: boolean `[N_r, L_a]` and `[N_r, L_t]`, True = valid; None = all valid.
        gather: as in `atk.distributed.sigmoid_loss`.
        normalize, direction, skip_below, save_index, backend: as in `atk.aligned_sigmoid_loss`.
        group: the ranks; None: all. With one rank, or no process group, this is `atk.aligned_sigmoid_loss`.

    Returns, raises: as in `atk.distributed.sigmoid_loss`.
    """
    if only_local(gather, group):
        return local_aligned_sigmoid_loss(
            audio, text, logit_scale, logit_bias, audio_mask, text_mask, normalize=normalize, direction=direction,
            skip_below=skip_below, save_index=save_index, backend=backend,
        )  # fmt: skip
    check_scalars(logit_scale, logit_bias)
    check_skip_below(skip_below, 1)
    assert gather is not None
    sim, layout = similarity_to_all(
        audio, text, (logit_scale, logit_bias), audio_mask, text_mask, gather=gather, normalize=normalize,
        direction=direction, sparse=skip_below > 0, save_index=save_index, backend=backend, group=group,
    )  # fmt: skip
    positive = torch.arange(len(audio), device=audio.device) + layout.local.start
    return _share(losses_of_scores(sim, logit_scale, logit_bias, positive, skip_below), layout)


def _share(losses: Tensor, layout: Layout) -> Tensor:
    """This rank's share of the loss, from the summed loss of each of its clips `[N_r]`."""
    return join_graph(losses, layout.differentiable).sum() / sum(layout.items)
