"""Clips with a single tone."""

import numpy as np
import soundfile

from atk.data import Clip

RATE = 1000


def write_clip(path, frequency, seconds=1.0, level=0.1, captions=("a tone",)):
    """Write a tone at `frequency` Hz and return its clip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    return Clip(path.name, path, captions, seconds)
