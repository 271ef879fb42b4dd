"""The log of a run (metrics.jsonl and TensorBoard), and its peak memory."""

import json
import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from atk.extras import optional_imports
from atk.train.checkpoint import write_atomically


class RunLog:
    """Writes metrics.jsonl and TensorBoard events.

    Rows that a killed run wrote after its last checkpoint are dropped.

    Args:
        out: run folder.
        step: step that the run resumes from; 0 for a new run.
    """

    def __init__(self, out: Path, step: int):
        with optional_imports:
            from torch.utils.tensorboard import SummaryWriter

        path = out / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_atomically(path, "".join(line + "\n" for line in kept))
        self.file = path.open("a")
        self.board = SummaryWriter(out / "tensorboard", purge_step=step + 1)

    def write(self, row: Mapping[str, float]) -> None:
        """Write a row, which must have a "step"."""
        self.file.write(json.dumps({"step": row["step"], **row}) + "\n")
        self.file.flush()
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name if "/" in name else f"train/{name}", value, row["step"])

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.board.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):  # cut short by a kill, or damaged
        return math.inf


def peak_memory_mib(device: torch.device) -> int:
    """Peak memory so far in MiB: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    if sys.platform == "linux":  # ru_maxrss would include the peak of the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
