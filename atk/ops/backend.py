"""Backends of the ops: which ones can run a call on this machine, which one `"auto"` picks, and why others cannot."""

import os

import torch
from torch import Tensor

from atk.kernels import cpp

BACKENDS = {  # by op, in the order in which "auto" prefers them
    "max_mean_similarity": ("triton", "cpp", "chunked", "reference"),
    "cross_attention_difference": ("triton", "sdpa", "reference"),
    "info_nce": ("triton", "chunked", "reference"),
    "sigmoid_loss": ("triton", "chunked", "reference"),
}
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_GPU = "cuda"  # device type on which "auto" takes the Triton kernels


class BackendError(RuntimeError):
    """The requested backend cannot run this call. The message says what is missing and how to get it."""


def unavailable(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if `backend` can run here with this device and dtype, else the reason why not."""
    if backend in ("reference", "sdpa", "chunked"):
        return None
    if dtype not in KERNEL_DTYPES:
        return f"takes float32, bfloat16, and float16, not {str(dtype).removeprefix('torch.')}; use backend='auto'"
    if backend == "cpp":
        if device.type != "cpu":
            return f"runs on CPU tensors, not on {device.type}"
        return cpp.unavailable()
    from atk.kernels import availability

    return availability.unavailable(device)


def choose(
    backend: str, device: torch.device, dtype: torch.dtype, op: str = "max_mean_similarity", *, check: bool = True
) -> str:
    """The backend that runs this call: `backend` itself or, for `"auto"`, `ATK_BACKEND` or the preferred one.

    Args:
        backend: the name that the caller passed.
        device: device of the inputs.
        dtype: dtype of the inputs as the backend gets them, see `autocast_dtype`.
        op: a key of `BACKENDS`. `ATK_BACKEND` is ignored if it names a backend of other ops only.
        check: whether `"auto"` first compares kernels that are new to this GPU with the reference, see `self_check`.

    Raises:
        ValueError: no backend has this name.
        BackendError: the requested backend cannot run here. `"auto"` without `ATK_BACKEND` never raises.
    """
    among = BACKENDS[op]
    origin = "argument backend"
    known = {name for names in BACKENDS.values() for name in names}
    if backend == "auto":
        backend = os.environ.get("ATK_BACKEND") or "auto"
        origin = "environment variable ATK_BACKEND"
        if backend in known and backend not in among:
            backend = "auto"
        if backend == "auto":
            return _automatic(device, dtype, op, check)
    choices = f"'auto' or one of {', '.join(map(repr, among))}"
    if backend not in known:
        raise ValueError(f"{origin} must be {choices}, got {backend!r}")
    reason = unavailable(backend, device, dtype) if backend in among else f"this op has no such backend; use {choices}"
    if reason is not None:
        raise BackendError(f"backend {backend!r} ({origin}): {reason}")
    return backend


def autocast_dtype(value: Tensor) -> torch.dtype:
    """The dtype that an op which casts its inputs under autocast, as a matrix product does, casts `value` to."""
    device = value.device.type
    if value.dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return value.dtype


def _automatic(device: torch.device, dtype: torch.dtype, op: str, check: bool) -> str:
    for name in BACKENDS[op]:
        if name == "triton":
            # Triton's interpreter is for testing kernels, never a default.
            usable = device.type == _GPU and unavailable(name, device, dtype) is None
            if usable and _trusted(op, device, dtype, check):
                return name
        elif unavailable(name, device, dtype) is None:
            return name
    raise AssertionError("the reference runs everywhere")


def _trusted(op: str, device: torch.device, dtype: torch.dtype, check: bool) -> bool:
    """Whether the Triton kernels of `op` agree with the reference, as far as is known unless `check`."""
    from atk.ops import self_check  # loads torch._dynamo, so not before it is used

    if check:
        return self_check.trusted(op, device, dtype, torch.compiler.is_compiling())
    return self_check.fault(op, device, dtype) is None


def backends(op: str = "max_mean_similarity") -> dict[str, dict[str, str]]:
    """Which backends `op` has on this machine, which one `"auto"` picks, and why the others cannot run.

    Args:
        op: a key of `atk.ops.backend.BACKENDS`, such as `"info_nce"`. `"max_mean_similarity"` also covers its pairs and
            varlen forms and the aligned loss.

    Returns:
        A dictionary with one entry per device (`"cpu"`, and `"cuda"` if there is a GPU) and dtype:
        `"<device> <dtype>": {"auto": <backend>, "<backend>": "available" or the reason why not, ...}`.

    Raises:
        ValueError: no op has this name.
    """
    if op not in BACKENDS:
        raise ValueError(f"op must be one of {', '.join(map(repr, BACKENDS))}, got {op!r}")
    from atk.ops import self_check

    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    table = {}
    for device in devices:
        for dtype in (*KERNEL_DTYPES, torch.float64):
            row = {"auto": _automatic(device, dtype, op, check=False)}
            for name in BACKENDS[op]:
                row[name] = unavailable(name, device, dtype) or "available"
            if row["triton"] == "available" and (mistake := self_check.fault(op, device, dtype)) is not None:
                row["triton"] = f"available, but failed its self-check: {mistake}"
            table[f"{device.type} {str(dtype).removeprefix('torch.')}"] = row
    return table
