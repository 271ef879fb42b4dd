"""Launch numbers of the Triton kernels: chosen by shape, dtype and GPU, without tuning at run time, so runs repeat.

The reasons name what was read from the compiled code (`kernels/compile.py`): registers, spills, shared memory.
"""

import importlib.util
import os
from dataclasses import dataclass

import torch

# Looked up once, here: torch.compile traces through the choice of a backend.
_HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Device:
    """What the choices depend on: the compute capability and the number of multiprocessors."""

    capability: tuple[int, int]
    multiprocessors: int

    @classmethod
    def of(cls, device: torch.device) -> "Device":
        """The properties of a GPU; for the CPU (the interpreter) those of a small A100."""
        if device.type == "cpu":
            return cls((8, 0), 4)
        properties = torch.cuda.get_device_properties(device)
        return cls((properties.major, properties.minor), properties.multi_processor_count)

    @property
    def has_wgmma(self) -> bool:
        """Warpgroup matrix instructions or newer, and 227 KiB of shared memory: data-centre Hopper and Blackwell."""
        return self.capability[0] in (9, 10)


@dataclass(frozen=True)
class Launch:
    """Tile sizes of one kernel: frames x (captions * tokens) x channels, its warps and pipeline stages.

    `stationary` (forward only): one caption tile serves the whole program and stays in shared memory.
    """

    frames: int
    captions: int
    tokens: int
    channels: int
    warps: int
    stages: int
    stationary: bool | None = None

    def meta(self, D: int) -> dict[str, int | bool]:
        """The kernel's compile-time arguments for `D` channels, `num_warps` and `num_stages` among them."""
        meta = {"BLOCK_A": self.frames, "C": self.captions, "LT": self.tokens, "BLOCK_D": self.channels}
        meta |= {"EVEN_D": D % self.channels == 0, "num_warps": self.warps, "num_stages": self.stages}
        return meta if self.stationary is None else meta | {"STATIONARY": self.stationary}


def unavailable(device_type: str) -> str | None:
    """None when the Triton kernels can run on tensors of this device type, else what is missing and how to get it."""
    if not _HAS_TRITON:
        return "triton is not installed; pip install 'audio-text-kernels[triton]'"
    if device_type == "cuda":
        return None
    if device_type != "cpu":
        return f"runs on CUDA tensors, not on {device_type}"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "runs on GPU tensors; on the CPU only in Triton's interpreter, with TRITON_INTERPRET=1 set at start"
    return None


def max_mean_launch(kernel: str, dtype: torch.dtype, L_t: int, D: int, device: Device) -> Launch:
    """Launch numbers of one max-mean kernel: `"forward"`, `"grad_audio"` or `"grad_text"`."""
    half = dtype != torch.float32
    width = 128 if half else 64  # 256 tokens of scores in half, or 128 in fp32, leave no registers for the maximum
    tokens = min(width, max(8, _next_power_of_two(L_t)))  # longer captions come in chunks: less padding than doubling
    captions = width // tokens
    channels = max(16, _next_power_of_two(D))
    aligned = D % 16 == 0  # else rows are loaded element by element, and their addresses take the registers
    if kernel != "forward":
        channels = min(max(32, channels), 128 if half and aligned else 64)  # twice as many spill
        if not half:
            return Launch(64, captions, tokens, channels, warps=8, stages=2)
        if device.has_wgmma:
            return Launch(128, captions, tokens, channels, warps=8, stages=3)
        # The weighted sum of grad_text needs two accumulators: 128 channels spill on sm_80.
        return Launch(64, captions, tokens, min(channels, 64 if kernel == "grad_text" else 128), warps=8, stages=3)
    if not half:
        # CUDA-core products keep whole operand rows in registers: 16 channels at a time.
        return Launch(64, captions, tokens, 16, warps=8, stages=3 if aligned else 2, stationary=False)
    if tokens >= L_t and aligned:
        if channels <= 128:
            # 80 KiB on Hopper: two programs share a multiprocessor, so one's maximum runs under the other's product.
            # One warp's matrix instructions hold their operands in registers too: eight warps there.
            return Launch(64, captions, tokens, channels, 4 if device.has_wgmma else 8, stages=3, stationary=True)
        if channels == 256 and tokens > 8 and device.has_wgmma:
            return Launch(128, captions, tokens, channels, warps=8, stages=2, stationary=True)  # 192 KiB
    # Both operands streamed: as large a tile as the registers take beside the running maximum of each caption.
    frames = 128 if device.has_wgmma and aligned else 64
    channels = min(channels, (64 if tokens > 8 else 32) if aligned else 16)
    return Launch(frames, captions, tokens, channels, warps=8, stages=3, stationary=False)


def clips_per_program(groups: int, N_a: int, frame_tiles: int, device: Device) -> int:
    """Clips that one forward program streams past its captions: few enough to fill the GPU several times over."""
    programs = 8 * device.multiprocessors  # four rounds of two a multiprocessor: the last, partial one costs little
    busy = -(-8 // frame_tiles)  # eight tiles at least, or loading the captions and filling the pipeline shows
    return min(N_a, max(busy, N_a * groups // programs))


def clip_parts(programs: int, N_a: int, device: Device) -> int:
    """Into how many parts the clips of `grad_text` are split when its `programs` alone would not fill the GPU.

    Each part needs a float32 copy of the gradient, at most 2 * multiprocessors tiles in all.
    """
    return max(1, min(N_a, 2 * device.multiprocessors // programs))


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
