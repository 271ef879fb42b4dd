"""Bells, alarms, horns, and whistles. Each function renders one sound from a time axis `t` and a pitch factor."""

import numpy as np
from numpy.random import Generator

from atk.soundscapes.primitives import (
    glide,
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
    tone,
    total,
    vibrato,
)

_BELL_RATIOS = (0.5, 1.0, 1.19, 1.5, 2.0, 2.66, 3.01, 4.17, 5.43)
_BELL_GAINS = (0.6, 1.0, 0.8, 0.45, 0.8, 0.4, 0.3, 0.25, 0.2)
_DTMF_ROWS = (697.0, 770.0, 852.0, 941.0)
_DTMF_COLUMNS = (1209.0, 1336.0, 1477.0)


def church_bell(rng: Generator, t: np.ndarray, pitch: float, strike: float = 440.0, beating: float = 0.0) -> np.ndarray:
    """Inharmonic partials of a cast bell (hum, prime, minor third, fifth, octave).

    If `beating` is nonzero, a copy that is `beating` Hz higher is added.
    """
    freqs = pitch * strike * rng.uniform(0.95, 1.05) * np.array(_BELL_RATIOS) * rng.uniform(0.995, 1.005, 9)
    taus = t[-1] * 0.5 / (0.6 + 0.4 * np.array(_BELL_RATIOS))
    ring = partials(t, freqs, _BELL_GAINS, taus)
    if beating:
        ring += partials(t, freqs + beating, _BELL_GAINS, taus)
    return ring * struck(t, 0.004 + 0.01 * beating, t[-1])


def doorbell(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Ding-dong: two chime bars, the second one a major third lower."""
    high = pitch * rng.uniform(640, 700)
    half = t[: len(t) // 2]
    bars = [partials(half, (f, 2.76 * f, 5.4 * f), (1, 0.3, 0.1), (0.2, 0.08, 0.04)) for f in (high, high / 1.26)]
    return grains(t, (0.0, t[-1] / 2), bars)


def telephone(rng: Generator, t: np.ndarray, pitch: float, tones: tuple[float, float] = (1050, 1330)) -> np.ndarray:
    """A bell hammer: two metallic tones struck alternately about twenty times per second."""
    hits = rng.uniform(19, 23)
    stroke = time_axis(1.6 / hits, sample_rate(t))
    gongs = [partials(stroke, (pitch * f, 2.4 * pitch * f, 3.9 * pitch * f), (1, 0.6, 0.3), [0.04] * 3) for f in tones]
    return grains(t, np.arange(0.0, t[-1], 1 / hits), gongs) * held(t, 0.01, 0.08)


def alarm(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Square-wave beeps of a digital clock, in groups of four."""
    beep_time = time_axis(0.07, sample_rate(t))
    square = tilt(7, 1.0) * (np.arange(7) % 2 == 0)
    beep = harmonics(beep_time, pitch * rng.uniform(1900, 2100), square) * held(beep_time, 0.004, 0.004)
    starts = rhythm(rng, t, rng.uniform(0.58, 0.66))
    return grains(t, [start + 0.12 * beep_index for start in starts for beep_index in range(4)], [beep])


def siren(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """A slow wail up and down."""
    wail = 0.5 - 0.5 * np.cos(2 * np.pi * (rng.uniform(0.6, 0.9) * t + rng.uniform(0, 0.3)))
    return harmonics(t, pitch * (600 + 800 * wail), tilt(10, 1.3)) * held(t, 0.08, 0.12)


def car_horn(rng: Generator, t: np.ndarray, pitch: float, chord: tuple[float, ...] = (1.0, 1.26)) -> np.ndarray:
    """Reedy notes of a chord with the frequency ratios `chord`."""
    base = pitch * rng.uniform(390, 430)
    gains = tilt(18, 0.4) * np.exp(-(((np.arange(18) - 5) / 6.0) ** 2))
    return total(harmonics(t, base * ratio, gains) for ratio in chord) * held(t, 0.02, 0.05)


def kettle(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """A steam whistle that rises in pitch and hisses."""
    base = pitch * rng.uniform(1900, 2200)
    freq = glide(t, base * 0.8, base, base * 1.05, base * 1.06) * vibrato(t, 11, 0.004)
    return (tone(t, freq) + 0.4 * tone(t, 1.5 * freq) + 0.25 * noise(rng, t, 2500, 7000)) * held(t, 0.25, 0.1)


def keypad(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Telephone keys: random DTMF tones, four to five per second."""
    key_time = time_axis(0.13, sample_rate(t))
    starts = rhythm(rng, t, rng.uniform(0.2, 0.25))
    keys = [
        (tone(key_time, pitch * rng.choice(_DTMF_ROWS)) + tone(key_time, pitch * rng.choice(_DTMF_COLUMNS)))
        * held(key_time, 0.005, 0.005)
        for _ in starts
    ]
    return grains(t, starts, keys)


def clock(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Tick-tock: dry clicks in a regular rhythm."""
    click_time = time_axis(0.03, sample_rate(t))
    clicks = [
        partials(click_time, (f, 1.7 * f), (1, 0.7), (0.004, 0.003))
        for f in pitch * np.array([2600.0, 2100.0]) * rng.uniform(0.95, 1.05)
    ]
    return grains(t, rhythm(rng, t, rng.uniform(0.22, 0.27)), clicks)
