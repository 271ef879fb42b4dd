"""The log of a run (metrics.jsonl, and loggers such as TensorBoard), and its peak memory."""

import json
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from atk.extras import optional_imports
from atk.train.checkpoint import write_atomically
from atk.train.loggers import open_logger


class RunLog:
    """Writes metrics.jsonl, and the same values to loggers.

    Rows that a killed run wrote after its last checkpoint are dropped from metrics.jsonl.

    Args:
        out: run folder.
        step: step that the run resumes from; 0 for a new run.
        loggers: names of the loggers.
        config: settings of the run, for loggers that show them.
    """

    def __init__(
        self,
        out: Path,
        step: int,
        loggers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ):
        path = out / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_atomically(path, "".join(line + "\n" for line in kept))
        self.file = path.open("a")
        self.loggers = [open_logger(name, out, config or {}, step) for name in loggers]

    def write(self, row: Mapping[str, float]) -> None:
        """Write a row, which must have a "step"."""
        self.file.write(json.dumps({"step": row["step"], **row}) + "\n")
        self.file.flush()
        values = {name if "/" in name else f"train/{name}": value for name, value in row.items() if name != "step"}
        for logger in self.loggers:
            logger.write(values, int(row["step"]))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        for logger in self.loggers:
            logger.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):  # cut short by a kill, or damaged
        return math.inf


def progress_bar(total: int, initial: int, shown: bool) -> Any:
    """A progress bar of the steps of a run, which has an effect on a terminal only."""
    with optional_imports:
        from tqdm import tqdm  # pyrefly: ignore[untyped-import]  # its stubs are a separate package

    return tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True, disable=None if shown else True)


def peak_memory_mib(device: torch.device) -> int:
    """Peak memory so far in MiB: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    if sys.platform == "linux":  # ru_maxrss would include the peak of the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
