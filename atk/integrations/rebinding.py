"""Importing another library, and rebinding attributes of its modules for as long as needed."""

import contextlib
import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any

from atk.extras import install_command, optional_imports

Replacements = Sequence[tuple[Any, str, Any]]  # owner (a module or class), attribute, new value


def import_library(module: str) -> Any:
    """Import a module of an optional library, also if it imports a torchaudio that was built for another torch.

    Raises:
        ImportError: it is missing; the message says how to install it.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("atk._torchaudio")
    with optional_imports:
        return importlib.import_module(module)


class Rebinding:
    """`install` and `uninstall` of one library.

    Args:
        package: name of the package in the registry.
        versions: the versions that the replacements were tested with.
        replacements: imports the library, and returns what to rebind.
    """

    def __init__(self, package: str, versions: Sequence[str], replacements: Callable[[], Replacements]):
        self.package = package
        self.versions = tuple(versions)
        self._replacements = replacements
        self._depth = 0
        self._originals: list[tuple[Any, str, Any, Any]] = []  # owner, attribute, original, replacement

    def install(self) -> "Rebinding":
        """Rebind, unless that has been done. Each call, and each `with` around one, needs its own `uninstall`.

        Raises:
            ImportError: the library is missing.
            RuntimeError: this version of the library was not tested; nothing is rebound.
        """
        if self._depth == 0:
            self._check_version()
            self._originals = [(owner, name, vars(owner)[name], new) for owner, name, new in self._replacements()]
            for owner, name, _, new in self._originals:
                setattr(owner, name, new)
        self._depth += 1
        return self

    def uninstall(self) -> None:
        """Put the originals back, if this is the last `uninstall` that was due.

        Raises:
            RuntimeError: `install` was not called before, or others have rebound the same attributes since.
        """
        if self._depth == 0:
            raise RuntimeError(f"{self.package}: uninstall() was called without install()")
        if self._depth == 1:
            for owner, name, _, new in self._originals:
                if vars(owner)[name] is not new:
                    raise RuntimeError(
                        f"{self.package}: {owner.__name__}.{name} has been rebound since install(); undo that first"
                    )
            for owner, name, original, _ in self._originals:
                setattr(owner, name, original)
        self._depth -= 1

    def _check_version(self) -> None:
        try:
            given = version(self.package)
        except PackageNotFoundError:
            raise ImportError(f"needs {self.package}; {install_command(self.package)}") from None
        if given not in self.versions:
            raise RuntimeError(
                f"{self.package} must have one of the versions tested ({', '.join(self.versions)}), got {given}"
            )

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.uninstall()
