"""Launch configurations of the Triton kernels, chosen by shape, dtype and GPU.

There is no tuning at run time, so results are reproducible. A table of tuned configurations (`launch_table.py`)
overrides the heuristics. The comments cite registers, spills and shared memory of the compiled code (`compile.py`). One
configuration serves every version of Triton; some versions need more registers than others for the same kernel.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch

from atk.kernels import launch_table

# For kernels that raise e to a product minus a rounded log-sum-exp: in a multiply-add the product would be exact, and
# its rounding error would no longer cancel with that of the log-sum-exp. Also for kernels in which several lanes
# compute the same sum of products: contracted, these sums could differ.
UNFUSED = {"enable_fp_fusion": False}


def _options(warps: int, stages: int, registers: int | None) -> dict[str, int]:
    """Options of the compiler. Triton up to 3.9 fuses multiply-adds by default."""
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return options if registers is None else options | {"maxnreg": registers}


@dataclass(frozen=True)
class Device:
    """The device properties that launch configurations depend on."""

    capability: tuple[int, int]
    multiprocessors: int
    name: str = "unknown"

    @classmethod
    @cache
    def of(cls, device: torch.device) -> "Device":
        """The properties of a GPU. The CPU (the interpreter) counts as an A100 with a single multiprocessor."""
        if device.type == "cpu":
            return cls((8, 0), 1, "interpreter")
        properties = torch.cuda.get_device_properties(device)
        return cls((properties.major, properties.minor), properties.multi_processor_count, properties.name)

    @property
    def has_wgmma(self) -> bool:
        """Data center Hopper and Blackwell: warpgroup matrix instructions or newer, and 227 KiB of shared memory."""
        return self.capability[0] in (9, 10) and torch.version.hip is None  # AMD counts differently

    @property
    def has_tensor_memory(self) -> bool:
        """Data center Blackwell: products accumulate in a memory of their own."""
        return self.has_wgmma and self.capability[0] == 10

    @property
    def has_few_threads(self) -> bool:
        """At most 1536 threads on a multiprocessor, unlike data center GPUs: ptxas then aims at other registers."""
        return self.capability in ((8, 6), (8, 7), (8, 9)) or self.is_desktop_blackwell

    @property
    def is_desktop_blackwell(self) -> bool:
        """GeForce and RTX PRO Blackwell: the instructions of Ampere."""
        return self.capability[0] == 12


@dataclass(frozen=True)
class Launch:
    """Launch configuration of a max-mean kernel: tile size (frames x channels), warps and pipeline stages.

    `stationary` (forward only): one tile of captions stays in shared memory for the whole program.
    `registers`: the maximum per thread; None leaves it to ptxas, which may aim at fewer and spill.
    """

    frames: int
    channels: int
    warps: int
    stages: int
    stationary: bool | None = None
    registers: int | None = None

    def winners_per_frame(self, captions: int) -> int:
        """Winner indices that a gradient kernel copies per frame: a multiple of `captions`, those in a tile.

        Each thread copies at least 4 bytes, the minimum for an asynchronous copy in Triton.
        """
        return max(captions, 128 * self.warps // self.frames)

    def meta(self) -> dict[str, int | bool]:
        """The compile-time arguments of the kernel, including the options of the compiler."""
        tile = {"BLOCK_A": self.frames, "BLOCK_D": self.channels}
        if self.stationary is not None:
            tile["STATIONARY"] = self.stationary
        return tile | _options(self.warps, self.stages, self.registers)


@dataclass(frozen=True)
class TileLaunch:
    """Launch configuration of a kernel of the cross-attention difference, InfoNCE, or the sigmoid loss.

    A program works on `rows` rows in tiles of `columns` columns, which are output channels for `gate`. The kernels of
    the gate and of the logits' gradient compute one tile per program. Products take `channels` channels at a time.
    `registers`: see `Launch`.
    """

    rows: int
    columns: int
    channels: int
    warps: int
    stages: int
    registers: int | None = None

    def meta(self) -> dict[str, int]:
        """The compile-time arguments of the kernel, including the options of the compiler."""
        tile = {"ROWS": self.rows, "COLUMNS": self.columns, "CHANNELS": self.channels}
        return tile | _options(self.warps, self.stages, self.registers)


def max_mean_launch(
    kernel: str, dtype: torch.dtype, tokens: int, chunked: bool, D: int, device: Device, winners: bool = True
) -> Launch:
    """The launch configuration of a max-mean kernel, from the launch table or else from heuristics.

    Args:
        kernel: "forward", "grad_audio" or "grad_text".
        dtype: of the embeddings.
        tokens: largest caption length of the length class.
        chunked: whether captions can be longer than that, and are processed in chunks of `tokens`.
        D: channels of packed rows.
        device: the GPU.
        winners: whether a forward writes winner indices.

    Raises:
        ValueError: the launch table cannot be read or has an invalid entry.
    """
    return _max_mean_launch(launch_table.path(), kernel, dtype, tokens, chunked, D, device, winners)


@lru_cache(maxsize=1024)
def _max_mean_launch(
    table: str | None,
    kernel: str,
    dtype: torch.dtype,
    tokens: int,
    chunked: bool,
    D: int,
    device: Device,
    winners: bool,
) -> Launch:
    tuned = launch_table.lookup(table, device.name, kernel, str(dtype).removeprefix("torch."), tokens, chunked, D)
    return _heuristic(kernel, dtype, tokens, chunked, D, device, winners) if tuned is None else Launch(**tuned)


def _heuristic(
    kernel: str, dtype: torch.dtype, tokens: int, chunked: bool, D: int, device: Device, winners: bool
) -> Launch:
    divisor = D & -D  # the largest power of two that divides D
    if kernel == "forward":
        return _forward_heuristic(dtype, tokens, chunked, D, divisor, device, winners)
    if kernel == "grad_audio" and gathers_winners(dtype, tokens, device):
        # Few registers, because many programs hide the latency of loads that do not run ahead; four warps spill.
        return Launch(64, min(divisor, 32 if dtype == torch.float32 else 64), warps=8, stages=3)
    if dtype == torch.float32:
        if kernel == "grad_audio":
            return Launch(64, min(divisor, 32), warps=8, stages=3)  # twice as many channels spill
        # The frames are the inner dimension of the product, whose operands are in registers: 64 spill.
        return Launch(32, min(divisor, 64), warps=8, stages=3)
    if device.has_wgmma:
        return Launch(128, min(divisor, 128), warps=8, stages=3)  # 256 channels spill
    # The weighted sum of grad_text needs two accumulators: 128 channels spill on sm_80.
    return Launch(64, min(divisor, 64 if kernel == "grad_text" else 128), warps=8, stages=3)


def _forward_heuristic(
    dtype: torch.dtype, tokens: int, chunked: bool, D: int, divisor: int, device: Device, winners: bool
) -> Launch:
    if dtype == torch.float32:
        # CUDA-core products keep whole operand rows in registers: 16 channels at a time. Four warps load less from
        # shared memory than eight. Three stages spill on sm_90 without winners (Triton 3.4, 3.6), two in other cases.
        if device.has_wgmma:
            eight_warps = device.has_tensor_memory and tokens > 32
        else:
            eight_warps = device.has_few_threads or tokens <= 8
        if eight_warps:
            # Four warps spill with Triton 3.4, 3.5, 3.6, or 3.7, on sm_80 with fewer than 255 registers.
            return Launch(64, 16, warps=8, stages=3, stationary=False, registers=128)
        stages = 2 if device.has_wgmma and not winners and tokens <= 32 else 3
        return Launch(64, 16, warps=4, stages=stages, stationary=False)
    registers = 255 if device.has_tensor_memory else None
    if divisor == D and not chunked:
        if D <= 128:
            # 81 KiB: two programs share a multiprocessor, so the maximum of one overlaps with the product of another.
            # Matrix instructions of one warp hold operands in registers too: eight warps, but 32 channels then spill.
            warps = 4 if device.has_wgmma or D == 32 else 8
            return Launch(64, D, warps, stages=3, stationary=True, registers=registers)
        if D == 256 and tokens > 8 and device.has_wgmma:
            # 160 KiB; 128 frames leave room for two stages. Four warps read shared memory less, and spill (Triton 3.9).
            warps = 4 if device.has_tensor_memory else 8
            return Launch(64, D, warps, stages=3, stationary=True, registers=registers)
    # Stream both operands, in the largest tile that leaves registers for the running maximum of each caption.
    channels = min(divisor, 64 if tokens > 8 else 32)
    frames = 128 if device.has_wgmma else 64
    return Launch(frames, channels, warps=8, stages=3, stationary=False, registers=registers)


def gathers_winners(dtype: torch.dtype, tokens: int, device: Device) -> bool:
    """Whether `grad_audio_kernel` gathers winners, at the same cost for any length, instead of a one-hot product."""
    return tokens >= 16 if dtype == torch.float32 else tokens >= 64 and not device.has_wgmma


def sigmoid_launch(dtype: torch.dtype, D: int, device: Device) -> TileLaunch:
    """The launch configuration of `sigmoid_loss_kernel` and `sigmoid_grad_kernel` for packed rows of D channels."""
    if dtype == torch.float32:
        # CUDA-core products keep whole operand rows in registers, so take 16 channels at a time; three stages spill.
        return TileLaunch(64, 64, 16, warps=8, stages=2)
    return TileLaunch(128, 128, min(D, 64) if device.has_wgmma else 32, warps=8, stages=3)


def info_nce_launch(dtype: torch.dtype, D: int, device: Device) -> TileLaunch:
    """The launch configuration of `lse_kernel` and `grad_logits_kernel` for packed rows of D channels."""
    # Tiles twice as wide spill: the sums in both directions need as many registers as the products do. From tensor
    # memory a thread gets one row, and spills if it also holds the values of 64 columns.
    launch = sigmoid_launch(dtype, D, device)
    if dtype == torch.float32 and device.is_desktop_blackwell:
        return replace(launch, registers=255)  # without a limit ptxas of Triton 3.7 aims at 128, and spills
    return replace(launch, columns=64) if dtype != torch.float32 and device.has_tensor_memory else launch


def merge_launch() -> dict[str, int]:
    """Compile-time arguments of `merge_kernel`: 32 loads in flight hide the latency of a long column of parts."""
    return {"PARTS": 32, "SIZE": 64}


def column_span(row_tiles: int, column_tiles: int, device: Device) -> int:
    """The number of caption tiles that a program of `lse_kernel` streams, given the clip and caption tile counts."""
    parts = max(1, 8 * device.multiprocessors // row_tiles)  # enough waves that a partial last one costs little
    return max(1, column_tiles // min(parts, column_tiles))


def parts_of_frames(caption_tiles: int, N_a: int, frame_tiles: int, device: Device) -> int:
    """The number of parts the N_a clips are split into for `forward_kernel`, given bounds on the numbers of tiles."""
    programs = 16 * device.multiprocessors  # enough waves that a partial last one costs little
    max_parts = max(1, frame_tiles // 8)  # eight tiles or more amortize loading captions and filling the pipeline
    return max(1, min(N_a, max_parts, programs // caption_tiles))


def parts_of_sum(tiles: int, N_a: int, device: Device) -> int:
    """The number of parts the frames are split into for `grad_text_kernel`, each with a float32 copy of the gradient.

    More than one only if the `tiles` alone do not fill the GPU.
    """
    return max(1, min(N_a, 4 * device.multiprocessors // tiles))


def on_device(device: torch.device) -> AbstractContextManager:
    """Makes the device of the tensors current, because Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def cdiv(n: int, size: int) -> int:
    """n / size, rounded up. Triton's function of this name costs the host ten times as much."""
    return -(-n // size)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()
