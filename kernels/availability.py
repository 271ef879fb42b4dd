"""Whether the Triton kernels can run on a device."""

import importlib.util
import os

import torch

# Evaluated at import, because torch.compile traces through the choice of a backend.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_MIN_CAPABILITY = (8, 0)  # bfloat16 matrix instructions and asynchronous copies


def unavailable(device: torch.device | str) -> str | None:
    """None if the Triton kernels can run on this device, otherwise the reason and how to fix it.

    A CUDA device without an index stands for all GPUs that torch sees.
    """
    device = torch.device(device)
    if not _HAS_TRITON:
        return "triton is not installed; pip install 'audio-text-kernels[triton]'"
    if device.type == "cuda":
        return _unusable_gpu(device.index)
    if device.type != "cpu":
        return f"runs on CUDA tensors, not on {device.type}"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "runs on GPU tensors; on the CPU only in Triton's interpreter, with TRITON_INTERPRET=1 set at start"
    return None


@torch.compiler.assume_constant_result  # torch.compile traces through the choice of a backend
def _unusable_gpu(index: int | None) -> str | None:
    if torch.version.hip is not None:
        return "the Triton kernels need an NVIDIA GPU; they contain its instructions, and this is PyTorch for AMD GPUs"
    if not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use"
    for gpu in range(torch.cuda.device_count()) if index is None else [index]:
        major, minor = torch.cuda.get_device_capability(gpu)
        if (major, minor) < _MIN_CAPABILITY:
            return f"needs a GPU of compute capability 8.0 or newer, cuda:{gpu} has {major}.{minor}"
    return None
