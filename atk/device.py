"""Device selection, and the number of data-loading processes that suits a device."""

import os

import torch

MAX_WORKERS = 8  # enough to feed one GPU


def pick_device(name: str) -> torch.device:
    """The device called `name`, for this rank; `"auto"` is the GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return _local_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = _local_device(torch.device(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} is not available here: {str(error).splitlines()[0]}") from None
    return device


def default_workers(device: torch.device) -> int:
    """How many processes read a rank's audio: 1 on a CPU; on a GPU, the rank's share of the CPU cores, at most 8."""
    if device.type == "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores // max(1, launcher_integer("LOCAL_WORLD_SIZE", 1))))


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has matrix or dot-product instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # there is no public function


def launcher_integer(variable: str, default: int) -> int:
    """An integer that a launcher such as `torchrun` sets in the environment; `default` if unset or empty.

    Raises:
        ValueError: the variable is not an integer of at least 0.
    """
    text = os.environ.get(variable, "").strip()
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"{variable}: the environment variable must be an integer of at least 0, got {text!r}")
    return int(text) if text else default


def _local_device(device: torch.device) -> torch.device:
    """The device of this type that belongs to this rank; raises ValueError if there is none."""
    ranks, local_rank = launcher_integer("WORLD_SIZE", 1), launcher_integer("LOCAL_RANK", 0)
    if device.type != "cuda" or ranks <= 1:
        return device
    if device.index is not None:
        raise ValueError(f"device: don't select one GPU for a multi-rank run; use 'cuda', got '{device}'")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"device: local rank {local_rank} needs a GPU of its own, but torch sees only {torch.cuda.device_count()}"
        )
    return torch.device("cuda", local_rank)
