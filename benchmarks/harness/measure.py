"""Times callables, and reports their error and peak memory.

Each provider's result is first compared with a float64 reference; an incorrect provider is reported but not timed. The
others take turns in one process. Each call gets a different copy of the inputs, and the copies together exceed the
cache. A short call is repeated at once, and only the second one is timed: the first has to fetch code that the
providers before it drove out of the cache. A provider that is missing, fails, or runs out of memory keeps its row. The
last row is the hardware limit: the same work at the machine's matmul and copy rates.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from atk.bench.accuracy import Tolerance, largest_error, mistake
from atk.bench.memory import ceiling, free_bytes, peak_bytes

BEYOND_CACHE = 256 << 20  # bytes of distinct inputs, several times a last-level cache
SHORT_MS = 5.0  # shorter calls are repeated at once, and only the second one is timed
MATMUL_SIZE = {"cuda": 8192, "cpu": 2048}  # large enough to reach the peak rate
OK, WRONG, OUT_OF_MEMORY, FAILED, MISSING = "ok", "wrong", "out of memory", "failed", "missing"


@dataclass(frozen=True)
class Provider:
    """An implementation to time: `call` takes one set of inputs and returns the tensors to compare."""

    name: str
    call: Callable[..., Sequence[Tensor]]
    tolerance: Tolerance = field(default_factory=Tolerance)
    needs_bytes: int = 0  # known lower bound; the provider is not tried if less memory is free
    missing: str | None = None  # why the provider cannot run here


@dataclass(frozen=True)
class Case:
    """One table: a task at one shape and dtype, and the providers that compute it."""

    title: str
    inputs: tuple[Tensor, ...]
    truth: Callable[[], Sequence[Tensor]]  # float64 results: the value, then the gradients
    providers: Sequence[Provider]
    flops: float  # floating-point operations the task needs; extra work of a provider does not count
    nbytes: float  # bytes of inputs and results, each read or written once
    dtype: torch.dtype = torch.float32  # of the products
    select: Callable[[Sequence[Tensor]], Sequence[Tensor]] = tuple  # reduces a full result to what `truth` returns


@dataclass
class Row:
    """One line of a table; times in milliseconds, memory in MiB, error relative to the largest true value."""

    provider: str
    status: str = OK
    note: str = ""
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    gflops: float | None = None  # 1e9 operations per second
    of_limit: float | None = None  # time of the limit divided by this time
    ratio: float | None = None  # speed relative to the first provider
    peak_mib: float | None = None  # extra memory of one call, including its result
    error: float | None = None

    @property
    def quantiles(self) -> tuple[float, float, float]:
        """The 20th, 50th, and 80th percentiles of the times; only for a row that was timed."""
        assert self.p20_ms is not None and self.median_ms is not None and self.p80_ms is not None
        return self.p20_ms, self.median_ms, self.p80_ms

    @property
    def ms(self) -> float:
        """The median time; only for a row that was timed."""
        assert self.median_ms is not None
        return self.median_ms


def compare(case: Case, rounds: int = 7) -> list[Row]:
    """One row for each provider, in order, then the limit. `ratio` is the speed relative to the first provider."""
    device = case.inputs[0].device
    limit = _Limit(device, case.dtype)
    truth = case.truth()
    rows = [check(provider, case, truth) for provider in case.providers]
    pending = [(row, provider, []) for row, provider in zip(rows, case.providers, strict=True) if row.status == OK]
    untimed = int(device.type == "cuda")  # warmup, because the checks left the allocator's cache empty
    copies = _copies(case.inputs, 2 * (rounds + untimed) * len(pending))
    for _ in range(rounds + untimed):
        for row, provider, times in pending:
            _time(row, provider, copies, device, times)
        pending = [entry for entry in pending if entry[0].status == OK]
        limit.measure()
    for row, _, times in pending:
        row.p20_ms, row.median_ms, row.p80_ms = np.percentile(times[untimed:], (20, 50, 80)).tolist()
    rows.append(limit.row(case.flops, case.nbytes))
    for row in rows:
        if row.median_ms:
            row.gflops = case.flops / row.median_ms / 1e6
            row.of_limit = rows[-1].ms / row.median_ms
            row.ratio = rows[0].median_ms / row.median_ms if rows[0].median_ms and row is not rows[-1] else None
    return rows


def check(provider: Provider, case: Case, truth: Sequence[Tensor]) -> Row:
    """Run the provider's first calls: warmup, comparison with the truth, and peak memory."""
    row = Row(provider.name)
    device = case.inputs[0].device
    if provider.missing:
        row.status, row.note = MISSING, provider.missing
        return row
    free = free_bytes(device)
    if provider.needs_bytes > free:
        row.status = OUT_OF_MEMORY
        row.note = f"not tried: needs {provider.needs_bytes >> 20} MiB by its shapes, {free >> 20} MiB free"
        return row
    try:
        with ceiling(device):
            results = case.select(provider.call(*case.inputs))
            row.error = max(largest_error(result, true) for result, true in zip(results, truth, strict=True))
            row.note = mistake(results, truth, provider.tolerance)
            del results
            row.peak_mib = peak_bytes(provider.call, case.inputs, device) / 2**20
    except Exception as error:  # noqa: BLE001 (one provider's failure must not lose the results of the others)
        _set_failed(row, error)
        return row
    if row.note:
        row.status = WRONG
    return row


def _copies(inputs: tuple[Tensor, ...], calls: int) -> Iterator[tuple[Tensor, ...]]:
    """Cycle through the inputs and copies of them, so that no call finds its inputs in the cache."""
    count = min(calls, math.ceil(BEYOND_CACHE / max(1, sum(x.nbytes for x in inputs))))
    return itertools.cycle([inputs, *(tuple(x.clone() for x in inputs) for _ in range(count - 1))])


def _time(
    row: Row, provider: Provider, copies: Iterator[tuple[Tensor, ...]], device: torch.device, times: list[float]
) -> None:
    try:
        with ceiling(device):
            milliseconds = _milliseconds(partial(provider.call, *next(copies)), device)
            if milliseconds < SHORT_MS:
                milliseconds = _milliseconds(partial(provider.call, *next(copies)), device)
            times.append(milliseconds)
    except Exception as error:  # noqa: BLE001 (as in `check`)
        _set_failed(row, error)


def _set_failed(row: Row, error: Exception) -> None:
    # On the CPU torch raises a plain RuntimeError.
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    row.status, row.note = (OUT_OF_MEMORY, f"tried: {reason}") if memory else (FAILED, reason)


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _fastest(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype`, or float32 on a CPU that multiplies faster in it; many have no matmul in half types."""
    if device.type == "cuda" or dtype == torch.float32:
        return dtype

    def duration(candidate: torch.dtype) -> float:
        a = torch.ones(256, 256, dtype=candidate)
        return min(_milliseconds(lambda: torch.mm(a, a), device) for _ in range(5))  # other processes interrupt

    return min((dtype, torch.float32), key=duration)


class _Limit:
    """The rates of PyTorch's own matmul and copy, measured in the same rounds as the providers."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device = device
        self.dtype = _fastest(dtype, device)
        self.size = MATMUL_SIZE[device.type]
        self.a, self.b = (torch.randn(self.size, self.size, device=device).to(self.dtype) for _ in range(2))
        self.out = torch.empty_like(self.a)
        self.source = torch.zeros(BEYOND_CACHE // 2, dtype=torch.uint8, device=device)
        self.target = torch.ones_like(self.source)
        self._matmul()  # warmup
        self._copy()
        self.matmul_ms: list[float] = []
        self.copy_ms: list[float] = []

    def _matmul(self) -> None:
        torch.mm(self.a, self.b, out=self.out)

    def _copy(self) -> None:
        self.target.copy_(self.source)

    def measure(self) -> None:
        self.matmul_ms.append(_milliseconds(self._matmul, self.device))
        self.copy_ms.append(_milliseconds(self._copy, self.device))

    def row(self, flops: float, nbytes: float) -> Row:
        """The time of `flops` operations or `nbytes` read and written, whichever is longer, at the measured rates."""
        matmul = flops / (2.0 * self.size**3) * np.percentile(self.matmul_ms, (20, 50, 80))
        copy = nbytes / (2.0 * self.source.nbytes) * np.percentile(self.copy_ms, (20, 50, 80))
        p20, median, p80 = np.maximum(matmul, copy).tolist()
        gflops = 2.0 * self.size**3 / np.median(self.matmul_ms) / 1e6
        gigabytes = 2.0 * self.source.nbytes / np.median(self.copy_ms) / 1e6
        bound = "matmul" if matmul[1] >= copy[1] else "copy"
        product = f"{self.size} x {self.size} {str(self.dtype).removeprefix('torch.')} matmul"
        note = f"{product} {gflops:.0f} GFLOP/s, copy {gigabytes:.1f} GB/s; bound by {bound}"
        return Row("limit", note=note, median_ms=median, p20_ms=p20, p80_ms=p80)
