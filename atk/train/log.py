"""What a run tells: metrics.jsonl and TensorBoard, and its peak memory."""

import json
import math
import resource
import sys
from pathlib import Path

import torch

from atk.train.checkpoint import write_whole


class RunLog:
    """metrics.jsonl and TensorBoard; rows a killed run wrote after its last checkpoint are dropped."""

    def __init__(self, out: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        path = out / "metrics.jsonl"
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step] if path.exists() else []
        write_whole(path, "".join(line + "\n" for line in kept))
        self.file = path.open("a")
        self.board = SummaryWriter(out / "tensorboard", purge_step=step + 1)

    def write(self, row: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": row["step"], **row}) + "\n")
        self.file.flush()
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name if "/" in name else f"train/{name}", value, row["step"])

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        self.board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # cut short by a kill
        return math.inf


def peak_memory_mib(device: torch.device) -> int:
    """Peak memory so far in MiB: of the device's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    if sys.platform == "linux":  # where ru_maxrss begins with the peak of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
