"""`torchaudio.functional` and `torchaudio.transforms`, wherever torchaudio's compiled part does not fit this torch.

Import this module where it is used, never from the top of the package: torchaudio then loads on demand.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Missing:
    """A part of torchaudio that cannot be had here."""

    def __init__(self, name: str):
        self.__name__ = name  # torchaudio wraps some of them as functions

    def is_available(self) -> bool:
        return False

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"torchaudio's compiled part does not fit this torch build ({self.__name__})")


class _ExtensionStub(ModuleType):
    """Stands in for `torchaudio._extension`: flags are False, loaders and decorators give `_Missing`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return False if name.startswith("_IS_") else lambda *_, **__: _Missing(name)


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]


def _load() -> tuple[ModuleType, ModuleType]:
    names = ("torchaudio.functional", "torchaudio.transforms")
    try:
        return tuple(map(importlib.import_module, names))
    except ModuleNotFoundError as error:
        if error.name != "torchaudio":
            raise
        raise ImportError("mel features and resampling need torchaudio: pip install torchaudio") from error
    except (OSError, RuntimeError):
        # A CUDA build beside a CPU-only torch, or beside another CUDA: both modules are pure Python all the same.
        _forget()
    sys.modules["torchaudio._extension"] = _ExtensionStub("torchaudio._extension")
    try:
        return tuple(map(importlib.import_module, names))
    except BaseException:
        _forget()
        raise


functional, transforms = _load()
