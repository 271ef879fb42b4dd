"""Clips of one tone."""

import numpy as np
import soundfile

from atk.data import Clip


def write_clip(path, frequency, seconds=1.0, level=0.1, captions=("a tone",)):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    return Clip(path.name, path, captions, seconds)


RATE = 1000
