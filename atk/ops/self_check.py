"""The first use of Triton kernels on a GPU by `backend="auto"`: a small problem is compared with the reference.

Kernels are tested on few GPUs, and a compiler for another one can be wrong. A right result is remembered on disk for
this GPU model and these versions, a wrong one for the process, which then uses the op's next backend.
"""

import contextlib
import json
import os
import sys
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from atk.ops.self_check_problems import Deviation, deviations, run
from atk.ops.user_cache import cache_folder, replace_file

VARIABLE = "ATK_SELF_CHECK"
_lock = threading.Lock()
_verdicts: dict[str, str | None] = {}  # by key: what is wrong, or None


class UncheckedError(Exception):
    """The check could not be made, for a reason that says nothing about the kernels."""


class Gpu(NamedTuple):
    """What the compiled kernels depend on, apart from op and dtype."""

    name: str
    capability: str
    triton: str
    torch: str
    atk: str

    @classmethod
    @cache
    def of(cls, index: int) -> "Gpu":
        """The GPU of this index, and the installed versions."""
        import triton

        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        own_version = sys.modules[__name__.partition(".")[0]].__version__  # this layer must not import it
        return cls(properties.name, capability, triton.__version__, torch.__version__, own_version)

    def key(self, op: str, dtype: torch.dtype) -> str:
        """Identifies a check, in memory and on disk."""
        return " | ".join((*self._described(), op, str(dtype)))

    def __str__(self) -> str:
        return ", ".join(self._described())

    def _described(self) -> tuple[str, ...]:
        versions = f"triton {self.triton}", f"torch {self.torch}", f"atk {self.atk}"
        return self.name, f"compute capability {self.capability}", *versions


def fault(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """What an earlier check in this process found wrong with the Triton kernels; None if nothing or not checked."""
    return _verdicts.get(Gpu.of(_index(device)).key(op, dtype)) if _verdicts else None


@torch.compiler.assume_constant_result  # torch.compile traces through the choice of a backend
def trusted(op: str, device: torch.device, dtype: torch.dtype, compiling: bool) -> bool:
    """Whether the Triton kernels of an op are right on this GPU as far as known; checks them if it is not known yet.

    They are trusted without a check while a graph is traced or captured, and with `ATK_SELF_CHECK=0`. Nothing that the
    caller has set up is disturbed, since the check runs in a thread of its own: autograd and inference mode, autocast,
    default device, hooks of saved tensors, and the current stream all belong to a thread.

    Args:
        op: a key of `atk.ops.backend.BACKENDS`.
        device: a CUDA device.
        dtype: of the inputs as the kernels get them.
        compiling: whether torch.compile is tracing the caller.

    Returns:
        False if this check or an earlier one in this process failed. The one that fails also warns.
    """
    gpu = Gpu.of(_index(device))
    key = gpu.key(op, dtype)
    if key in _verdicts:
        return _verdicts[key] is None
    if os.environ.get(VARIABLE) == "0":
        return True
    if compiling or torch.cuda.is_current_stream_capturing():
        return True
    with _lock:
        if key in _verdicts:  # another thread was faster
            return _verdicts[key] is None
        if key in _remembered():
            _verdicts[key] = None
            return True
        try:
            _verdicts[key] = _check_in_thread(op, device, dtype)
        except UncheckedError:
            _verdicts[key] = None
            return True
    mistake = _verdicts[key]
    if mistake is None:
        _remember(key)
        return True
    _warn(op, dtype, gpu, mistake)
    return False


def check(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> list[Deviation]:
    """Compare a backend with the reference on small problems.

    Args:
        op: a key of `atk.ops.backend.BACKENDS`.
        backend: one that can run here.
        device: where.
        dtype: of the inputs.

    Returns:
        The deviation of each value and gradient.

    Raises:
        Exception: what the backend raised.
        UncheckedError: the comparison itself is impossible: the memory is full, or the reference raises an error.
    """
    cpu = torch.device("cpu")
    try:
        truth = run(op, "reference", cpu, dtype, torch.float64)
        similar = run(op, "reference", device, dtype)
    except Exception as error:
        raise UncheckedError(_one_line(error)) from error
    try:
        results = run(op, backend, device, dtype)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # errors of the kernels are reported here
    except torch.OutOfMemoryError as error:
        raise UncheckedError(_one_line(error)) from error
    try:
        return deviations(results, similar, truth)
    except RuntimeError as error:
        raise UncheckedError(_one_line(error)) from error


def describe(rows: list[Deviation]) -> str | None:
    """The first excessive deviation in words, and how many there are; None if there is none.

    Values precede gradients, so the first one is closest to the cause.
    """
    wrong = [row for row in rows if row.excessive]
    return f"{wrong[0]} ({len(wrong)} of {len(rows)} results are wrong)" if wrong else None


def worst(rows: list[Deviation]) -> Deviation:
    """The deviation that comes closest to its tolerance, or exceeds it most."""
    return max(rows, key=lambda row: row.error / row.tolerance)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _check_in_thread(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong, or None."""
    outcome: list[str | UncheckedError | None] = []

    def target() -> None:
        try:
            outcome.append(describe(check(op, "triton", device, dtype)))
        except UncheckedError as error:
            outcome.append(error)
        except Exception as error:  # noqa: BLE001 (compilation and launch fail in many ways)
            outcome.append(f"they raised {_one_line(error)}")

    thread = threading.Thread(target=target, name="atk-self-check", daemon=True)
    thread.start()
    thread.join()
    mistake = outcome[0] if outcome else UncheckedError("the thread was stopped")
    if isinstance(mistake, UncheckedError):
        raise mistake
    return mistake


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _warn(op: str, dtype: torch.dtype, gpu: Gpu, mistake: str) -> None:
    name = str(dtype).removeprefix("torch.")
    warnings.warn(
        f"the Triton kernels of {op} failed their self-check in {name} on {gpu}: {mistake}. backend='auto' avoids them "
        "in this process. Please report this with the output of `atk doctor --check`; backend='triton' uses them all "
        "the same.",
        RuntimeWarning,
        stacklevel=7,  # the caller of the public function
    )


def _cache_file() -> Path:
    """The file that remembers right results.

    Raises:
        OSError: as for `cache_folder`.
    """
    return cache_folder() / "self_check.json"


def _remembered() -> list[str]:
    """Keys of the checks that have passed; none if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        passed = json.loads(_cache_file().read_text(encoding="utf-8"))["passed"]
        return [key for key in passed if isinstance(key, str)]
    return []


def _remember(key: str) -> None:
    """Add a key to the file, in one step for its readers; only for this process if it cannot be written.

    When two processes write at a time, one key may be lost, which costs another check.
    """
    with contextlib.suppress(OSError, ValueError):
        path = _cache_file()
        text = json.dumps({"passed": sorted({*_remembered(), key})}, indent=1) + "\n"
        replace_file(path, text.encode())
