"""Musical instruments. Each function plays a short random tune over a time axis `t` in the register of `pitch`."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from atk.soundscapes.primitives import (
    grains,
    harmonics,
    held,
    noise,
    partials,
    rhythm,
    sample_rate,
    struck,
    tilt,
    time_axis,
    total,
    vibrato,
)

_SCALE = 2.0 ** (np.array([0, 2, 4, 7, 9]) / 12.0)  # major pentatonic: any order of notes sounds like a tune


def _tune(
    rng: Generator,
    t: np.ndarray,
    base: float,
    every: float,
    ring: float,
    note: Callable[[np.ndarray, float], np.ndarray],
) -> np.ndarray:
    """Play `note(time, freq)` at random degrees of a scale on `base` Hz.

    Notes are `every` s apart, and each lasts `ring` times as long.
    """
    every = min(every, 0.9 * t[-1])
    note_time = time_axis(every * ring, sample_rate(t))
    starts = rhythm(rng, t, every)
    return grains(t, starts, [note(note_time, base * degree) for degree in rng.choice(_SCALE, len(starts))])


def piano(rng: Generator, t: np.ndarray, pitch: float, rolloff: float = 1.5, tau: float = 0.5) -> np.ndarray:
    """Hammered strings: slightly stretched partials of gain `order^-rolloff`, of which the upper ones decay faster."""
    order = np.arange(1, 11)

    def note(time: np.ndarray, freq: float) -> np.ndarray:
        stretched = freq * order * np.sqrt(1 + 0.0006 * order**2)
        return partials(time, stretched, order**-rolloff, tau / order**0.7) * held(time, 0.004, 0.05)

    return _tune(rng, t, pitch * 330, rng.uniform(0.28, 0.36), 1.4, note)


def guitar(rng: Generator, t: np.ndarray, pitch: float, pluck: float = 0.18, tau: float = 0.35) -> np.ndarray:
    """Plucked strings: the pluck point, as a fraction of the string, cancels some partials."""
    order = np.arange(1, 15)
    gains = np.abs(np.sin(np.pi * order * pluck)) / order

    def note(time: np.ndarray, freq: float) -> np.ndarray:
        return partials(time, freq * order, gains, tau / (0.5 + 0.5 * order)) * held(time, 0.003, 0.04)

    return _tune(rng, t, pitch * 165, rng.uniform(0.2, 0.26), 1.6, note)


def flute(rng: Generator, t: np.ndarray, pitch: float, overtone: float = 0.25, breath: float = 0.06) -> np.ndarray:
    """Nearly a sine, with breath noise and vibrato."""

    def note(time: np.ndarray, freq: float) -> np.ndarray:
        voice = harmonics(time, freq * vibrato(time, 5.0, 0.006), (1.0, overtone, 0.3 * overtone))
        return (voice + breath * noise(rng, time, freq, 3 * freq)) * held(time, 0.05, 0.06)

    return _tune(rng, t, pitch * 620, rng.uniform(0.4, 0.5), 1.0, note)


def violin(rng: Generator, t: np.ndarray, pitch: float, body: float = 1.0) -> np.ndarray:
    """Bowed strings: a sawtooth through the resonances of the body, scaled by `body`, with deep vibrato."""
    order = np.arange(1, 25)

    def note(time: np.ndarray, freq: float) -> np.ndarray:
        position = order * freq / body
        resonances = ((500, 300), (1400, 500), (3000, 900))  # center and width in Hz
        gains = total(np.exp(-(((position - center) / width) ** 2)) for center, width in resonances)
        return harmonics(time, freq * vibrato(time, 6.0, 0.012), (0.15 + gains) / order) * held(time, 0.1, 0.08)

    return _tune(rng, t, pitch * 392, rng.uniform(0.55, 0.7), 1.02, note)


def trumpet(rng: Generator, t: np.ndarray, pitch: float, bright: float = 0.5) -> np.ndarray:
    """Brass: the upper harmonics build up after the attack; `bright` is their tilt."""

    def note(time: np.ndarray, freq: float) -> np.ndarray:
        dull = harmonics(time, freq, tilt(6, 1.6))
        brassy = harmonics(time, freq, tilt(16, bright))
        return (0.4 * dull + brassy * held(time, 0.09, 0.1)) * held(time, 0.03, 0.05)

    return _tune(rng, t, pitch * 300, rng.uniform(0.24, 0.32), 0.92, note)


def drum(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Alternating kick and snare."""
    hit_time = time_axis(0.22, sample_rate(t))
    sweep = pitch * (55 + 90 * np.exp(-hit_time / 0.02))
    kick = 1.4 * harmonics(hit_time, sweep, (1.0, 0.2)) * struck(hit_time, 0.002, 0.07)
    snare = noise(rng, hit_time, 900 * pitch, 7000) * struck(hit_time, 0.001, 0.05) * 0.6
    snare = snare + 0.5 * partials(hit_time, (190 * pitch, 330 * pitch), (1, 0.6), (0.05, 0.04))
    return grains(t, rhythm(rng, t, rng.uniform(0.2, 0.26)), [kick, snare])
