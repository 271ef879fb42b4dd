"""Peak memory of a forward and backward, in a process of its own."""

import subprocess
import sys

_PROGRAM = """
import sys, torch, atk
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024 / 1e6
{step}
torch.set_num_threads(1)
step(64)
before = peak()
step(int(sys.argv[1]))
print(peak() - before)
"""


def peak_growth(step: str, size: int, backend: str) -> float:
    """MB that `step(size)` takes beyond `step(64)`; `step` is its source, in which `sys.argv[2]` is the backend."""
    command = [sys.executable, "-c", _PROGRAM.format(step=step), str(size), backend]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)
