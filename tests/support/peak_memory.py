"""Peak memory of a forward and backward, measured in another process."""

import sys
import tempfile
from pathlib import Path

from support.processes import Job


def peak_growth(step: str, size: int, backend: str) -> float:
    """How many MB more `step(size)` takes than `step(64)`; `step` is source code whose `sys.argv[2]` is the backend."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "growth")
        job = Job("support.peak_memory:measure", step, size, backend, str(result))
        assert job.wait() == 0, job.output
        return float(result.read_text())


def measure(step: str, size: int, backend: str, result: str) -> None:
    import torch

    import atk

    torch.set_num_threads(1)
    sys.argv = ["", str(size), backend]
    namespace = {"sys": sys, "torch": torch, "atk": atk}
    exec(step, namespace)
    namespace["step"](64)
    before = _peak_bytes()
    namespace["step"](size)
    Path(result).write_text(str((_peak_bytes() - before) / 1e6))


def _peak_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
