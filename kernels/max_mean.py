"""Launchers for max-mean similarity (3.6) in Triton. Each length class of captions gets its own launch.

Shapes: N_a clips with T_a frames in total, N_t captions with T_t tokens in total, D channels. Results are bitwise
reproducible.
"""

import torch
from torch import Tensor

from atk.kernels.availability import unavailable
from atk.kernels.launch import (
    Device,
    Launch,
    cdiv,
    gathers_winners,
    max_mean_launch,
    on_device,
    parts_of_frames,
    parts_of_sum,
)
from atk.kernels.max_mean_forward import forward_kernel
from atk.kernels.max_mean_gradients import grad_audio_kernel, grad_text_kernel
from atk.kernels.normalize import normalize_rows, normalize_rows_backward
from atk.kernels.pack import Captions, Frames, FrameTiles, LengthClass, SlotGroup, frame_tiles, pack
from atk.kernels.sequences import Packed, Sequences, empty_packed, index_columns, index_dtype
from atk.kernels.sum_parts import sum_parts
from atk.kernels.weights import ActiveTiles, Weights, active_frame_tiles, active_text_tiles, slot_weights

__all__ = ["max_mean_backward", "max_mean_forward", "normalize_rows", "normalize_rows_backward", "unavailable"]

INDEX_BYTES = 64 * 2**20  # limit on the winner indices that are recomputed at a time if the forward did not save them


class Problem:
    """Packed inputs and the kernel launches on them."""

    device: Device
    audio: Sequences
    frames: Frames
    captions: Captions
    longest: int
    pairs: bool
    N_a: int
    N_t: int
    T_a: int
    T_t: int
    columns: int  # of the winner indices
    D: int  # channels of packed rows
    launches: dict[str, Launch]  # by kernel; overrides the table and the heuristics

    def __init__(
        self, audio: Sequences, text: Sequences, pairs: bool, packed: Packed | None = None, fill: bool = True
    ) -> None:
        """Packs the inputs into `packed` if `fill`; otherwise it holds them already. None allocates the buffers."""
        if packed is None:
            inputs = (audio.rows, audio.num_sequences, audio.mask is not None, text.rows, text.num_sequences)
            packed = empty_packed(*inputs, text.longest, text.mask is not None, pairs)
            fill = True
        self.device = Device.of(audio.rows.device)
        self.frames, self.captions, self._tiles = pack(audio, text, pairs, packed, fill)
        self.audio = audio
        self.longest = text.longest
        self.pairs = pairs
        self.N_a = audio.num_sequences
        self.N_t = text.num_sequences
        self.T_a, self.D = self.frames.rows.shape
        self.T_t = len(text.rows)
        self.columns = index_columns(self.T_a, self.N_a, audio.longest, audio.mask is not None)
        self.launches = {}

    def tiles(self, launch: Launch) -> FrameTiles:
        """The table of frame tiles of the size in `launch`."""
        if launch.frames not in self._tiles:
            self._tiles[launch.frames] = frame_tiles(self.audio, self.frames, launch.frames)
        return self._tiles[launch.frames]

    def launch(self, kernel: str, length_class: LengthClass, winners: bool = True) -> Launch:
        """The launch configuration of a kernel for one length class; `winners`: whether a forward writes them."""
        if kernel in self.launches:
            return self.launches[kernel]
        dtype = self.frames.rows.dtype
        return max_mean_launch(kernel, dtype, length_class.tokens, length_class.chunked, self.D, self.device, winners)

    def index_row(self) -> int:
        """Stride between slots in the winner indices."""
        return 0 if self.pairs else self.columns

    def groups(self, index_bytes: int | None) -> list[SlotGroup]:
        """Splits the slots of each class into groups.

        A group holds as many whole tiles of captions as fit `index_bytes` of winner indices, and at least one. None:
        one group per class.
        """
        groups = []
        for length_class in self.captions.classes:
            size = length_class.bound
            if index_bytes is not None and not self.pairs:
                caption_bytes = self.columns * index_dtype(self.longest).itemsize
                tiles = max(1, index_bytes // (caption_bytes * length_class.captions))
                size = tiles * length_class.captions
            offsets = range(0, length_class.bound, size)
            groups += [SlotGroup(length_class, offset, size, index_bytes is not None) for offset in offsets]
        return groups

    def forward(
        self, group: SlotGroup, sim: Tensor | None, index: Tensor | None, weights: Weights | None = None
    ) -> None:
        """Computes the similarities and winner indices of one group.

        Args:
            group: the captions.
            sim: written unless None, [N_a, N_t] float32; [N] for pairs.
            index: written unless None, [slots, columns] uint8, int16 or int32; [columns] for pairs.
            weights: None, or skip the tiles in which every weight is 0; `sim` must be None then.
        """
        length_class = group.length_class
        launch = self.launch("forward", length_class, index is not None)
        tiles = self.tiles(launch)
        captions = self.captions
        active, active_count, active_row = self._active_frames(weights, tiles, group)
        parts = 1 if self.pairs else parts_of_frames(group.caption_tiles, self.N_a, tiles.bound, self.device)
        sim_strides = (1, 0) if self.pairs else (self.N_t, 1)
        forward_kernel[(group.caption_tiles, parts)](
            self.frames.rows, tiles.table, tiles.first, captions.rows, captions.slots, captions.bounds,
            active, active_count, sim, index, self.N_a, self.N_t, self.D, self.index_row(), *sim_strides, active_row,
            *group.range_arguments, int(group.local_index),
            C=length_class.captions, LT=length_class.tokens, PAIRS=self.pairs, **launch.meta(),
        )  # fmt: skip

    def grad_audio(
        self, group: SlotGroup, weights: Weights, index: Tensor, carry: Tensor | None, out: Tensor, *, sparse: bool,
        first: bool, last: bool,
    ) -> None:  # fmt: skip
        """Adds the contribution of one group to the gradient of the frames.

        Args:
            group: the captions.
            weights: the weight of each pair.
            index: the winner indices of the group, as written by `forward`.
            carry: [T_a, D] float32, the sum between launches. None: there is only one group.
            out: written by the last launch, [T_a, D] of the dtype of the inputs.
            sparse: whether to skip the tiles in which every weight is 0.
            first: whether this is the first group, so there is no sum yet.
            last: whether this is the last group, so the result is written.
        """
        length_class = group.length_class
        launch = self.launch("grad_audio", length_class)
        tiles = self.tiles(launch)
        captions = self.captions
        active, active_count, active_row = _active_arguments(
            active_text_tiles(weights, captions, group) if sparse else None
        )
        gather = gathers_winners(self.frames.rows.dtype, length_class.tokens, self.device)
        grid = (tiles.bound * cdiv(self.D, launch.channels),)
        grad_audio_kernel[grid](
            weights.weight, weights.peak, tiles.table, tiles.first, self.frames.source_row, captions.rows,
            captions.slots, captions.bounds, captions.tiles, active, active_count, index, captions.positions, carry,
            out, self.N_a, self.N_t, self.D, self.index_row(), weights.clip_stride, weights.slot_stride, active_row,
            *group.range_arguments, int(group.local_index), int(first), int(last),
            C=length_class.captions, LT=length_class.tokens, PAIRS=self.pairs,
            FRAME_WINNERS=launch.winners_per_frame(length_class.captions), GATHER=gather, **launch.meta(),
        )  # fmt: skip

    def grad_text(self, group: SlotGroup, weights: Weights, index: Tensor, out: Tensor, sparse: bool) -> None:
        """Writes the gradient of the tokens of one group.

        Args:
            group: the captions.
            weights: the weight of each pair.
            index: the winner indices of the group, as written by `forward`.
            out: written, [parts, T_t, D]; the frames are split into `parts`, and the gradient is the sum over them.
            sparse: whether to skip the tiles in which every weight is 0.
        """
        length_class = group.length_class
        launch = self.launch("grad_text", length_class)
        tiles = self.tiles(launch)
        captions = self.captions
        active, active_count, active_row = self._active_frames(weights if sparse else None, tiles, group)
        grid = (group.text_tiles * cdiv(self.D, launch.channels), len(out))
        grad_text_kernel[grid](
            weights.weight, weights.peak, self.frames.rows, tiles.table, tiles.first, captions.source_row,
            captions.slots, captions.bounds, captions.tiles, active, active_count, index, captions.positions, out,
            self.N_a, self.N_t, self.T_t, self.D, self.index_row(), weights.clip_stride, weights.slot_stride,
            active_row, *group.range_arguments, int(group.local_index),
            C=length_class.captions, LT=length_class.tokens, PAIRS=self.pairs,
            FRAME_WINNERS=launch.winners_per_frame(length_class.captions), **launch.meta(),
        )  # fmt: skip

    def text_parts(self) -> int:
        """The number of parts the frames are split into when summing the gradient of the tokens."""
        length_class = self.captions.classes[-1]
        channels = self.launch("grad_text", length_class).channels
        tiles = cdiv(self.T_t, length_class.width) * cdiv(self.D, channels)
        return 1 if self.pairs else parts_of_sum(tiles, self.N_a, self.device)

    def _active_frames(
        self, weights: Weights | None, tiles: FrameTiles, group: SlotGroup
    ) -> tuple[Tensor | None, Tensor | None, int]:
        return _active_arguments(None if weights is None else active_frame_tiles(weights, self.captions, tiles, group))


def _active_arguments(active: ActiveTiles | None) -> tuple[Tensor | None, Tensor | None, int]:
    """The kernel arguments `active`, `active_count` and `active_row`."""
    return (None, None, 0) if active is None else (active.tiles, active.count, active.tiles.shape[1])


def max_mean_forward(
    audio: Sequences, text: Sequences, sim: Tensor, index: Tensor | None, pairs: bool, packed: Packed | None = None
) -> None:
    """sim[i, j] = mean over valid frames t of max over valid tokens l of <audio[i, t], text[j, l]>.

    Args:
        audio: N_a clips, rows [T_a, D] float32, bfloat16 or float16.
        text: N_t captions, rows [T_t, D] of the same dtype.
        sim: written, [N_a, N_t] float32. With `pairs` [N] float32.
        index: written unless None, [N_t, `index_columns(...)`] of dtype `index_dtype(text.longest)`: the winner indices
            that `max_mean_backward` takes. Row s belongs to the caption in slot s. With `pairs` only columns.
        pairs: whether to compare only clip i with caption i.
        packed: written unless None, what `max_mean_backward` can use again; buffers of `empty_packed`.
    """
    with on_device(audio.rows.device):
        problem = Problem(audio, text, pairs, packed, fill=True)
        for group in problem.groups(None):
            problem.forward(group, sim, index)


def max_mean_backward(
    grad: Tensor, audio: Sequences, text: Sequences, index: Tensor | None, grad_audio: Tensor, grad_text: Tensor,
    pairs: bool, sparse: bool, packed: Packed | None = None, *, index_bytes: int = INDEX_BYTES,
) -> None:  # fmt: skip
    """Writes the gradients of the frames and tokens for the gradient `grad` of the similarities; 0 at padding.

    Args:
        grad: [N_a, N_t] float32. With `pairs` [N]. Pairs with a gradient of exactly 0 contribute nothing.
        audio, text, pairs: as passed to `max_mean_forward`.
        index: as written by `max_mean_forward`. None: recomputed for groups of captions whose indices fit
            `index_bytes`, at least one tile of captions at a time; the gradients are bitwise the same.
        grad_audio: written, [T_a, D] of the dtype of the inputs.
        grad_text: written, [T_t, D] of the dtype of the inputs.
        sparse: whether to find and skip the tiles in which all of `grad` is 0. Pays off when most of it is.
        packed: as written by `max_mean_forward`. None: computed again.
        index_bytes: size limit of the recomputed indices, in bytes.
    """
    with on_device(grad.device):
        problem = Problem(audio, text, pairs, packed, fill=False)
        sparse = sparse and not pairs
        weights = slot_weights(grad, problem.frames, problem.captions, pairs)
        groups = problem.groups(index_bytes if index is None else None)
        wide_audio = _widened(grad_audio, problem.D)
        if audio.mask is not None:
            wide_audio.zero_()
        carry = grad.new_empty(wide_audio.shape) if len(groups) > 1 else None
        parts = problem.text_parts()
        wide_text = grad_text if parts == 1 and text.rows.shape[1] == problem.D else None
        if wide_text is not None and text.mask is not None:
            wide_text.zero_()
        partial = grad.new_empty(parts, problem.T_t, problem.D) if wide_text is None else wide_text[None]
        workspace = _index_workspace(problem, groups) if index is None else index
        for i, group in enumerate(groups):
            if index is None:
                problem.forward(group, None, workspace, weights if sparse else None)
            last = i == len(groups) - 1
            problem.grad_audio(group, weights, workspace, carry, wide_audio, sparse=sparse, first=i == 0, last=last)
            problem.grad_text(group, weights, workspace, partial, sparse)
        if wide_text is None:
            sum_parts(partial, text.mask, grad_text)
        if wide_audio is not grad_audio:
            grad_audio.copy_(wide_audio[:, : grad_audio.shape[1]])


def _index_workspace(problem: Problem, groups: list[SlotGroup]) -> Tensor:
    """An uninitialized buffer [slots, columns] for the winner indices of the largest group."""
    slots = 1 if problem.pairs else max(min(group.size, group.length_class.bound) for group in groups)
    device = problem.frames.rows.device
    return torch.empty(slots, problem.columns, dtype=index_dtype(problem.longest), device=device)


def _widened(out: Tensor, D: int) -> Tensor:
    """`out` [T, .] if it has D channels, otherwise an uninitialized [T, D] buffer."""
    return out if out.shape[1] == D else out.new_empty(len(out), D)
