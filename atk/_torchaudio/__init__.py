"""Import `torchaudio.functional` and `torchaudio.transforms` even if its compiled part doesn't match this torch.

Import this module inside the functions that need it, not at the top level, so that torchaudio loads on demand.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

from atk.extras import missing_package


class _Missing:
    """Placeholder for a compiled part of torchaudio; calling it raises RuntimeError."""

    def __init__(self, name: str):
        self.__name__ = name  # torchaudio reads it when it wraps some of these as functions

    def is_available(self) -> bool:
        return False

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"torchaudio's compiled part does not match this torch build ({self.__name__})")


class _ExtensionStub(ModuleType):
    """Replacement for `torchaudio._extension`, whose flags are False and whose functions return `_Missing`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return False if name.startswith("_IS_") else lambda *_, **__: _Missing(name)


def _forget() -> None:
    """Remove torchaudio from the imported modules."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]


def _import() -> tuple[ModuleType, ModuleType]:
    return importlib.import_module("torchaudio.functional"), importlib.import_module("torchaudio.transforms")


def _load() -> tuple[ModuleType, ModuleType]:
    try:
        return _import()
    except ModuleNotFoundError as error:
        if error.name != "torchaudio":
            raise
        raise ImportError(missing_package(error)) from error
    except (OSError, RuntimeError):
        # torchaudio is a CUDA build, but torch is CPU-only or for another CUDA version; both modules are pure Python.
        _forget()
    sys.modules["torchaudio._extension"] = _ExtensionStub("torchaudio._extension")
    try:
        return _import()
    except BaseException:
        _forget()
        raise


functional, transforms = _load()
