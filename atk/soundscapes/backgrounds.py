"""Backgrounds of unit RMS: colored noise, mains hum, babble of distant voices, and recordings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator

from atk.data import audio_info, load_audio
from atk.soundscapes.primitives import formants, harmonics, noise, time_axis, total, vibrato, wander

_SLOPES = {"white": 0.0, "pink": 3.0, "brown": 6.0}
_VOICES = 5
_QUIETEST = 1e-4  # RMS below which a recording is not amplified to unit RMS


def background(name: str, rng: Generator, samples: int, rate: int) -> np.ndarray:
    """Render the background `name` (white, pink, brown, hum, or babble): float32 `[samples]` of unit RMS."""
    t = time_axis(samples / rate, rate)
    if name in _SLOPES:
        wave = noise(rng, t, 30.0, 0.47 * rate, slope=_SLOPES[name])
    elif name == "hum":
        mains = float(rng.choice((50.0, 60.0)))
        wave = harmonics(t, mains, rng.uniform(0.2, 1.0, 12) / np.arange(1, 13)) + 0.1 * noise(
            rng, t, 50, 2000, slope=3
        )
    else:
        wave = total(_voice(rng, t) for _ in range(_VOICES))
    return (wave / np.sqrt(np.mean(np.square(wave)))).astype(np.float32)


def recorded_background(files: Sequence[Path], rng: Generator, samples: int, rate: int) -> np.ndarray:
    """Load a random part of one of the `files`, repeated if it is too short: float32 `[samples]` of unit RMS.

    A part that is almost silent stays quiet instead.
    """
    file = files[int(rng.integers(len(files)))]
    seconds = samples / rate
    start = rng.random() * max(0.0, audio_info(file).seconds - seconds)
    wave = np.resize(load_audio(file, rate, start, seconds, notes=[]).numpy(), samples)
    return (wave / max(_QUIETEST, np.sqrt(np.mean(np.square(wave))))).astype(np.float32)


def _voice(rng: Generator, t: np.ndarray) -> np.ndarray:
    """A voice with vowels that change about five times per second."""
    base = rng.uniform(95, 230)
    freq = base * vibrato(t, rng.uniform(0.5, 1.0), 0.1, rng.uniform())
    mixes = [np.maximum(wander(rng, t, -0.5, 1.0, 0.2), 0.0) for _ in range(2)]
    vowels = [
        harmonics(t, freq, formants(base, 30, (rng.uniform(300, 800), 90), (rng.uniform(900, 2300), 150)))
        for _ in mixes
    ]
    return total(mix * vowel for mix, vowel in zip(mixes, vowels, strict=True))
