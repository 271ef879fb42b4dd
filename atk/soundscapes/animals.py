"""Animal calls. Each function renders one call from a time axis `t` and a pitch factor; see `primitives`."""

import numpy as np
from numpy.random import Generator

from atk.soundscapes.primitives import (
    formants,
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
    tremolo,
    vibrato,
)


def _size(pitch: float) -> float:
    """Scale of the mouth resonances: a higher voice belongs to a smaller animal."""
    return pitch**0.5


def bark(rng: Generator, t: np.ndarray, pitch: float, mouth: float = 900.0, breath: float = 0.35) -> np.ndarray:
    """A short rise and fall in pitch with a breathy burst; `mouth` is the first resonance in Hz."""
    base = pitch * rng.uniform(270, 340)
    mouth = mouth * _size(pitch)
    freq = glide(t, base * 0.8, base * 1.6, base * 1.3, base * 0.8)
    voice = harmonics(t, freq, formants(base * 1.3, 24, (mouth, 300), (2.1 * mouth, 500)) + 0.1 * tilt(24, 1))
    voice = voice / np.abs(voice).max() + breath * noise(rng, t, 0.7 * mouth, 3.0 * mouth)
    return voice * struck(t, 0.012, t[-1] * rng.uniform(0.25, 0.35))


def meow(rng: Generator, t: np.ndarray, pitch: float, sob: float = 0.0) -> np.ndarray:
    """A long vowel that opens and closes; `sob` adds the vibrato of a baby's cry."""
    base = pitch * rng.uniform(480, 560)
    freq = glide(t, base * 0.85, base * 1.25, base * 1.2, base * 1.05, base * 0.75)
    freq = freq * vibrato(t, rng.uniform(5.0, 6.5), 0.01 + sob * 0.04)
    size = _size(pitch)
    closed = harmonics(t, freq, formants(base, 14, (700 * size, 250)))
    opened = harmonics(t, freq, formants(base, 14, (1500 * size, 500), (3000 * size, 700)))
    opening = np.sin(np.pi * np.clip(t / t[-1], 0, 1)).astype(np.float32)
    return (closed * (1.0 - opening) + opened * opening) * held(t, 0.06, 0.25 - 0.1 * sob)


def chirp(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """A fast whistle that sweeps down and up again."""
    base = pitch * rng.uniform(3000, 3600)
    freq = glide(t, base * 1.3, base * 0.85, base * 1.15, base * 1.4)
    return (tone(t, freq) + 0.1 * tone(t, np.minimum(2 * freq, 7500))) * held(t, 0.02, 0.04)


def stridulate(rng: Generator, t: np.ndarray, pitch: float, carrier: float = 4500.0, pulses: int = 3) -> np.ndarray:
    """Groups of `pulses` short, high pulses, about three groups per second."""
    freq = pitch**0.5 * carrier * rng.uniform(0.97, 1.03)
    pulse_time = time_axis(0.022, sample_rate(t))
    pulse = tone(pulse_time, freq) * held(pulse_time, 0.006, 0.01)
    starts = rhythm(rng, t, rng.uniform(0.30, 0.38), 0.04)
    return grains(t, [start + 0.028 * pulse_index for start in starts for pulse_index in range(pulses)], [pulse])


def croak(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """A train of damped throat pulses."""
    period = 1.0 / (pitch * rng.uniform(48, 60))
    throat = pitch * rng.uniform(560, 640)
    pulse_time = time_axis(0.03, sample_rate(t))
    pulse = partials(pulse_time, (throat, 2.6 * throat), (1.0, 0.6), (0.006, 0.004))
    return grains(t, np.arange(0.0, t[-1], period), [pulse]) * held(t, 0.12, 0.05)


def moo(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """A low vowel, first nasal, then open."""
    base = pitch * rng.uniform(115, 140)
    freq = glide(t, base * 0.85, base * 1.1, base * 1.15, base * 1.05, base * 0.8)
    size = _size(pitch)
    nasal = harmonics(t, freq, formants(base, 30, (250 * size, 80)))
    opened = harmonics(t, freq, formants(base, 30, (480 * size, 120), (900 * size, 150), (2300 * size, 250)))
    opening = np.clip(3.0 * t / t[-1] - 0.6, 0, 1).astype(np.float32)
    return (nasal * (1.0 - opening) + opened * opening) * held(t, 0.12, 0.2)


def bleat(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """A nasal call that trembles 7.5 to 9.5 times per second."""
    base = pitch * rng.uniform(300, 350)
    shake = rng.uniform(7.5, 9.5)
    freq = glide(t, base, base * 1.05, base * 0.9) * vibrato(t, shake, 0.05)
    voice = harmonics(t, freq, formants(base, 20, (1100 * _size(pitch), 250), (2600 * _size(pitch), 400)))
    return voice * tremolo(t, shake, 0.7) * held(t, 0.05, 0.1)


def hoot(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """A soft, nearly pure low whistle."""
    base = pitch * rng.uniform(330, 390)
    freq = glide(t, base * 0.92, base, base, base * 0.93)
    return (tone(t, freq) + 0.12 * tone(t, 2 * freq) + 0.03 * noise(rng, t, 300, 900)) * held(t, 0.08, 0.12)
