"""Small soundscapes, and what they wrote."""

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
    """Bytes of each file below a folder, sorted by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
