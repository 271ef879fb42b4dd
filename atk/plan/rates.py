"""Speed of a device: from its datasheet, or measured."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

MATMUL_SIZE = 1024  # side of the matrices whose product measures a CPU
COPY_BYTES = 64 << 20  # size of the copy that measures a CPU


class Device(NamedTuple):
    """Peak rates of a GPU from its datasheet, without sparsity.

    Attributes:
        bf16: TFLOP/s in bfloat16.
        fp32: TFLOP/s in float32.
        bandwidth: GB/s of memory.
        interconnect: GB/s of the links to other GPUs, in one direction.
    """

    bf16: float
    fp32: float
    bandwidth: float
    interconnect: float


DEVICES = {
    "a100": Device(312, 19.5, 2039, 300),
    "h100": Device(989, 67, 3350, 450),
    "h200": Device(989, 67, 4800, 450),
    "l40s": Device(362, 91.6, 864, 32),
}
GPU_EFFICIENCY = Device(0.5, 0.7, 0.7, 0.6)  # assumed share of these peaks
GPU_LAUNCH = 6e-6  # seconds between two kernels launched from Python
CPU_EFFICIENCY = 0.8  # assumed share of the measured rate of a large product
CPU_INTERCONNECT = 1.25  # GB/s: 10-gigabit Ethernet
CPU_LAUNCH = 4e-6


@dataclass(frozen=True)
class Rates:
    """The rates that a plan assumes.

    Attributes:
        matmul: FLOP/s of matrix products in the dtype of the activations.
        single: FLOP/s of matrix products in float32.
        bandwidth: bytes/s of memory, for reads and writes alike.
        random: random numbers/s, for dropout and noise.
        interconnect: bytes/s that a rank receives.
        launch: minimum seconds per operation.
    """

    matmul: float
    single: float
    bandwidth: float
    random: float
    interconnect: float
    launch: float

    @classmethod
    def of(cls, name: str, bf16: bool) -> "Rates":
        """The rates of a GPU by name, or of this CPU, which are measured in about a second.

        Args:
            name: "cpu", or a string that contains the name of a known GPU, such as "NVIDIA H100 80GB HBM3".
            bf16: whether activations are in bfloat16.

        Raises:
            ValueError: the name is unknown.
        """
        if name == "cpu":
            single = _matmul_rate(torch.float32)
            matmul = _matmul_rate(torch.bfloat16) if bf16 else single
            return cls(matmul, single, _copy_rate(), _random_rate(), CPU_INTERCONNECT * 1e9, CPU_LAUNCH)
        device = next((peaks for known, peaks in DEVICES.items() if known in name.lower()), None)
        if device is None:
            raise ValueError(
                f"device must be cpu or one of {', '.join(DEVICES)}, got {name!r}; for other devices, give "
                "--matmul-tflops, --bandwidth-gb, and --interconnect-gb"
            )
        peaks = Device(*(peak * share for peak, share in zip(device, GPU_EFFICIENCY, strict=True)))
        matmul = peaks.bf16 if bf16 else peaks.fp32
        return cls.of_gpu(matmul, peaks.fp32, peaks.bandwidth, peaks.interconnect)

    @classmethod
    def of_gpu(cls, matmul: float, single: float, bandwidth: float, interconnect: float) -> "Rates":
        """The rates of a GPU, from TFLOP/s and GB/s; random numbers are bounded by memory bandwidth only."""
        return cls(matmul * 1e12, single * 1e12, bandwidth * 1e9, math.inf, interconnect * 1e9, GPU_LAUNCH)


def _matmul_rate(dtype: torch.dtype) -> float:
    left, right = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    return CPU_EFFICIENCY * 2 * MATMUL_SIZE**3 / _fastest(partial(torch.matmul, left, right))


def _copy_rate() -> float:
    source = torch.ones(COPY_BYTES // 4)
    return 2 * COPY_BYTES / _fastest(partial(torch.empty_like(source).copy_, source))


def _random_rate() -> float:
    values = torch.empty(1 << 20)
    return values.numel() / _fastest(partial(values.bernoulli_, 0.5))


def _fastest(call: Callable[[], object], rounds: int = 9) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
