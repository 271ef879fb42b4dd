"""Published data sets in small: the names, columns, delimiters, encodings, and traps of the real ones."""

import functools
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000


@dataclass
class Expected:
    """What an import must give; files are named relative to the folder of the set.

    `captions` are by split and file, `tags` and `folds` by file, `vocabularies` by name, and the names of what is
    `left_out` by reason; `events` are (file, event, phrase, start, end).
    """

    captions: dict[str, dict[str, list[str]]]
    tags: dict[str, list[str]] = field(default_factory=dict)
    vocabularies: dict[str, list[str]] = field(default_factory=dict)
    events: list[tuple] = field(default_factory=list)
    folds: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)


@functools.cache
def _encoded(suffix: str) -> bytes:
    samples = 0.3 * np.sin(0.3 * np.arange(RATE // 5))
    content = io.BytesIO()
    if suffix == ".npy":
        np.save(content, samples.astype(np.float32))
    else:
        soundfile.write(content, samples, RATE, format={".mp3": "MP3"}.get(suffix, suffix[1:].upper()))
    return content.getvalue()


def sounds(root: Path, *names: str) -> None:
    """Write a fifth of a second of a tone under each name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encoded(path.suffix.lower()))


def text(root: Path, name: str, content: str, encoding: str = "utf-8") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
