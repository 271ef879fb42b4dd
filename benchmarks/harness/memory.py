"""Memory of one call: what is free before it, a ceiling while it is tried, the most it held."""

import contextlib
import ctypes
import gc
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

CONTAINER = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that a call may take on the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what earlier calls left there is free too
        return torch.cuda.mem_get_info(device)[0]
    try:
        return min(_proc_bytes("/proc/meminfo", "MemAvailable"), _container_bytes())  # both with the page cache
    except OSError:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_bytes() -> float:
    """What is left of a container's limit (cgroup 2); infinity where there is none."""
    try:
        most, used = (int((CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf
    return max(0, most - used + int(counts["inactive_file"]))


@contextlib.contextmanager
def ceiling(device: torch.device) -> Iterator[None]:
    """Makes allocations beyond what is free fail, so that an attempt ends with an error and not with the machine."""
    if device.type == "cuda" or not Path("/proc/self/status").exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _proc_bytes("/proc/self/status", "VmSize") + free_bytes(device)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def peak_bytes(call: Callable, inputs: Sequence[Tensor], device: torch.device) -> float:
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
    before = _proc_bytes("/proc/self/status", "VmHWM")
    call(*inputs)
    return _proc_bytes("/proc/self/status", "VmHWM") - before


def _proc_bytes(path: str, field: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"{path} has no {field}")
