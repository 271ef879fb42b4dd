"""Weather, water, fire, and machines. Each function renders one sound from a time axis `t` and a pitch factor."""

import numpy as np
from numpy.random import Generator

from atk.soundscapes.primitives import (
    cycles,
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
    wander,
)


def rain(rng: Generator, t: np.ndarray, pitch: float, low: float = 1500.0, drops: float = 90.0) -> np.ndarray:
    """Steady hiss above `low` Hz with `drops` audible drops per second."""
    hiss = noise(rng, t, low * pitch, 7500)
    drop_time = time_axis(0.012, sample_rate(t))
    splashes = [partials(drop_time, [rng.uniform(2000, 6500)], [rng.uniform(1, 6)], [0.003]) for _ in range(12)]
    return (hiss + grains(t, rng.uniform(0, t[-1], int(drops * t[-1])), splashes)) * held(t, 0.15, 0.15)


def wind(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Gusts: two noise bands that fade into each other."""
    gust = wander(rng, t, 0.0, 1.0, 0.45)
    low = noise(rng, t, 150 * pitch, 350 * pitch)
    high = noise(rng, t, 450 * pitch, 750 * pitch)
    return ((1 - gust) * low + gust * high) * (0.4 + 0.6 * gust) * held(t, 0.2, 0.2)


def waves(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Surf: broadband noise that swells, breaks brightly, and recedes."""
    phase = np.mod(rng.uniform(0.5, 0.7) * t + rng.uniform(0, 0.2), 1.0)
    swell = np.where(phase < 0.6, (phase / 0.6) ** 2, (1 - (phase - 0.6) / 0.4) ** 1.5).astype(np.float32)
    body = noise(rng, t, 120, 900 * pitch, slope=3)
    foam = noise(rng, t, 900, 6000 * min(pitch, 1.2))
    return (0.6 * body * (0.2 + swell) + foam * swell**2) * held(t, 0.1, 0.15)


def thunder(rng: Generator, t: np.ndarray, pitch: float, crack: float = 0.35, tau: float = 0.4) -> np.ndarray:
    """A crack, then a rolling rumble that fades; `tau` is its decay time as a fraction of the sound."""
    rumble = noise(rng, t, 30, 130 * pitch) * (0.3 + wander(rng, t, 0.0, 1.0, 0.12)) * struck(t, 0.05, tau * t[-1])
    return rumble + crack * noise(rng, t, 200, 2500, slope=3) * struck(t, 0.003, 0.1)


def fire(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Irregular snaps over a low roar."""
    snap_time = time_axis(0.012, sample_rate(t))
    snaps = [
        noise(rng, snap_time, 1200 * pitch, 6000) * struck(snap_time, 0.0005, 0.002) * gain
        for gain in rng.exponential(5.0, 16)
    ]
    roar = 0.7 * noise(rng, t, 80, 350 * pitch) * wander(rng, t, 0.5, 1.0, 0.2)
    return (roar + grains(t, rng.uniform(0, t[-1], int(22 * t[-1])), snaps)) * held(t, 0.1, 0.1)


def drip(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """A bubble: a short tone that rises as it fades."""
    base = pitch * rng.uniform(750, 950)
    freq = base * (1.0 + 0.9 * np.clip(t / 0.09, 0, 1))
    return tone(t, freq) * struck(t, 0.003, 0.035)


def engine(rng: Generator, t: np.ndarray, pitch: float, idle: float = 34.0, rasp: float = 0.3) -> np.ndarray:
    """Firing strokes at `idle` Hz through a muffled exhaust, with one cylinder louder than the others."""
    freq = idle * pitch * rng.uniform(0.95, 1.05) * wander(rng, t, 0.97, 1.03, 0.3)
    strokes = harmonics(t, freq, tilt(30, 0.9)) * tremolo(t, freq / 4, 0.3)
    return (strokes + rasp * noise(rng, t, 150, 900) * tremolo(t, freq, 0.8)) * held(t, 0.15, 0.15)


def helicopter(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Noise chopped by rotor blades ten to thirteen times per second, over the whine of a turbine."""
    chop = 1.0 - np.mod(cycles(t, pitch * rng.uniform(10, 13)), 1.0).astype(np.float32)
    whine = tone(t, pitch * rng.uniform(1500, 1700))
    return (noise(rng, t, 60, 700 * pitch, slope=2) * (0.05 + chop**4) + 0.03 * whine) * held(t, 0.2, 0.2)


def drill(rng: Generator, t: np.ndarray, pitch: float, spin: float = 210.0, rough: float = 0.0) -> np.ndarray:
    """A motor that spins up under load: buzzing harmonics and grinding noise; `rough` adds misfires."""
    speed = pitch * spin * rng.uniform(0.95, 1.05)
    freq = glide(t, 0.6 * speed, speed, speed, 0.96 * speed, speed, 0.97 * speed, 0.8 * speed)
    buzz = harmonics(t, freq, tilt(40, 0.35))
    grind = noise(rng, t, 2000 * pitch, 6000) * tremolo(t, freq / 2, 0.5)
    return (buzz / buzz.std() + 0.8 * grind) * (1 - rough * tremolo(t, speed / 6, 1.0)) * held(t, 0.08, 0.08)


def footsteps(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Heel thud and sole scuff, about two steps per second."""
    step_time = time_axis(0.2, sample_rate(t))
    steps = [
        3 * partials(step_time, (90 * pitch * lean, 160 * pitch), (1, 0.5), (0.03, 0.02))
        + 0.5 * noise(rng, step_time, 500, 2500) * struck(step_time + t[1], 0.05, 0.03)
        for lean in rng.uniform(0.9, 1.1, 2)
    ]
    return grains(t, rhythm(rng, t, rng.uniform(0.42, 0.55), 0.04), steps)


def knock(rng: Generator, t: np.ndarray, pitch: float, panel: float = 280.0, ring: float = 0.025) -> np.ndarray:
    """A knuckle on wood: a few damped panel modes; `ring` is their decay time in s."""
    freqs = pitch * panel * rng.uniform(0.94, 1.06) * np.array([1.0, 1.58, 2.24, 3.7])
    return partials(t, freqs, (1.0, 0.7, 0.4, 0.3), ring * np.array([1.0, 0.8, 0.6, 0.4])) + 0.3 * noise(
        rng, t, 800, 3000
    ) * struck(t, 0.0005, 0.004)


def clap(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """A burst of noise around the resonance of cupped hands."""
    center = pitch * rng.uniform(1100, 1400)
    return noise(rng, t, center * 0.75, center * 1.6) * struck(t, 0.001, rng.uniform(0.018, 0.028))


def clink(rng: Generator, t: np.ndarray, pitch: float) -> np.ndarray:
    """Two glasses: high inharmonic modes."""
    freqs = pitch * rng.uniform(2300, 2700) * np.array([1.0, 1.07, 2.32, 2.45])
    return partials(t, freqs, (1.0, 0.8, 0.5, 0.4), (0.12, 0.1, 0.06, 0.05))
