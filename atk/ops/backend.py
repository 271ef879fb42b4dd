"""Backends of the ops: which ones can run a call on this machine, which one `"auto"` picks, and why others cannot."""

import os

import torch

BACKENDS = {  # by op, in the order in which "auto" prefers them
    "max_mean_similarity": ("triton", "cpp", "reference"),
    "cross_attention_difference": ("triton", "sdpa", "reference"),
    "info_nce": ("triton", "chunked", "reference"),
    "sigmoid_loss": ("triton", "chunked", "reference"),
}
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BackendError(RuntimeError):
    """The requested backend cannot run this call. The message says what is missing and how to get it."""


def unavailable(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if `backend` can run here with this device and dtype, else the reason why not."""
    if backend in ("reference", "sdpa", "chunked"):
        return None
    if dtype not in _KERNEL_DTYPES:
        return f"takes float32, bfloat16, and float16, not {str(dtype).removeprefix('torch.')}; use backend='reference'"
    if backend == "cpp":
        if device.type != "cpu":
            return f"runs on CPU tensors, not on {device.type}"
        from atk.kernels import cpp

        return cpp.unavailable()
    from atk.kernels import launch

    return launch.unavailable(device.type)


def choose(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    among: tuple[str, ...] = BACKENDS["max_mean_similarity"],
) -> str:
    """The backend that runs this call: `backend` itself or, for `"auto"`, `ATK_BACKEND` or the preferred one.

    Args:
        backend: the name that the caller passed.
        device: device of the inputs.
        dtype: dtype of the inputs.
        among: the backends of the op. `ATK_BACKEND` is ignored if it names a backend of other ops only.

    Raises:
        ValueError: no backend has this name.
        BackendError: the requested backend cannot run here. `"auto"` without `ATK_BACKEND` never raises.
    """
    origin = "argument backend"
    known = {name for names in BACKENDS.values() for name in names}
    if backend == "auto":
        backend = os.environ.get("ATK_BACKEND") or "auto"
        origin = "environment variable ATK_BACKEND"
        if backend in known and backend not in among:
            backend = "auto"
        if backend == "auto":
            return _automatic(device, dtype, among)
    choices = f"'auto' or one of {', '.join(map(repr, among))}"
    if backend not in known:
        raise ValueError(f"{origin} must be {choices}, got {backend!r}")
    reason = unavailable(backend, device, dtype) if backend in among else f"this op has no such backend; use {choices}"
    if reason is not None:
        raise BackendError(f"backend {backend!r} ({origin}): {reason}")
    return backend


def _automatic(device: torch.device, dtype: torch.dtype, among: tuple[str, ...]) -> str:
    # Triton's interpreter is for testing kernels, never a default.
    preferred = [name for name in among if name != "triton" or device.type == "cuda"]
    return next(name for name in preferred if unavailable(name, device, dtype) is None)


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
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    table = {}
    for device in devices:
        for dtype in (*_KERNEL_DTYPES, torch.float64):
            row = {"auto": _automatic(device, dtype, BACKENDS[op])}
            for name in BACKENDS[op]:
                row[name] = unavailable(name, device, dtype) or "available"
            table[f"{device.type} {str(dtype).removeprefix('torch.')}"] = row
    return table
