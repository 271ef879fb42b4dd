"""How fast a device is: by its datasheet, or measured."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

MATMUL_SIZE, COPY_BYTES = 1024, 64 << 20  # of the measurement of a CPU


class Device(NamedTuple):
    """Peaks of a GPU's datasheet, without sparsity: TFLOP/s in bfloat16 and in float32, GB/s of memory and of links."""

    bf16: float
    fp32: float
    bandwidth: float
    interconnect: float  # one direction


DEVICES = {
    "a100": Device(312, 19.5, 2039, 300),
    "h100": Device(989, 67, 3350, 450),
    "h200": Device(989, 67, 4800, 450),
    "l40s": Device(362, 91.6, 864, 32),
}
GPU_EFFICIENCY = Device(0.5, 0.7, 0.7, 0.6)  # share of these peaks that is counted on
GPU_LAUNCH = 6e-6  # seconds between two kernels that Python starts
CPU_EFFICIENCY = 0.8  # share of a large product's rate
CPU_INTERCONNECT = 1.25  # GB/s: ten-gigabit Ethernet
CPU_LAUNCH = 4e-6


@dataclass(frozen=True)
class Rates:
    """What is counted on.

    Attributes:
        matmul: FLOP/s of matrix products in the type of the activations.
        single: the same in float32.
        bandwidth: bytes/s of memory, read and written alike.
        random: random numbers/s, for dropout and noise.
        interconnect: bytes/s that a rank receives.
        launch: least seconds for an operation.
    """

    matmul: float
    single: float
    bandwidth: float
    random: float
    interconnect: float
    launch: float

    @classmethod
    def of(cls, name: str, bf16: bool) -> "Rates":
        """Of a GPU by its name, or of this CPU, measured in a second.

        Raises:
            ValueError: the name is unknown.
        """
        if name == "cpu":
            single = _matmul_rate(torch.float32)
            matmul = _matmul_rate(torch.bfloat16) if bf16 else single
            return cls(matmul, single, _copy_rate(), _random_rate(), CPU_INTERCONNECT * 1e9, CPU_LAUNCH)
        found = next((peaks for known, peaks in DEVICES.items() if known in name.lower()), None)
        if found is None:
            raise ValueError(
                f"device must be cpu or one of {', '.join(DEVICES)}, or come with --matmul-tflops, --bandwidth-gb and "
                f"--interconnect-gb, got {name!r}"
            )
        peaks = Device(*(peak * share for peak, share in zip(found, GPU_EFFICIENCY, strict=True)))
        matmul = peaks.bf16 if bf16 else peaks.fp32
        return cls.of_gpu(matmul, peaks.fp32, peaks.bandwidth, peaks.interconnect)

    @classmethod
    def of_gpu(cls, matmul: float, single: float, bandwidth: float, interconnect: float) -> "Rates":
        """In TFLOP/s and GB/s; random numbers come as fast as they are written."""
        return cls(matmul * 1e12, single * 1e12, bandwidth * 1e9, math.inf, interconnect * 1e9, GPU_LAUNCH)


def _matmul_rate(dtype: torch.dtype) -> float:
    sides = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    return CPU_EFFICIENCY * 2 * MATMUL_SIZE**3 / _fastest(partial(torch.matmul, *sides))


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
