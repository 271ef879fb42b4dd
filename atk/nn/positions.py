"""Position encodings of frames."""

import math

import torch
from torch import Tensor


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Sinusoidal position encodings `[length, width]` in float32, for any length."""
    position = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / width))
    return torch.cat([torch.sin(position * rate), torch.cos(position * rate)], 1)[:, :width]
