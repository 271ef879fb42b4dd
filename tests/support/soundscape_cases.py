"""Settings of small soundscapes, and readers of the files that they write."""

import csv

from atk.soundscapes import SoundscapeConfig

RATE = 16000


def small(**overrides) -> SoundscapeConfig:
    return SoundscapeConfig.preset("hard", **{"train": 6, "val": 3, "test": 8, "twins": 2, **overrides})


def rows(path):
    """Rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    """`{name: bytes}` of all files in a folder and its subfolders, sorted by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
