"""Folders of short recordings of single events: a tone per recording, with silence around it."""

import numpy as np
import soundfile

from atk.soundscapes import SoundscapeConfig

SILENCE = 0.2  # seconds before and after each tone


def tone(frequency: float, seconds: float = 0.5, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """A tone of constant level with silence around it, float64 `[n, channels]`."""
    time = np.arange(round(seconds * rate)) / rate
    gap = np.zeros(round(SILENCE * rate))
    wave = np.concatenate([gap, 0.3 * np.sin(2 * np.pi * frequency * time), gap])
    return np.repeat(wave[:, None], channels, axis=1)


def write_tones(folder, names, **options):
    """Write a tone for each file name; the frequencies differ and identify the recordings."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = options.get("rate", 16000)
        soundfile.write(path, tone(200.0 + 50.0 * index, **options), rate)
    return folder


def write_classes(folder, classes=("bark", "siren", "rain", "sea_waves"), count=4):
    """One subfolder per class, with two takes of each of `count` sources."""
    names = [
        f"{name}/{1000 + 10 * row + source}_{take}.wav"
        for row, name in enumerate(classes)
        for source in range(count)
        for take in "ab"
    ]
    return write_tones(folder, names)


def recorded(folder, **overrides) -> SoundscapeConfig:
    """Settings of a few scenes made of the recordings in a folder."""
    settings = {"train": 8, "val": 4, "test": 6, "twins": 2, "events": (1, 3), "seconds": (3.0, 4.0)}
    return SoundscapeConfig(**{**settings, "recordings": str(folder), **overrides})
