"""Memory of one call: what is free before it, a ceiling while it runs, and its peak."""

import contextlib
import ctypes
import gc
import math
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

CONTAINER = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that a call may allocate on the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # memory cached by earlier calls is free too
        return torch.cuda.mem_get_info(device)[0]
    try:
        # Both include the page cache, which the system gives up on demand.
        return int(min(_proc_bytes("/proc/meminfo", "MemAvailable"), _container_bytes()))
    except OSError:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_bytes() -> float:
    """Memory left within the container's limit (cgroup 2); infinity without a limit."""
    try:
        limit, used = (int((CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf
    return max(0, limit - used + int(counts["inactive_file"]))


@contextlib.contextmanager
def ceiling(device: torch.device) -> Generator[None, None, None]:
    """Limit allocations to the memory that is free, so that a call that needs more fails instead of swapping."""
    if device.type == "cuda" or not Path("/proc/self/status").exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _proc_bytes("/proc/self/status", "VmSize") + free_bytes(device)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def peak_bytes(call: Callable, inputs: Sequence[Tensor], device: torch.device) -> float:
    """Peak memory of one call beyond what was allocated before it; NaN if the system does not report it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call(*inputs)
        return torch.cuda.max_memory_allocated(device) - before
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    ctypes.CDLL(None).malloc_trim(0)  # memory kept by the allocator would hide what the call allocates
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark to the current resident size
    before = _proc_bytes("/proc/self/status", "VmHWM")
    call(*inputs)
    return _proc_bytes("/proc/self/status", "VmHWM") - before


def _proc_bytes(path: str, field: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"{path} has no field {field}")
