"""Which backend can run a call here, which one `"auto"` takes, and why the others cannot."""

import os

import torch

OPS = {  # the backends of each op, in the order "auto" prefers them
    "max_mean_similarity": ("triton", "cpp", "reference"),
    "cross_attention_difference": ("triton", "sdpa", "reference"),
    "info_nce": ("triton", "chunked", "reference"),
}
BACKENDS = OPS["max_mean_similarity"]
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BackendError(RuntimeError):
    """The backend asked for cannot run this call; the message says what is missing and how to get it."""


def unavailable(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None when `backend` can take tensors of this device and dtype here, else what is missing."""
    if backend in ("reference", "sdpa", "chunked"):
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


def choose(backend: str, device: torch.device, dtype: torch.dtype, among: tuple[str, ...] = BACKENDS) -> str:
    """The backend that runs this call: `backend` itself, or for `"auto"` the one in `ATK_BACKEND` or the fastest here.

    `among` are those that the op has; `ATK_BACKEND` does not bind an op that has no backend of that name.

    Raises:
        ValueError: no backend has this name.
        BackendError: the backend asked for cannot run here. `"auto"` without `ATK_BACKEND` never raises.
    """
    asked, everywhere = "argument backend", {name: None for names in OPS.values() for name in names}
    if backend == "auto":
        backend, asked = os.environ.get("ATK_BACKEND", "auto"), "environment variable ATK_BACKEND"
        if backend in everywhere and backend not in among:
            backend = "auto"
        if backend == "auto":
            return _automatic(device, dtype, among)
    wanted = f"'auto' or one of {', '.join(map(repr, among))}"
    if backend not in everywhere:
        raise ValueError(f"{asked} must be {wanted}, got {backend!r}")
    reason = unavailable(backend, device, dtype) if backend in among else f"this op has no such backend; use {wanted}"
    if reason is not None:
        raise BackendError(f"backend {backend!r} ({asked}): {reason}")
    return backend


def _automatic(device: torch.device, dtype: torch.dtype, among: tuple[str, ...]) -> str:
    # The interpreter is for testing kernels: never a default.
    preferred = [name for name in among if name != "triton" or device.type == "cuda"]
    return next(name for name in preferred if unavailable(name, device, dtype) is None)


def backends(op: str = "max_mean_similarity") -> dict[str, dict[str, str]]:
    """Which backends `op` has on this machine, which one `"auto"` takes, and why.

    Args:
        op: `"max_mean_similarity"` (its other forms and the aligned loss too), `"info_nce"` or
            `"cross_attention_difference"`.

    Returns a dictionary: for each device here (`"cpu"`, and `"cuda"` where there is one) and each dtype a line
    `"<device> <dtype>": {"auto": <backend>, "<backend>": "available" or the reason why not, ...}`.

    Raises:
        ValueError: no op has this name.
    """
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(map(repr, OPS))}, got {op!r}")
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    table = {}
    for device in devices:
        for dtype in (*_KERNEL_DTYPES, torch.float64):
            row = {"auto": _automatic(device, dtype, OPS[op])}
            for name in OPS[op]:
                row[name] = unavailable(name, device, dtype) or "available"
            table[f"{device.type} {str(dtype).removeprefix('torch.')}"] = row
    return table
