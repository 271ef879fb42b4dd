"""Launch numbers of the Triton kernels: chosen by shape, dtype and GPU, without tuning at run time, so runs repeat.

A table of measured numbers (`launch_table.py`) overrides the heuristics here.

The reasons name what was read from the compiled code (`kernels/compile.py`): registers, spills, shared memory.
"""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from atk.kernels.launch_table import find

# Looked up once, here: torch.compile traces through the choice of a backend.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
MAX_HEAD_WIDTH = 256  # channels of an attention head: the accumulators of wider ones leave no registers
_OLDEST = (8, 0)  # compute capability: bfloat16 matrix instructions and asynchronous copies


@dataclass(frozen=True)
class Device:
    """What the choices depend on: compute capability, number of multiprocessors, name."""

    capability: tuple[int, int]
    multiprocessors: int
    name: str = "unknown"

    @classmethod
    def of(cls, device: torch.device) -> "Device":
        """The properties of a GPU; for the CPU (the interpreter) those of a very small A100."""
        if device.type == "cpu":
            return cls((8, 0), 1, "interpreter")
        properties = torch.cuda.get_device_properties(device)
        return cls((properties.major, properties.minor), properties.multi_processor_count, properties.name)

    @property
    def has_wgmma(self) -> bool:
        """Warpgroup matrix instructions or newer, and 227 KiB of shared memory: data-centre Hopper and Blackwell."""
        return self.capability[0] in (9, 10)


@dataclass(frozen=True)
class Launch:
    """Tile sizes of one kernel: frames x channels, its warps and pipeline stages.

    `stationary` (forward only): one caption tile serves the whole program and stays in shared memory.
    """

    frames: int
    channels: int
    warps: int
    stages: int
    stationary: bool | None = None

    def meta(self) -> dict[str, int | bool]:
        """The kernel's compile-time arguments, `num_warps` and `num_stages` among them."""
        meta = {"BLOCK_A": self.frames, "BLOCK_D": self.channels}
        meta |= {"num_warps": self.warps, "num_stages": self.stages}
        return meta if self.stationary is None else meta | {"STATIONARY": self.stationary}


@dataclass(frozen=True)
class TileLaunch:
    """Tile sizes of one kernel of the cross-attention difference or of InfoNCE, its warps and pipeline stages.

    `rows`: what a program owns; `columns`: what it streams (`gate`: output channels); `channels`: how many a product
    takes at a time.
    """

    rows: int
    columns: int
    channels: int
    warps: int
    stages: int

    def meta(self) -> dict[str, int]:
        """The kernel's compile-time arguments, `num_warps` and `num_stages` among them."""
        meta = {"ROWS": self.rows, "COLUMNS": self.columns, "CHANNELS": self.channels}
        return meta | {"num_warps": self.warps, "num_stages": self.stages}


# Rows, columns, warps and stages for heads of up to so many channels: the largest tiles that spill no registers, in
# float32, bfloat16 and float16, with a mask or without. Four warps where two or three programs then share a
# multiprocessor: one's softmax runs under another's products.
_ATTENTION_HOPPER = {
    "attend": {64: (128, 64, 4, 3), 128: (128, 64, 8, 2), 256: (64, 64, 8, 2)},
    "grad_query": {64: (64, 64, 4, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)},
    "grad_key": {64: (64, 64, 4, 3), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)},
}
_ATTENTION_AMPERE = {  # they serve GPUs with 99 KiB of shared memory too: compute capabilities 8.6, 8.9 and 12
    "attend": {64: (64, 64, 4, 3), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)},
    "grad_query": {64: (64, 64, 4, 3), 128: (64, 64, 8, 2), 256: (64, 16, 8, 2)},
    "grad_key": {32: (64, 64, 4, 3), 64: (128, 32, 8, 3), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2)},
}
_ATTENTION_FLOAT = {
    "attend": {256: (32, 32, 8, 2)},
    "grad_query": {128: (32, 32, 8, 2), 256: (32, 16, 8, 2)},
    "grad_key": {32: (16, 16, 8, 2), 64: (64, 16, 8, 2), 256: (16, 16, 8, 2)},
}


def unavailable(device_type: str) -> str | None:
    """None when the Triton kernels can run on tensors of this device type, else what is missing and how to get it."""
    if not _HAS_TRITON:
        return "triton is not installed; pip install 'audio-text-kernels[triton]'"
    if device_type == "cuda":
        return _too_old()
    if device_type != "cpu":
        return f"runs on CUDA tensors, not on {device_type}"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "runs on GPU tensors; on the CPU only in Triton's interpreter, with TRITON_INTERPRET=1 set at start"
    return None


@torch.compiler.assume_constant_result  # torch.compile traces through the choice of a backend
def _too_old() -> str | None:
    if not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) >= _OLDEST:
        return None
    return f"needs a GPU of compute capability 8.0 or newer, this one has {major}.{minor}"


def tile_width(dtype: torch.dtype) -> int:
    """Rows of a tile of packed text: twice as many scores leave no registers for the maximum."""
    return 64 if dtype == torch.float32 else 128


def packed_width(D: int) -> int:
    """Channels of packed rows, zeros behind the D given: 32 or a multiple of 64, so tiles are whole and aligned."""
    return 32 if D <= 32 else D + -D % 64


def max_mean_launch(kernel: str, dtype: torch.dtype, tokens: int, chunked: bool, D: int, device: Device) -> Launch:
    """Launch numbers of `"forward"`, `"grad_audio"` or `"grad_text"` for captions of up to `tokens` tokens.

    `chunked`: longer captions, in chunks of `tokens`; D is that of packed rows.

    Raises:
        ValueError: the table of measured numbers cannot be used.
    """
    measured = find(device.name, kernel, str(dtype).removeprefix("torch."), tokens, chunked, D)
    return _heuristic(kernel, dtype, tokens, chunked, D, device) if measured is None else Launch(**measured)


def _heuristic(kernel: str, dtype: torch.dtype, tokens: int, chunked: bool, D: int, device: Device) -> Launch:
    half = dtype != torch.float32
    whole = D & -D  # the largest tile of channels that divides D
    if kernel != "forward":
        channels = min(whole, 128 if half else 64)  # twice as many spill
        if not half:
            return Launch(64, channels, warps=8, stages=3)
        if device.has_wgmma:
            return Launch(128, channels, warps=8, stages=3)
        # The weighted sum of grad_text needs two accumulators: 128 channels spill on sm_80.
        # So do eight warps of grad_audio with 16 captions a tile and 64 channels: ptxas aims at 128 registers.
        channels = min(channels, 64 if kernel == "grad_text" else 128)
        spills = kernel == "grad_audio" and tokens == 8 and channels == 64
        return Launch(64, channels, 4 if spills else 8, stages=3)
    if not half:
        # CUDA-core products keep whole operand rows in registers: 16 channels at a time.
        return Launch(64, 16, warps=8, stages=3, stationary=False)
    if whole == D and not chunked:
        if D <= 128:
            # 64 KiB on Hopper: three programs share a multiprocessor, so one's maximum runs under another's product.
            # One warp's matrix instructions hold their operands in registers too: eight warps there.
            return Launch(64, D, 4 if device.has_wgmma else 8, stages=3, stationary=True)
        if D == 256 and tokens > 8 and device.has_wgmma:
            return Launch(128, D, warps=8, stages=2, stationary=True)  # 192 KiB
    # Both operands streamed: as large a tile as the registers take beside the running maximum of each caption.
    channels = min(whole, 64 if tokens > 8 else 32)
    return Launch(128 if device.has_wgmma else 64, channels, warps=8, stages=3, stationary=False)


def head_channels(width: int) -> int:
    """Channels that a head of `width` is padded to."""
    return max(16, next_power_of_two(width))


def cross_attention_launch(kernel: str, dtype: torch.dtype, D: int, heads: int, device: Device) -> TileLaunch:
    """Launch numbers of `"attend"`, `"grad_query"`, `"grad_key"` or `"gate"` for `heads` of D / heads channels."""
    half = dtype != torch.float32
    if kernel == "gate":
        if half and D % 16 == 0:
            return TileLaunch(128, 128, 64, warps=8, stages=3)
        # Rows that are not aligned take an address for each element, in registers.
        return TileLaunch(64, 64, 32 if half else 16, warps=8, stages=3)
    head = head_channels(D // heads)
    numbers = _ATTENTION_FLOAT if not half else _ATTENTION_HOPPER if device.has_wgmma else _ATTENTION_AMPERE
    rows, columns, warps, stages = next(tile for limit, tile in numbers[kernel].items() if head <= limit)
    # CUDA-core products keep whole operand rows in registers: 16 channels at a time.
    return TileLaunch(rows, columns, head if half else 16, warps, stages)


def key_end_launch() -> dict[str, int]:
    """Compile-time arguments of `key_end`."""
    return {"SIZE": 1024}


def pointwise_launch() -> dict[str, int]:
    """Compile-time arguments of `gate_backward`: a vector of 16 bytes of half precision a thread and tensor."""
    return {"SIZE": 1024}


def info_nce_launch(dtype: torch.dtype, D: int, device: Device) -> TileLaunch:
    """Launch numbers of the kernels of InfoNCE that multiply, `"lse"` and `"grad_logits"`, for packed rows."""
    if dtype == torch.float32:
        # CUDA-core products keep whole operand rows in registers: 16 channels at a time.
        return TileLaunch(64, 64, 16, warps=8, stages=3)
    # Twice as wide spills: the sums of both directions need as many registers again as the products.
    return TileLaunch(128, 128, min(D, 64) if device.has_wgmma else 32, warps=8, stages=3)


def merge_launch() -> dict[str, int]:
    """Compile-time arguments of `merge`: 32 loads in flight, or a long column of parts is all latency."""
    return {"PARTS": 32, "SIZE": 64}


def column_span(row_tiles: int, column_tiles: int, device: Device) -> int:
    """How many tiles of captions a program of `lse` streams, given the tiles of both sides."""
    parts = max(1, 8 * device.multiprocessors // row_tiles)  # rounds enough that the last, partial one costs little
    return max(1, column_tiles // min(parts, column_tiles))


def parts_of_frames(caption_tiles: int, N_a: int, frame_tiles: int, device: Device) -> int:
    """Into how many parts the clips are split among forward programs, given bounds on the tiles of both sides."""
    programs = 16 * device.multiprocessors  # rounds enough that the last, partial one costs little
    busy = max(1, frame_tiles // 8)  # eight tiles at least, or loading the captions and filling the pipeline shows
    return max(1, min(N_a, busy, programs // caption_tiles))


def parts_of_sum(tiles: int, N_a: int, device: Device) -> int:
    """Into how many parts the frames of `grad_text` are split when its `tiles` alone would not fill the GPU.

    Each part needs a float32 copy of the gradient, 4 * multiprocessors tiles in all.
    """
    return max(1, min(N_a, 4 * device.multiprocessors // tiles))


def on_device(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()
