"""Which backend can run a call here, which one `"auto"` takes, and why the others cannot."""

import os

import torch

BACKENDS = ("triton", "cpp", "reference")  # in the order "auto" prefers them
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BackendError(RuntimeError):
    """The backend asked for cannot run this call; the message says what is missing and how to get it."""


def unavailable(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None when `backend` can take tensors of this device and dtype here, else what is missing."""
    if backend == "reference":
        return None
    if dtype not in _KERNEL_DTYPES:
        return f"takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}; use backend='reference'"
    if backend == "cpp":
        if device.type != "cpu":
            return f"runs on CPU tensors, not on {device.type}"
        from atk.kernels import cpp

        return cpp.unavailable()
    from atk.kernels import launch

    return launch.unavailable(device.type)


def choose(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs this call: `backend` itself, or for `"auto"` the one in `ATK_BACKEND` or the fastest here.

    Raises:
        ValueError: no backend has this name.
        BackendError: the backend asked for cannot run here. `"auto"` without `ATK_BACKEND` never raises.
    """
    asked = "argument backend"
    if backend == "auto":
        backend, asked = os.environ.get("ATK_BACKEND", "auto"), "environment variable ATK_BACKEND"
    if backend == "auto":
        return _automatic(device, dtype)
    if backend not in BACKENDS:
        raise ValueError(f"{asked} must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    reason = unavailable(backend, device, dtype)
    if reason is not None:
        raise BackendError(f"backend {backend!r} ({asked}): {reason}")
    return backend


def _automatic(device: torch.device, dtype: torch.dtype) -> str:
    # The interpreter is for testing kernels: never a default.
    preferred = BACKENDS if device.type == "cuda" else BACKENDS[1:]
    return next(name for name in preferred if unavailable(name, device, dtype) is None)


def backends() -> dict[str, dict[str, str]]:
    """Which backends exist on this machine, which one `"auto"` takes, and why.

    Returns a dictionary: for each device here (`"cpu"`, and `"cuda"` where there is one) and each dtype a line
    `"<device> <dtype>": {"auto": <backend>, "<backend>": "available" or the reason why not, ...}`.
    """
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    table = {}
    for device in devices:
        for dtype in (*_KERNEL_DTYPES, torch.float64):
            row = {"auto": _automatic(device, dtype)}
            for name in BACKENDS:
                row[name] = unavailable(name, device, dtype) or "available"
            table[f"{device.type} {str(dtype).removeprefix('torch.')}"] = row
    return table
