"""Inputs to the max-mean gradients: a weight for each pair, and lists of the tiles that contain nonzero weights."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from atk.kernels.pack import Captions, Frames, FrameTiles, SlotGroup
from atk.kernels.tiles import (
    SLOT_CAPTION,
    SLOT_LENGTH,
    TILE_CLIP,
    TILE_FIELDS,
    slot_range,
    text_tile_range,
    tile_slot,
)

_SMALLEST = tl.constexpr(2.0**-126)  # normal float32


class Weights(NamedTuple):
    """peak * weight = grad / number of frames of the clip, 0 for empty clips and captions. Columns are slots."""

    weight: Tensor  # [N_a, N_t] float32; pairs: [N]. Magnitudes are below 2 if they are finite
    peak: Tensor  # [N_a] float32: for each clip the largest power of two that no magnitude falls short of, or 1
    clip_stride: int
    slot_stride: int  # 0 for pairs


class ActiveTiles(NamedTuple):
    """Lists of tiles to visit. The tiles of item k are `tiles[k, : count[k]]`."""

    tiles: Tensor  # [items, bound] int32
    count: Tensor  # [items] int32


@triton.jit(do_not_specialize=["N_t", "clip_stride", "slot_stride"])
def weights_kernel(
    grad, length, slots, weight, peak, N_t, clip_stride, slot_stride, PAIRS: tl.constexpr, BLOCK: tl.constexpr = 256
):
    """Computes the weights of one clip and their peak. One program per clip."""
    clip = tl.program_id(0)
    frames = tl.load(length + clip)
    row = clip.to(tl.int64) * clip_stride
    low, high = (clip, clip + 1) if PAIRS else (0, N_t)
    largest = tl.zeros((BLOCK,), tl.float32)
    unit = 1.0
    for store in tl.static_range(2):
        for s0 in range(low, high, BLOCK):
            slot = s0 + tl.arange(0, BLOCK)
            ok = slot < high
            caption = tl.load(slots + SLOT_CAPTION * N_t + slot, mask=ok, other=0)
            nonempty = (tl.load(slots + SLOT_LENGTH * N_t + slot, mask=ok, other=0) > 0) & (frames > 0)
            value = tl.load(grad + row + caption.to(tl.int64) * slot_stride, mask=ok & nonempty, other=0.0)
            value = tl.where(nonempty, value / tl.maximum(frames, 1).to(tl.float32), 0.0)
            if store == 1:
                tl.store(weight + row + slot.to(tl.int64) * slot_stride, value / unit, mask=ok)
            else:
                largest = tl.maximum(largest, tl.abs(value))
        if store == 0:
            top = tl.max(largest, 0)
            exponent = top.to(tl.int32, bitcast=True) & 0x7F800000  # of a float32, without sign and fraction
            unit = tl.maximum(exponent.to(tl.float32, bitcast=True), _SMALLEST)  # so that the division is exact
            unit = tl.where((top > 0) & (top < float("inf")), unit, 1.0)
    tl.store(peak + clip, unit)


@triton.jit(do_not_specialize=["N_t", "class_index", "offset", "size", "clip_stride", "bound"])
def text_lists_kernel(
    weight, slots, bounds, text_tiles, lists, count, N_t, class_index, offset, size, clip_stride, bound,
    C: tl.constexpr, LT: tl.constexpr, BLOCK: tl.constexpr = 64,
):  # fmt: skip
    """Lists, for one clip, the tiles of packed text with a nonzero weight. One program per clip.

    Tiles are numbered from the first tile of the selected slots.
    """
    clip = tl.program_id(0).to(tl.int64)
    low, high = slot_range(bounds, class_index, offset, size)
    begin, end = text_tile_range(slots, low, high, N_t, C * LT)
    listed = 0
    for t0 in range(begin, end, BLOCK):
        tile = t0 + tl.arange(0, BLOCK)
        slot, _ = tile_slot(text_tiles, tl.minimum(tile, end - 1), begin, low, C)
        slot = low + slot[:, None] + tl.arange(0, C)[None, :]
        ok = (tile < end)[:, None] & (slot < high)
        value = tl.load(weight + clip * clip_stride + slot, mask=ok, other=0.0)
        nonzero = tl.max((value != 0).to(tl.int32), 1)
        tl.store(lists + clip * bound + listed + tl.cumsum(nonzero, 0) - 1, tile - begin, mask=nonzero != 0)
        listed += tl.sum(nonzero, 0)
    tl.store(count + clip, listed)


@triton.jit(do_not_specialize=["N_a", "class_index", "offset", "size", "clip_stride", "bound"])
def frame_lists_kernel(
    weight, tiles, first_tile, bounds, lists, count, N_a, class_index, offset, size, clip_stride, bound,
    C: tl.constexpr, BLOCK: tl.constexpr = 64,
):  # fmt: skip
    """Lists, for C captions, the frame tiles of clips with a nonzero weight. One program per C captions."""
    item = tl.program_id(0).to(tl.int64)
    low, high = slot_range(bounds, class_index, offset, size)
    slot = low + tl.program_id(0) * C + tl.arange(0, C)
    listed = 0
    total = tl.load(first_tile + N_a)
    for t0 in range(0, total, BLOCK):
        tile = t0 + tl.arange(0, BLOCK)
        clip = tl.load(tiles + tile * TILE_FIELDS + TILE_CLIP, mask=tile < total, other=0).to(tl.int64)
        ok = (tile < total)[:, None] & (slot < high)[None, :]
        value = tl.load(weight + clip[:, None] * clip_stride + slot[None, :], mask=ok, other=0.0)
        nonzero = tl.max((value != 0).to(tl.int32), 1)
        tl.store(lists + item * bound + listed + tl.cumsum(nonzero, 0) - 1, tile, mask=nonzero != 0)
        listed += tl.sum(nonzero, 0)
    tl.store(count + item, listed)


def slot_weights(grad: Tensor, frames: Frames, captions: Captions, pairs: bool) -> Weights:
    """The weights of all pairs, with columns in slot order.

    Args:
        grad: [N_a, N_t] float32, contiguous; [N] for `pairs`. The gradient of the similarities.
        frames, captions: the packed inputs.
        pairs: whether only clip i and caption i are paired.
    """
    clips = frames.count
    N_t = captions.count
    clip_stride, slot_stride = (1, 0) if pairs else (N_t, 1)
    weight = grad.new_empty(grad.shape)
    peak = grad.new_empty(clips)
    weights_kernel[(clips,)](
        grad, frames.length, captions.slots, weight, peak, N_t, clip_stride, slot_stride, PAIRS=pairs
    )
    return Weights(weight, peak, clip_stride, slot_stride)


def active_text_tiles(weights: Weights, captions: Captions, group: SlotGroup) -> ActiveTiles:
    """For each clip, the tiles of packed text with a nonzero weight, among the slots of `group`."""
    clips = len(weights.peak)
    out = captions.bounds.new_empty(clips, group.length_class.tile_bound)
    count = captions.bounds.new_empty(clips)
    text_lists_kernel[(clips,)](
        weights.weight, captions.slots, captions.bounds, captions.tiles, out, count, captions.count,
        *group.range_arguments, weights.clip_stride, out.shape[1],
        C=group.length_class.captions, LT=group.length_class.tokens,
    )  # fmt: skip
    return ActiveTiles(out, count)


def active_frame_tiles(weights: Weights, captions: Captions, tiles: FrameTiles, group: SlotGroup) -> ActiveTiles:
    """For each tile of captions, the frame tiles with a nonzero weight, among the slots of `group`."""
    items = group.caption_tiles
    out = captions.bounds.new_empty(items, tiles.bound)
    count = captions.bounds.new_empty(items)
    frame_lists_kernel[(items,)](
        weights.weight, tiles.table, tiles.first, captions.bounds, out, count, len(weights.peak),
        *group.range_arguments, weights.clip_stride, tiles.bound, C=group.length_class.captions,
    )  # fmt: skip
    return ActiveTiles(out, count)
