"""Import published data sets: data folders that name the audio of a set where it lies."""

from atk.data.published.importing import import_set, imported_set
from atk.data.published.registry import SETS, PublishedSet

__all__ = ["SETS", "PublishedSet", "import_set", "imported_set"]
