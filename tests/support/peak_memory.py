"""Peak memory of a forward and backward, measured in a new process."""

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
    """Peak memory of `step(size)` beyond `step(64)`, in MB; `step` is source code and `sys.argv[2]` its backend."""
    command = [sys.executable, "-c", _PROGRAM.format(step=step), str(size), backend]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)
