"""Times callables beside their error and their memory.

A provider's result is compared with a float64 truth first: a wrong one is reported and not timed. Providers then take
turns in one process, over inputs that together exceed the cache. Missing and failing providers, and those that run
out of memory, keep their row.
"""

import ctypes
import datetime
import gc
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BEYOND_CACHE = 256 << 20  # bytes of distinct inputs, several times a last-level cache


@dataclass(frozen=True)
class Provider:
    """Something to time: `call` takes one set of inputs and returns the tensors to compare."""

    name: str
    call: Callable[..., Sequence[Tensor]]
    flops: float  # operations that the task needs, however many the provider spends
    tolerance: float | None = 1e-4  # largest error that is right; None: the limit of the machine, not a result
    needs_bytes: int = 0  # known demand: not tried where less memory is free
    missing: str | None = None  # why the provider cannot run here


@dataclass
class Row:
    """One line of the table; times in milliseconds, memory in MiB, error relative to the largest true value."""

    provider: str
    status: str = "ok"  # ok | wrong | out of memory | failed | missing
    note: str = ""
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    gflops: float | None = None  # 1e9 operations a second
    of_limit: float | None = None  # that over the rate of the limit, the provider without a tolerance
    ratio: float | None = None  # speed relative to the first provider
    peak_mib: float | None = None  # extra memory of one call, its result included
    error: float | None = None


def compare(
    providers: Sequence[Provider], inputs: Sequence[Tensor], truth: Sequence[Tensor], rounds: int = 7
) -> list[Row]:
    """One row for each provider, in order; `truth` is float64, `ratio` the speed relative to the first."""
    device = inputs[0].device
    copies = min(rounds, math.ceil(BEYOND_CACHE / sum(x.nbytes for x in inputs)))
    rotation = [tuple(x.clone() for x in inputs) for _ in range(copies)]
    rows = [_check(provider, inputs, truth, device) for provider in providers]
    times = {row.provider: [] for row in rows if row.status == "ok"}
    for turn in range(rounds):
        for provider in providers:
            if provider.name in times:
                times[provider.name].append(_milliseconds(provider.call, rotation[turn % copies], device))
    for row, provider in zip(rows, providers, strict=True):
        if row.status == "ok":
            row.p20_ms, row.median_ms, row.p80_ms = np.percentile(times[row.provider], (20, 50, 80)).tolist()
            row.gflops = provider.flops / row.median_ms / 1e6
            if rows[0].median_ms and provider.tolerance is not None:
                row.ratio = rows[0].median_ms / row.median_ms
    limits = [row.gflops for row, provider in zip(rows, providers, strict=True) if provider.tolerance is None]
    for row in rows:
        if row.gflops and limits:
            row.of_limit = row.gflops / limits[0]
    return rows


def _check(provider: Provider, inputs: Sequence[Tensor], truth: Sequence[Tensor], device: torch.device) -> Row:
    """The provider's first calls: warm-up, comparison with the truth, memory."""
    row = Row(provider.name)
    if provider.missing:
        row.status, row.note = "missing", provider.missing
        return row
    free = _free_bytes(device)
    if provider.needs_bytes > free:
        row.status, row.note = "out of memory", f"needs {provider.needs_bytes >> 20} MiB, {free >> 20} MiB free"
        return row
    try:
        result = provider.call(*inputs)
        if provider.tolerance is not None:
            row.error = max(_error(got, want) for got, want in zip(result, truth, strict=True))
        del result
        row.peak_mib = _peak_bytes(provider.call, inputs, device) / 2**20
    except Exception as error:  # one provider's failure must not lose the others' results
        # On the CPU torch raises a plain RuntimeError.
        memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
        row.status, row.note = "out of memory" if memory else "failed", f"{error or type(error)}".splitlines()[0]
        return row
    if provider.tolerance is not None and not row.error <= provider.tolerance:  # NaN is wrong too
        row.status, row.note = "wrong", f"error above {provider.tolerance:g}"
    return row


def _error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).abs().max() / want.abs().max()).item()


def _milliseconds(call: Callable, inputs: Sequence[Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call(*inputs)
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)
    start = time.perf_counter()
    call(*inputs)
    return (time.perf_counter() - start) * 1e3


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes(call: Callable, inputs: Sequence[Tensor], device: torch.device) -> float:
    """Most memory that one call held above what was there before it; NaN where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call(*inputs)
        return torch.cuda.max_memory_allocated(device) - before
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator kept would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    before = _resident_bytes("VmHWM")
    call(*inputs)
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")


def environment() -> dict[str, str | int]:
    """What the numbers depend on: machine, versions, commit, date."""
    facts = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    versions = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": names[0] if names else platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": versions.get("triton", "none"),
        "commit": commit or "none",
    }


def markdown(title: str, rows: Sequence[Row]) -> str:
    """The rows as a table under a heading."""
    lines = [
        f"### {title}\n",
        "| provider | median ms | p20 to p80 | GFLOP/s | of the limit | speed | peak MiB | error |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.1f}"
        if row.status == "ok":
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
            limit = "" if row.of_limit is None else f"{row.of_limit:.2f}"
            times = f"{row.median_ms:.2f} | {row.p20_ms:.2f} to {row.p80_ms:.2f} | {row.gflops:.0f} | {limit} | {ratio}"
        else:
            times = f"{row.status}: {row.note} | | | | "
        lines.append(f"| {row.provider} | {times} | {peak} | {error} |")
    return "\n".join(lines) + "\n"


def write(stem: Path, tables: dict[str, Sequence[Row]], settings: dict) -> None:
    """Writes `stem`.json and `stem`.md: the tables by title, the benchmark's settings and the environment."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    record = {"environment": environment(), "settings": settings | {"command": command}}
    document = record | {"tables": {title: [asdict(row) for row in rows] for title, rows in tables.items()}}
    stem.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    facts = [f"- {name}: {value}\n" for part in record.values() for name, value in part.items()]
    text = "".join(facts) + "\n" + "\n".join(markdown(title, rows) for title, rows in tables.items())
    stem.with_suffix(".md").write_text(text)
