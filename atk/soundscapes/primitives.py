"""Building blocks of synthesized events: tones, harmonic sums, damped partials, shaped noise, envelopes, grains.

`t` is always a time axis in seconds, float64 `[n]`, from `time_axis`. Sounds and gains are float32 `[n]`.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
from numpy.random import Generator
from scipy import fft  # pyrefly: ignore[untyped-import]  # its stubs are a separate package

_TABLE = 1 << 14  # samples per wavetable period; even without interpolation, images stay below -40 dB

Floats = Sequence[float] | np.ndarray


def time_axis(seconds: float, rate: float) -> np.ndarray:
    """Sample times of a sound of `seconds` at `rate` Hz, from 0; at least two samples."""
    return np.arange(max(2, round(seconds * rate))) / rate


def sample_rate(t: np.ndarray) -> float:
    """Sample rate of a time axis in Hz."""
    return 1.0 / t[1]


def total(sounds: Iterable[np.ndarray]) -> np.ndarray:
    """Sum of `sounds`, added in order."""
    return reduce(np.add, sounds)


def glide(t: np.ndarray, *points: float) -> np.ndarray:
    """A value that moves linearly through `points`, evenly spaced over the sound."""
    return np.interp(t / t[-1], np.linspace(0.0, 1.0, len(points)), points)


def vibrato(t: np.ndarray, rate: float, depth: float, start: float = 0.0) -> np.ndarray:
    """A frequency factor that oscillates by `depth` (0.01 = 1%) at `rate` Hz; `start` is the phase in cycles."""
    return 1.0 + depth * np.sin((2 * np.pi * (rate * t + start)).astype(np.float32))


def cycles(t: np.ndarray, freq: float | np.ndarray) -> np.ndarray:
    """Phase in cycles of an oscillator with frequency `freq` (Hz, constant or `[n]`), in float64 for long sounds."""
    return np.cumsum(freq, dtype=np.float64) * t[1] if isinstance(freq, np.ndarray) else freq * t


def tone(t: np.ndarray, freq: float | np.ndarray) -> np.ndarray:
    """A sine of frequency `freq` in Hz."""
    turns = cycles(t, freq)
    return np.sin((2 * np.pi * (turns - np.floor(turns))).astype(np.float32))


def harmonics(t: np.ndarray, freq: float | np.ndarray, gains: Floats) -> np.ndarray:
    """Sum of harmonics 1, 2, ... of `freq` with `gains`, without those above the Nyquist frequency."""
    highest = max(1, int(0.5 * sample_rate(t) / np.max(freq)))
    spectrum = np.zeros(_TABLE // 2 + 1, np.complex64)
    gains = np.asarray(gains, np.float32)[: min(highest, _TABLE // 2 - 1)]
    # Quadratic phases keep the crest factor of a harmonic sum low (Schroeder, 1970).
    order = np.arange(len(gains))
    spectrum[1 : len(gains) + 1] = gains * np.exp(-1j * np.pi * order**2 / max(1, len(gains)))
    table = np.asarray(fft.irfft(spectrum, _TABLE)) * (_TABLE / 2)
    index = (cycles(t, freq) * _TABLE).astype(np.int64) & (_TABLE - 1)
    return table[index]


def tilt(count: int, power: float) -> np.ndarray:
    """Gains k^-power of `count` harmonics: power 1 is a sawtooth, 2 is dull, 0 is a pulse."""
    return np.arange(1, count + 1, dtype=np.float32) ** -power


def formants(freq: float, count: int, *peaks: tuple[float, float]) -> np.ndarray:
    """Gains of `count` harmonics of `freq` for resonances given as (center, width) in Hz."""
    position = freq * np.arange(1, count + 1)
    return total(1.0 / (1.0 + ((position - center) / width) ** 2) for center, width in peaks)


def partials(t: np.ndarray, freqs: Floats, gains: Floats, taus: Floats) -> np.ndarray:
    """Damped sines: sum of gain exp(-t / tau) sin(2 pi f t), without those above the Nyquist frequency."""
    out = np.zeros(len(t), np.float32)
    time = t.astype(np.float32)
    for freq, gain, tau in zip(freqs, gains, taus, strict=True):
        if freq < 0.48 * sample_rate(t):
            out += np.float32(gain) * np.exp(time * np.float32(-1 / tau)) * np.sin(time * np.float32(2 * np.pi * freq))
    return out


def noise(rng: Generator, t: np.ndarray, low: float, high: float, slope: float = 0.0) -> np.ndarray:
    """Noise of unit RMS from `low` to `high` Hz (soft edges) that falls by `slope` dB per octave."""
    size = fft.next_fast_len(len(t), real=True)
    spectrum = fft.rfft(rng.standard_normal(size, np.float32))
    freqs = np.maximum(fft.rfftfreq(size, t[1]), 1.0).astype(np.float32)
    shape = 1.0 / np.sqrt((1.0 + (low / freqs) ** 6) * (1.0 + (freqs / high) ** 6))
    if slope:
        shape *= (freqs / low) ** np.float32(-slope / 6.0206)
    out = fft.irfft(spectrum * shape, size)[: len(t)]
    return out / (np.sqrt(np.mean(np.square(out))) + 1e-12)


def struck(t: np.ndarray, attack: float, tau: float) -> np.ndarray:
    """Envelope of a struck sound: linear rise over `attack` s, then exp(-t / tau)."""
    late = np.maximum(t - attack, 0.0)
    return (np.minimum(t / attack, 1.0) * np.exp(-late / tau)).astype(np.float32)


def held(t: np.ndarray, rise: float, fall: float) -> np.ndarray:
    """Envelope of a held sound: raised-cosine rise and fall over `rise` and `fall` s, each at most half of it."""
    ends = np.minimum(t / min(rise, t[-1] / 2), (t[-1] - t) / min(fall, t[-1] / 2))
    return (0.5 - 0.5 * np.cos(np.pi * np.clip(ends, 0.0, 1.0))).astype(np.float32)


def tremolo(t: np.ndarray, rate: float | np.ndarray, depth: float, start: float = 0.0) -> np.ndarray:
    """Gain that oscillates between 1 - depth and 1 at `rate` Hz."""
    swing = 0.5 + 0.5 * np.cos(2 * np.pi * (cycles(t, rate) + start))
    return (1.0 - depth + depth * swing).astype(np.float32)


def wander(rng: Generator, t: np.ndarray, low: float, high: float, every: float) -> np.ndarray:
    """Random values in [low, high] about every `every` s, linearly interpolated."""
    knots = max(2, 2 + int(t[-1] / every))
    return np.interp(t, np.linspace(0.0, t[-1], knots), rng.uniform(low, high, knots)).astype(np.float32)


def rhythm(rng: Generator, t: np.ndarray, every: float, jitter: float = 0.0) -> np.ndarray:
    """Start times `every` s apart, each shifted by up to `jitter * every`; at least one."""
    times = np.arange(0.0, max(t[-1] - 0.5 * every, 1e-9), every)
    return np.abs(times + every * jitter * rng.uniform(-1.0, 1.0, len(times)))


def grains(t: np.ndarray, times: Floats, sounds: Sequence[np.ndarray]) -> np.ndarray:
    """Place `sounds`, cycling through them, at start times `times`; they are cut at the end of `t`."""
    out = np.zeros(len(t), np.float32)
    for index, start in enumerate(times):
        first = int(start / t[1])
        sound = sounds[index % len(sounds)][: max(0, len(out) - first)]
        out[first : first + len(sound)] += sound
    return out
