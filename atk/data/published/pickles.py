"""Pickled tables of published data sets, read without running any code that they may contain."""

import pickle
from pathlib import Path
from typing import Any, NoReturn

# What unpickling of damaged files raises.
_DAMAGED = (
    *(pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, MemoryError),
    *(OverflowError, TypeError),
)


def read_pickle(path: Path, container: type, what: str) -> Any:
    """The content of a pickle of text, numbers, and containers.

    Args:
        path: the file.
        container: type of the content.
        what: what it is, for messages, such as "list of text".

    Raises:
        ValueError: the file is damaged, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
        if not isinstance(content, container):
            raise TypeError(f"is a {type(content).__name__}")
    except _DAMAGED as error:
        raise ValueError(f"{path}: not a pickled {what} ({error})") from None
    return content


class _PlainUnpickler(pickle.Unpickler):
    """Reads only text, numbers, and containers, because other pickles can run any code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"contains {module}.{name}")
