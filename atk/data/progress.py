"""The progress bar of everything that goes through files, clips, or batches."""

from collections.abc import Iterable
from typing import Any, TypeVar

from atk.extras import optional_imports

_Item = TypeVar("_Item")


def progress_bar(
    items: Iterable[_Item], label: str | None, count: int | None = None, unit: str = "file"
) -> Iterable[_Item]:
    """Iterate over `items` with a progress bar, if there is a label and stderr is a terminal.

    Args:
        items: what to iterate over.
        label: what the bar begins with; None = no bar.
        count: number of items, if they have no length.
        unit: what an item is.
    """
    if label is None:
        return items
    with optional_imports:
        from tqdm import tqdm  # pyrefly: ignore[untyped-import]  # its stubs are a separate package

    bar: Any = tqdm(items, label, count, unit=unit, leave=False, disable=None)
    return bar
