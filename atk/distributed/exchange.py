"""How the losses exchange captions between ranks, and the max-mean similarity of local clips to all captions."""

from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from atk.distributed.collectives import Gather, Layout, exchange_layout, gather_rows, join_graph, world_size
from atk.distributed.ring import ring
from atk.kernels.sequences import Sequences, from_padded
from atk.ops import checks
from atk.ops.backend import autocast_dtype, choose
from atk.ops.max_mean import DIRECTIONS, similarity
from atk.ops.max_mean_op import normalize_rows

GatherMode = Literal["all", "ring"]
GATHERS = get_args(GatherMode)


def only_local(gather: str | None, group: "dist.ProcessGroup | None") -> bool:
    """Whether the loss needs no communication; checks `gather`."""
    if gather is not None:
        checks.one_of("gather", gather, GATHERS)
    return gather is None or world_size(group) == 1


def caption_layout(
    rows: Tensor, items: int, longest: int, inputs: tuple[Tensor | float, ...], group: "dist.ProcessGroup | None"
) -> Layout:
    """`exchange_layout` of the captions. `inputs` are the other differentiable inputs of the loss.

    Raises:
        ValueError, TypeError: as for `exchange_layout`, or if no rank has a pair.
    """
    differentiable = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
    layout = exchange_layout("text", rows, items, longest, differentiable, group)
    if sum(layout.items) == 0:
        raise ValueError("audio and text must hold at least one pair on some rank, got 0 on all of them")
    return layout


def similarity_to_all(
    audio: Tensor,
    text: Tensor,
    scalars: tuple[Tensor | float, ...],
    audio_mask: Tensor | None,
    text_mask: Tensor | None,
    *,
    gather: str,
    normalize: bool,
    direction: str,
    sparse: bool,
    save_index: bool | None,
    backend: str,
    group: "dist.ProcessGroup | None",
) -> tuple[Tensor, Layout]:
    """Max-mean similarity of this rank's clips to the captions of all ranks `[N_r, N]`, and how those are split.

    Args:
        audio: frames `[N_r, L_a, D]` of this rank.
        text: tokens `[N_r, L_t, D]`.
        scalars: the other differentiable inputs of the loss.
        audio_mask, text_mask, normalize, direction, save_index, backend: as in `atk.max_mean_similarity`.
        gather: `"all"` or `"ring"`.
        sparse: whether most gradients of the result are 0.
        group: the ranks; None: all.

    Raises:
        ValueError, TypeError: an argument is invalid or differs between ranks, or no rank has a pair.
        atk.BackendError: the requested backend cannot run here.
    """
    checks.padded(audio, text, audio_mask, text_mask)
    checks.pairs(audio, text, allow_empty=True)
    checks.one_of("direction", direction, DIRECTIONS)
    backend = choose(backend, audio.device, autocast_dtype(audio))
    clips, captions = from_padded(audio, audio_mask), _pack_valid(text, text_mask)
    if normalize:  # here, so that it runs once and not for every block
        clips = clips._replace(rows=normalize_rows(clips.rows, clips.mask, backend))
        captions = captions._replace(rows=normalize_rows(captions.rows, captions.mask, backend))
    layout = caption_layout(captions.rows, captions.num_sequences, captions.longest, (clips.rows, *scalars), group)
    lengths = gather_rows(captions.cu_seqlens.diff(), layout.items, group)  # [N], of all captions

    def score(source: int | None, block: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        """Similarity of the local clips to the captions of one rank, or of all ranks if `source` is None."""
        cu_seqlens = cu_seqlens_of(lengths if source is None else lengths.split(layout.items)[source])
        captions = Sequences(block, cu_seqlens, None, layout.longest)
        local = clips._replace(rows=frames)
        return (similarity(local, captions, False, direction, save_index, backend, sparse=sparse),)

    if gather == "all":
        rows = Gather.apply(join_graph(captions.rows, layout.rows_differentiable), layout.rows, group)
        return score(None, rows, clips.rows)[0], layout
    rows = join_graph(captions.rows, layout.differentiable)
    return torch.cat([block for (block,) in ring(score, rows, (clips.rows,), layout.rows, group)], 1), layout


def _pack_valid(text: Tensor, mask: Tensor | None) -> Sequences:
    """Pack the valid tokens of `[N, L, D]`, so that no padding is exchanged; synchronizes if there is a mask."""
    if mask is None:
        return from_padded(text, None)
    lengths = mask.sum(1, dtype=torch.int32)
    longest = int(lengths.max()) if len(lengths) else 0
    return Sequences(text[mask], cu_seqlens_of(lengths), None, longest)


def cu_seqlens_of(lengths: Tensor) -> Tensor:
    """`cu_seqlens` `[N + 1]` of int32 lengths `[N]`."""
    return torch.cat((lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)))
