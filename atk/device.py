"""The device that a name stands for."""

import os

import torch


def pick_device(name: str) -> torch.device:
    """The device of that name; `"auto"` is the GPU where there is one.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        return _local_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = _local_device(torch.device(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} is not available here: {str(error).splitlines()[0]}") from None
    return device


def _local_device(device: torch.device) -> torch.device:
    """The device of that type which is this rank's on its machine; raises ValueError where there is none."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device.type != "cuda" or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device.index is not None:
        raise ValueError(f"device: name no single GPU for several ranks, got {device}; 'cuda' gives each its own")
    if local >= torch.cuda.device_count():
        raise ValueError(f"device: rank {local} of this machine has no GPU, {torch.cuda.device_count()} are visible")
    return torch.device("cuda", local)
