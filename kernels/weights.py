"""Before the gradients of max-mean similarity: a weight for each pair, and lists of the tiles that hold any but 0."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from atk.kernels.pack import Captions, Frames, FrameTiles, LengthClass
from atk.kernels.tiles import slot_range, text_tile_range, tile_slot


class Weights(NamedTuple):
    """weight = grad / frames of the clip, 0 for empty clips and captions; columns are slots."""

    weight: Tensor  # [N_a, N_t] float32; pairs: [N]
    peak: Tensor  # [N_a] float32: the largest magnitude of a clip, 1 where that is 0 or not finite
    clip_stride: int
    slot_stride: int  # 0 for pairs


class Active(NamedTuple):
    """Lists of tiles: those at `tiles[k, : count[k]]` belong to item k."""

    tiles: Tensor  # [items, bound] int32
    count: Tensor  # [items] int32


@triton.jit(do_not_specialize=["N_t", "clip_stride", "slot_stride"])
def weights_kernel(
    grad, length, slots, weight, peak, N_t, clip_stride, slot_stride, PAIRS: tl.constexpr, BLOCK: tl.constexpr = 256
):
    """The weights of one clip and their peak; a program a clip."""
    clip = tl.program_id(0)
    frames = tl.load(length + clip)
    row = clip.to(tl.int64) * clip_stride
    low, high = (clip, clip + 1) if PAIRS else (0, N_t)
    largest = tl.zeros((BLOCK,), tl.float32)
    for s0 in range(low, high, BLOCK):
        slot = s0 + tl.arange(0, BLOCK)
        ok = slot < high
        caption = tl.load(slots + slot, mask=ok, other=0)
        some = (tl.load(slots + N_t + slot, mask=ok, other=0) > 0) & (frames > 0)
        value = tl.load(grad + row + caption.to(tl.int64) * slot_stride, mask=ok & some, other=0.0)
        value = tl.where(some, value / tl.maximum(frames, 1).to(tl.float32), 0.0)
        tl.store(weight + row + slot.to(tl.int64) * slot_stride, value, mask=ok)
        largest = tl.maximum(largest, tl.abs(value))
    top = tl.max(largest, 0)
    tl.store(peak + clip, tl.where((top > 0) & (top < float("inf")), top, 1.0))


@triton.jit(do_not_specialize=["N_t", "number", "skip", "room", "clip_stride", "bound"])
def text_lists_kernel(
    weight, slots, bounds, text_tiles, lists, count, N_t, number, skip, room, clip_stride, bound,
    C: tl.constexpr, LT: tl.constexpr, BLOCK: tl.constexpr = 64,
):  # fmt: skip
    """For one clip the tiles of packed text, counted from the first of the slots meant, with a weight other than 0."""
    clip = tl.program_id(0).to(tl.int64)
    low, high = slot_range(bounds, number, skip, room)
    begin, end = text_tile_range(slots, low, high, N_t, C * LT)
    listed = 0
    for t0 in range(begin, end, BLOCK):
        tile = t0 + tl.arange(0, BLOCK)
        slot, _ = tile_slot(text_tiles, tl.minimum(tile, end - 1), begin, low, C)
        slot = slot[:, None] + tl.arange(0, C)[None, :]
        ok = (tile < end)[:, None] & (slot < high)
        value = tl.load(weight + clip * clip_stride + slot, mask=ok, other=0.0)
        some = tl.max((value != 0).to(tl.int32), 1)
        tl.store(lists + clip * bound + listed + tl.cumsum(some, 0) - 1, tile - begin, mask=some != 0)
        listed += tl.sum(some, 0)
    tl.store(count + clip, listed)


@triton.jit(do_not_specialize=["N_a", "number", "skip", "room", "clip_stride", "bound"])
def frame_lists_kernel(
    weight, tiles, first_tile, bounds, lists, count, N_a, number, skip, room, clip_stride, bound,
    C: tl.constexpr, BLOCK: tl.constexpr = 64,
):  # fmt: skip
    """For C captions the tiles of frames of clips with a weight other than 0."""
    item = tl.program_id(0).to(tl.int64)
    low, high = slot_range(bounds, number, skip, room)
    slot = low + tl.program_id(0) * C + tl.arange(0, C)
    listed = 0
    total = tl.load(first_tile + N_a)
    for t0 in range(0, total, BLOCK):
        tile = t0 + tl.arange(0, BLOCK)
        clip = tl.load(tiles + tile * 4 + 2, mask=tile < total, other=0).to(tl.int64)
        ok = (tile < total)[:, None] & (slot < high)[None, :]
        value = tl.load(weight + clip[:, None] * clip_stride + slot[None, :], mask=ok, other=0.0)
        some = tl.max((value != 0).to(tl.int32), 1)
        tl.store(lists + item * bound + listed + tl.cumsum(some, 0) - 1, tile, mask=some != 0)
        listed += tl.sum(some, 0)
    tl.store(count + item, listed)


def pair_weights(grad: Tensor, frames: Frames, captions: Captions, pairs: bool) -> Weights:
    """The weights of all pairs from grad [N_a, N_t] or, for pairs, [N]."""
    clips, number = len(frames.start), captions.slots.shape[1]
    strides = (1, 0) if pairs else (number, 1)
    weight, peak = grad.new_empty(grad.shape), grad.new_empty(clips)
    weights_kernel[(clips,)](grad, frames.length, captions.slots, weight, peak, number, *strides, PAIRS=pairs)
    return Weights(weight, peak, *strides)


def active_text(weights: Weights, captions: Captions, kind: LengthClass, skip: int, room: int) -> Active:
    """The tiles of packed text for each clip, of slots `skip` to `skip + room` of a class."""
    clips, number = len(weights.peak), captions.slots.shape[1]
    out = captions.bounds.new_empty(clips, kind.tile_bound)
    count = captions.bounds.new_empty(clips)
    text_lists_kernel[(clips,)](
        weights.weight, captions.slots, captions.bounds, captions.tiles, out, count, number, kind.number, skip, room,
        weights.clip_stride, out.shape[1], C=kind.captions, LT=kind.tokens,
    )  # fmt: skip
    return Active(out, count)


def active_frames(
    weights: Weights, captions: Captions, tiles: FrameTiles, kind: LengthClass, skip: int, room: int
) -> Active:
    """The tiles of frames for each tile of captions, of slots `skip` to `skip + room` of a class."""
    items = triton.cdiv(min(room, kind.bound), kind.captions)
    out = captions.bounds.new_empty(items, tiles.bound)
    count = captions.bounds.new_empty(items)
    frame_lists_kernel[(items,)](
        weights.weight, tiles.table, tiles.first, captions.bounds, out, count, len(weights.peak), kind.number, skip,
        room, weights.clip_stride, tiles.bound, C=kind.captions,
    )  # fmt: skip
    return Active(out, count)
