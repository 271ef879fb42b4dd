"""Reverberation: impulse responses of simulated rooms, or recorded ones, at a given direct-to-reverberant ratio."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.random import Generator

from atk.data import load_audio
from atk.extras import optional_imports
from atk.soundscapes.config import SoundscapeConfig

_DIRECT = 0.0025  # seconds after the peak that belong to the direct sound
_LOWEST_SIZE, _HIGHEST_SIZE = (3.0, 3.0, 2.4), (10.0, 8.0, 4.0)  # of simulated rooms, in meters
_WALL = 0.5  # smallest distance of the source and the microphone from the walls, in meters
_IMAGE_ORDER = 3  # reflections that are computed exactly; rays give the later ones

Respond = Callable[[Generator], np.ndarray]  # draws an impulse response, float32 [n]


class Rooms(Protocol):
    """A source of rooms."""

    def draw(self, rng: Generator, config: SoundscapeConfig) -> Respond:
        """Draw a room, with a microphone; each call of the result puts a sound somewhere in it."""
        ...


@dataclass(frozen=True)
class RecordedRooms:
    """Recorded impulse responses; those in the same folder belong to the same room.

    Attributes:
        files: the files of each room.
    """

    files: Sequence[Sequence[Path]]

    def draw(self, rng: Generator, config: SoundscapeConfig) -> Respond:
        """Draw one of the folders."""
        files = self.files[int(rng.integers(len(self.files)))]
        return lambda rng: load_audio(files[int(rng.integers(len(files)))], config.sample_rate, notes=[]).numpy()


@dataclass(frozen=True)
class SimulatedRooms:
    """Box-shaped rooms: early reflections by image sources, late ones by ray tracing.

    Raises:
        ImportError: pyroomacoustics is not installed.
    """

    def __post_init__(self) -> None:
        _pyroomacoustics()

    def draw(self, rng: Generator, config: SoundscapeConfig) -> Respond:
        """Draw the size of a room, its reverberation time, and the position of the microphone."""
        size = rng.uniform(_LOWEST_SIZE, _HIGHEST_SIZE)
        seconds = rng.uniform(*config.rt60)
        microphone = rng.uniform(_WALL, size - _WALL)
        return lambda rng: _simulate(size, seconds, microphone, rng, config.sample_rate)


def _simulate(size: np.ndarray, seconds: float, microphone: np.ndarray, rng: Generator, rate: int) -> np.ndarray:
    """Simulate the impulse response from a random position in a room."""
    pyroomacoustics = _pyroomacoustics()
    pyroomacoustics.constants.set("num_threads", 1)  # rays are summed in the order of the threads
    pyroomacoustics.random.seed(int(rng.integers(2**32)))
    absorption, _ = pyroomacoustics.inverse_sabine(seconds, size)
    materials = pyroomacoustics.Material(absorption)
    box = pyroomacoustics.ShoeBox(size, fs=rate, materials=materials, max_order=_IMAGE_ORDER, ray_tracing=True)
    box.add_source(rng.uniform(_WALL, size - _WALL))
    box.add_microphone(microphone)
    box.compute_rir()
    return np.asarray(box.rir[0][0], np.float32)


def _pyroomacoustics() -> ModuleType:
    with optional_imports:
        import pyroomacoustics  # pyrefly: ignore[untyped-import]  # it has no annotations
    return pyroomacoustics


def reverberate(wave: np.ndarray, response: np.ndarray, ratio_db: float, rate: int) -> np.ndarray:
    """Convolve a sound with an impulse response whose reverberation is scaled to a direct-to-reverberant ratio.

    The direct sound is everything up to 2.5 ms after the peak of the response. An anechoic response stays as it is.

    Args:
        wave: float32 `[n]`.
        response: float32 `[m]`, not silent.
        ratio_db: energy of the direct sound relative to all that follows, in dB.
        rate: sample rate in Hz.

    Returns:
        float32 `[k]` with k >= n: the direct sound starts at sample 0 as in `wave`, and the reverberation follows.
    """
    from scipy.signal import fftconvolve  # pyrefly: ignore[untyped-import]  # its stubs are a separate package

    peak = int(np.abs(response).argmax())
    direct, rest = np.split(response.astype(np.float64), [peak + round(_DIRECT * rate)])
    energy = np.square(rest).sum()
    if energy > 0:
        rest *= np.sqrt(np.square(direct).sum() / energy * 10 ** (-ratio_db / 10))
    return fftconvolve(wave, np.concatenate((direct, rest)))[peak:].astype(np.float32)
