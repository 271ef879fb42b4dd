"""Launch configurations of the kernels of the cross-attention difference; see `launch.py`."""

from typing import TypeAlias

import torch

from atk.kernels.launch import Device, TileLaunch, next_power_of_two

MAX_HEAD_WIDTH = 256  # channels of an attention head; wider accumulators leave no registers

# {kernel: {largest head width: (rows, columns, warps, stages)}}: the largest tiles that do not spill, with or without a
# mask. With four warps two or three programs share a multiprocessor, and the softmax of one overlaps with the products
# of another.
_AttentionTiles: TypeAlias = dict[str, dict[int, tuple[int, int, int, int]]]
_ATTENTION_HOPPER: _AttentionTiles = {
    "attend": {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 64, 8, 3)},
    "grad_query": {64: (64, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 3)},
    "grad_key": {64: (64, 64, 4, 3), 128: (64, 64, 8, 3), 256: (64, 32, 8, 2)},
}
# Also used with 99 KiB of shared memory: compute capabilities 8.6, 8.9 and 12.
_ATTENTION_AMPERE: _AttentionTiles = {
    "attend": {64: (64, 64, 4, 3), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)},
    "grad_query": {64: (64, 64, 4, 3), 128: (64, 64, 8, 2), 256: (64, 16, 8, 2)},
    "grad_key": {32: (64, 64, 4, 3), 64: (128, 32, 8, 3), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2)},
}
_ATTENTION_FLOAT32: _AttentionTiles = {
    "attend": {256: (32, 32, 8, 2)},
    "grad_query": {128: (32, 32, 8, 2), 256: (32, 16, 8, 2)},
    "grad_key": {32: (16, 16, 8, 2), 64: (64, 16, 8, 2), 256: (16, 16, 8, 2)},
}
# On compute capability 12, 64 rows of the gradient of queries spill with Triton 3.4, and 64 rows of that of keys in
# float32 with 3.4 and 3.6.
_ATTENTION_DESKTOP_BLACKWELL: _AttentionTiles = {
    **_ATTENTION_AMPERE,
    "grad_query": {**_ATTENTION_AMPERE["grad_query"], 64: (128, 64, 8, 3)},
}
_ATTENTION_DESKTOP_BLACKWELL_FLOAT32: _AttentionTiles = {
    **_ATTENTION_FLOAT32,
    "grad_key": {**_ATTENTION_FLOAT32["grad_key"], 64: (32, 16, 4, 2)},
}


def head_channels(width: int) -> int:
    """Channels that an attention head of `width` channels is padded to."""
    return max(16, next_power_of_two(width))


def _attention_tiles(half: bool, device: Device) -> _AttentionTiles:
    if device.is_desktop_blackwell:
        return _ATTENTION_DESKTOP_BLACKWELL if half else _ATTENTION_DESKTOP_BLACKWELL_FLOAT32
    if not half:
        return _ATTENTION_FLOAT32
    return _ATTENTION_HOPPER if device.has_wgmma else _ATTENTION_AMPERE


def cross_attention_launch(kernel: str, dtype: torch.dtype, D: int, heads: int, device: Device) -> TileLaunch:
    """The launch configuration of "attend", "grad_query", "grad_key" or "gate" for D channels in `heads` heads."""
    half = dtype != torch.float32
    if kernel == "gate":
        if half and D % 16 == 0:
            return TileLaunch(128, 128, 64, warps=8, stages=3)
        # Unaligned rows need an address per element. For float32 see `_forward_heuristic` in `launch.py`.
        return TileLaunch(64, 64, 32, warps=8, stages=3) if half else TileLaunch(64, 64, 16, warps=4, stages=3)
    head = head_channels(D // heads)
    tiles = _attention_tiles(half, device)[kernel]
    rows, columns, warps, stages = next(tile for limit, tile in tiles.items() if head <= limit)
    # CUDA-core products keep whole operand rows in registers, so take 16 channels at a time.
    # Without a limit ptxas of Triton 3.7 and 3.8 aims at 80 or 64 registers on some GPUs, and spills.
    limited = kernel == "attend" and not half and (device.has_few_threads or device.has_tensor_memory)
    registers = 128 if limited else None
    return TileLaunch(rows, columns, head if half else 16, warps, stages, registers)


def key_end_launch() -> dict[str, int]:
    """Compile-time arguments of `key_end_kernel`."""
    return {"SIZE": 1024}


def pointwise_launch() -> dict[str, int]:
    """Compile-time arguments of `gate_backward_kernel`: in half precision, 16 bytes per thread and tensor."""
    return {"SIZE": 1024}
