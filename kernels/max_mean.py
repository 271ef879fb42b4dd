"""Max-mean similarity (3.6) in Triton: what launches the kernels, class by class of the captions' lengths.

Shapes: N_a clips in T_a rows of frames, N_t captions in T_t rows of tokens, D channels. Results repeat bit for bit.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from atk.kernels.launch import (
    Device,
    Launch,
    max_mean_launch,
    on_device,
    parts_of_frames,
    parts_of_sum,
    tile_width,
    unavailable,
)
from atk.kernels.max_mean_kernels import forward_kernel, grad_audio_kernel, grad_text_kernel
from atk.kernels.normalize import normalize_rows, normalize_rows_backward
from atk.kernels.pack import Captions, Frames, FrameTiles, LengthClass, frame_tiles, pack_captions, pack_frames
from atk.kernels.sequences import Sequences, index_dtype
from atk.kernels.weights import Active, Weights, active_frames, active_text, pair_weights

__all__ = ["max_mean_backward", "max_mean_forward", "normalize_rows", "normalize_rows_backward", "unavailable"]

INDEX_BYTES = 64 * 2**20  # of winners that a backward pass without saved ones holds at a time


@dataclass(frozen=True)
class Group:
    """Slots `skip` to `skip + room` of a length class; `grouped`: the index begins with them, not with slot 0."""

    kind: LengthClass
    skip: int
    room: int
    grouped: bool

    @property
    def slot_tiles(self) -> int:
        """Upper bound on its tiles of captions."""
        return triton.cdiv(min(self.room, self.kind.bound), self.kind.captions)

    @property
    def text_tiles(self) -> int:
        """Upper bound on its tiles of packed text: as many, but for captions in chunks."""
        return self.kind.tile_bound if self.kind.chunked else self.slot_tiles

    @property
    def arguments(self) -> tuple[int, int, int, int]:
        """As the kernels take it."""
        return self.kind.number, self.skip, self.room, int(self.grouped)


class Problem:
    """Packed inputs, and the launches of the kernels on them."""

    def __init__(self, audio: Sequences, text: Sequences, pairs: bool):
        self.device = Device.of(audio.rows.device)
        self.frames: Frames = pack_frames(audio)
        self.captions: Captions = pack_captions(text, tile_width(audio.rows.dtype), pairs)
        self.longest, self.pairs = text.longest, pairs
        self.N_a, self.N_t = audio.number, text.number
        (self.T_a, self.D), self.T_t = self.frames.rows.shape, len(text.rows)
        self.launches: dict[str, Launch] = {}  # by kernel: what to take instead of the usual numbers
        self._tiles: dict[int, FrameTiles] = {}

    def tiles(self, launch: Launch) -> FrameTiles:
        """The table of frame tiles of this size, made once."""
        if launch.frames not in self._tiles:
            self._tiles[launch.frames] = frame_tiles(self.frames, launch.frames)
        return self._tiles[launch.frames]

    def launch(self, kernel: str, kind: LengthClass) -> Launch:
        """The launch numbers of a kernel for one class."""
        if kernel in self.launches:
            return self.launches[kernel]
        return max_mean_launch(kernel, self.frames.rows.dtype, kind.tokens, kind.chunked, self.D, self.device)

    def index_row(self) -> int:
        return 0 if self.pairs else self.T_a

    def groups(self, index_bytes: int | None) -> list[Group]:
        """All slots of every class, or as many at a time as give `index_bytes` of winners, whole tiles."""
        groups = []
        for kind in self.captions.classes:
            room = kind.bound
            if index_bytes is not None and not self.pairs:
                size = self.T_a * index_dtype(self.longest).itemsize
                room = max(1, index_bytes // (size * kind.captions)) * kind.captions
            steps = range(0, kind.bound, room)
            groups += [Group(kind, skip, room, index_bytes is not None) for skip in steps]
        return groups

    def forward(self, group: Group, sim: Tensor | None, index: Tensor | None, weights: Weights | None = None) -> None:
        """Similarities and winners of one group; with `weights` only where they are not all 0."""
        kind, launch = group.kind, self.launch("forward", group.kind)
        tiles, captions = self.tiles(launch), self.captions
        active = self._active_frames(weights, tiles, group)
        parts = 1 if self.pairs else parts_of_frames(group.slot_tiles, self.N_a, tiles.bound, self.device)
        sim_strides = (1, 0) if self.pairs else (self.N_t, 1)
        forward_kernel[(group.slot_tiles, parts)](
            self.frames.rows, tiles.table, tiles.first, captions.rows, captions.slots, captions.bounds, *active[:2],
            sim, index, self.N_a, self.N_t, self.D, self.index_row(), *sim_strides, active[2], *group.arguments,
            C=kind.captions, LT=kind.tokens, PAIRS=self.pairs, **launch.meta(),
        )  # fmt: skip

    def grad_audio(self, group, weights, index, carry, out, sparse, first, last) -> None:
        """Adds the captions of one group to the gradient of the frames."""
        kind, launch = group.kind, self.launch("grad_audio", group.kind)
        tiles, captions, frames = self.tiles(launch), self.captions, self.frames
        active = _arguments(active_text(weights, captions, kind, group.skip, group.room) if sparse else None)
        grid = (tiles.bound * triton.cdiv(self.D, launch.channels),)
        grad_audio_kernel[grid](
            weights.weight, weights.peak, tiles.table, tiles.first, frames.home, captions.rows, captions.slots,
            captions.bounds, captions.tiles, *active[:2], index, carry, out, self.N_a, self.N_t, self.D,
            self.index_row(), weights.clip_stride, weights.slot_stride, active[2], *group.arguments,
            int(first), int(last), C=kind.captions, LT=kind.tokens, PAIRS=self.pairs, **launch.meta(),
        )  # fmt: skip

    def grad_text(self, group, weights, index, out, sparse) -> None:
        """The gradient of the tokens of one group, in as many parts as `out` [parts, T_t, D] has."""
        kind, launch = group.kind, self.launch("grad_text", group.kind)
        tiles, captions = self.tiles(launch), self.captions
        active = self._active_frames(weights if sparse else None, tiles, group)
        grid = (group.text_tiles * triton.cdiv(self.D, launch.channels), len(out))
        grad_text_kernel[grid](
            weights.weight, self.frames.rows, tiles.table, tiles.first, captions.home, captions.slots, captions.bounds,
            captions.tiles, *active[:2], index, out, self.N_a, self.N_t, self.T_t, self.D,
            self.index_row(), weights.clip_stride, weights.slot_stride, active[2], *group.arguments,
            C=kind.captions, LT=kind.tokens, PAIRS=self.pairs, **launch.meta(),
        )  # fmt: skip

    def text_parts(self) -> int:
        """Into how many parts the frames are split to sum the gradient of the tokens."""
        kind = self.captions.classes[-1]
        channels = self.launch("grad_text", kind).channels
        tiles = triton.cdiv(self.T_t, kind.width) * triton.cdiv(self.D, channels)
        return 1 if self.pairs else parts_of_sum(tiles, self.N_a, self.device)

    def _active_frames(self, weights: Weights | None, tiles: FrameTiles, group: Group):
        if weights is None:
            return _arguments(None)
        return _arguments(active_frames(weights, self.captions, tiles, group.kind, group.skip, group.room))


def _arguments(active: Active | None) -> tuple[Tensor | None, Tensor | None, int]:
    """As the kernels take the lists: tiles, counts, stride."""
    return (None, None, 0) if active is None else (active.tiles, active.count, active.tiles.shape[1])


def max_mean_forward(audio: Sequences, text: Sequences, sim: Tensor, index: Tensor | None, pairs: bool) -> None:
    """sim[i, j] = mean over valid frames t of max over valid tokens l of <audio[i, t], text[j, l]>.

    Args:
        audio: clips, rows [T_a, D], float32, bfloat16 or float16.
        text: captions, rows [T_t, D] of the same dtype.
        sim: written, [N_a, N_t] float32; with `pairs` [N], clip i against caption i.
        index: written unless None, [N_t, T_a], with `pairs` [T_a], of `index_dtype(text.longest)`: the winning tokens,
            for `max_mean_backward`. Row s belongs to the caption in slot s, column r to the r-th packed frame.
        pairs: whether to score caption i against clip i only.
    """
    with on_device(audio.rows.device):
        problem = Problem(audio, text, pairs)
        for group in problem.groups(None):
            problem.forward(group, sim, index)


def max_mean_backward(
    grad: Tensor, audio: Sequences, text: Sequences, index: Tensor | None, grad_audio: Tensor, grad_text: Tensor,
    pairs: bool, sparse: bool, *, index_bytes: int = INDEX_BYTES,
) -> None:  # fmt: skip
    """Writes grad_audio [T_a, D] and grad_text [T_t, D], the gradients of `sim` weighted by `grad`; zeros at padding.

    Args:
        grad: [N_a, N_t] float32, with `pairs` [N]; pairs whose entry is exactly 0 contribute nothing.
        audio, text, pairs: as handed to `max_mean_forward`.
        index: as written by it; None: recomputed, for as many captions at a time as give `index_bytes` of winners, at
            least one tile of captions. The gradients are the same bit for bit.
        grad_audio, grad_text: written, of the dtype of the inputs.
        sparse: whether to look for tiles of pairs whose `grad` is 0 and skip them; pays when most are.
    """
    with on_device(grad.device):
        problem = Problem(audio, text, pairs)
        sparse = sparse and not pairs
        weights = pair_weights(grad, problem.frames, problem.captions, pairs)
        groups = problem.groups(index_bytes if index is None else None)
        wide_audio, wide_text = (_widened(grad_audio, problem.D), _widened(grad_text, problem.D))
        for out, sequences in ((wide_audio, audio), (wide_text, text)):
            if sequences.mask is not None:
                out.zero_()
        carry = grad.new_empty(wide_audio.shape) if len(groups) > 1 else None
        parts = problem.text_parts()
        partial = wide_text[None] if parts == 1 else grad.new_zeros(parts, *wide_text.shape)
        workspace = index
        if index is None:
            rows = 1 if pairs else max(min(group.room, group.kind.bound) for group in groups)
            workspace = torch.empty(rows, problem.T_a, dtype=index_dtype(text.longest), device=grad.device)
        for number, group in enumerate(groups):
            if index is None:
                problem.forward(group, None, workspace, weights if sparse else None)
            ends = number == 0, number == len(groups) - 1
            problem.grad_audio(group, weights, workspace, carry, wide_audio, sparse, *ends)
            problem.grad_text(group, weights, workspace, partial, sparse)
        if parts > 1:
            wide_text.copy_(partial.sum(0))
        for out, wide in ((grad_audio, wide_audio), (grad_text, wide_text)):
            if wide is not out:
                out.copy_(wide[:, : out.shape[1]])


def _widened(out: Tensor, D: int) -> Tensor:
    """`out`, or a buffer of D channels in its place."""
    return out if out.shape[1] == D else out.new_empty(len(out), D)
