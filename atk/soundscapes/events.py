"""Event classes: how each is rendered, repeated, and pitched, and which class it is easily confused with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator

from atk.soundscapes import animals, instruments, nature, signals
from atk.soundscapes.primitives import grains, time_axis

Render = Callable[[Generator, np.ndarray, float], np.ndarray]
AUDIBLE = 10**-3.5  # energy of a 10 ms block relative to the loudest one: 35 dB below it


@dataclass(frozen=True)
class EventClass:
    """A class of sounds."""

    name: str
    """Class name, as in events.csv and tags.csv."""
    render: Render
    """Function of (rng, t `[n]` in seconds, pitch factor) that returns a float32 waveform `[n]` of any level."""
    unit: tuple[float, float] | None = None
    """Shortest and longest single call in seconds; None for a continuous sound, which cannot be counted."""
    repeats: tuple[int, int] = (1, 3)
    """Fewest and most calls if the count is not given."""
    pitched: bool = True
    """Whether low and high versions are different enough to be named."""
    similar_to: str = ""
    """Class with nearly the same timbre; this class is only used with `SoundscapeConfig.similar`."""


# Sorted so that the first classes differ the most; `SoundscapeConfig.classes` takes them from the front.
_DISTINCT = (
    EventClass("dog bark", animals.bark, (0.16, 0.28), (1, 4)),
    EventClass("church bell", signals.church_bell, (0.8, 1.6)),
    EventClass("rain", nature.rain, pitched=False),
    EventClass("engine", nature.engine),
    EventClass("bird chirp", animals.chirp, (0.12, 0.2), (2, 5)),
    EventClass("siren", signals.siren),
    EventClass("footsteps", nature.footsteps, pitched=False),
    EventClass("telephone ring", signals.telephone, (0.5, 0.8), (1, 2)),
    EventClass("cow moo", animals.moo, (0.7, 1.1), (1, 2)),
    EventClass("thunder", nature.thunder, pitched=False),
    EventClass("flute", instruments.flute),
    EventClass("clapping", nature.clap, (0.14, 0.16), (3, 6), pitched=False),
    EventClass("cricket", animals.stridulate, pitched=False),
    EventClass("piano", instruments.piano),
    EventClass("car horn", signals.car_horn, (0.3, 0.7), (1, 2)),
    EventClass("helicopter", nature.helicopter, pitched=False),
    EventClass("frog croak", animals.croak, (0.25, 0.4)),
    EventClass("waves", nature.waves, pitched=False),
    EventClass("door knock", nature.knock, (0.13, 0.15), (2, 4)),
    EventClass("drill", nature.drill),
    EventClass("cat meow", animals.meow, (0.5, 0.8), (1, 2)),
    EventClass("alarm", signals.alarm),
    EventClass("kettle", signals.kettle),
    EventClass("drum", instruments.drum, pitched=False),
    EventClass("guitar", instruments.guitar),
    EventClass("glass clink", nature.clink, (0.25, 0.35)),
    EventClass("wind", nature.wind, pitched=False),
    EventClass("fire", nature.fire, pitched=False),
    EventClass("doorbell", signals.doorbell, (0.6, 0.9), (1, 2)),
    EventClass("sheep bleat", animals.bleat, (0.5, 0.8), (1, 2)),
    EventClass("clock", signals.clock, pitched=False),
    EventClass("trumpet", instruments.trumpet),
    EventClass("owl hoot", animals.hoot, (0.35, 0.55)),
    EventClass("water drip", nature.drip, (0.15, 0.18), (2, 4)),
    EventClass("violin", instruments.violin),
    EventClass("phone keypad", signals.keypad, pitched=False),
)

_SIMILAR = (
    EventClass("seal bark", partial(animals.bark, mouth=650.0, breath=0.2), (0.2, 0.32), (1, 4), similar_to="dog bark"),
    EventClass("gong", partial(signals.church_bell, strike=360.0, beating=5.0), (0.8, 1.6), similar_to="church bell"),
    EventClass("shower", partial(nature.rain, low=2300.0, drops=30.0), pitched=False, similar_to="rain"),
    EventClass("motorcycle", partial(nature.engine, idle=50.0, rasp=0.6), similar_to="engine"),
    EventClass(
        "alarm clock", partial(signals.telephone, tones=(1250, 1590)), (0.5, 0.8), (1, 2), similar_to="telephone ring"
    ),
    EventClass("explosion", partial(nature.thunder, crack=0.9, tau=0.2), pitched=False, similar_to="thunder"),
    EventClass("recorder", partial(instruments.flute, overtone=0.6, breath=0.02), similar_to="flute"),
    EventClass("cicada", partial(animals.stridulate, carrier=5200.0, pulses=6), pitched=False, similar_to="cricket"),
    EventClass("harpsichord", partial(instruments.piano, rolloff=0.6, tau=0.35), similar_to="piano"),
    EventClass(
        "train horn", partial(signals.car_horn, chord=(0.84, 1.0, 1.5)), (0.4, 0.8), (1, 2), similar_to="car horn"
    ),
    EventClass("hammer", partial(nature.knock, panel=420.0, ring=0.04), (0.13, 0.15), (2, 4), similar_to="door knock"),
    EventClass("chainsaw", partial(nature.drill, spin=150.0, rough=0.5), similar_to="drill"),
    EventClass("baby cry", partial(animals.meow, sob=0.8), (0.5, 0.8), (1, 2), similar_to="cat meow"),
    EventClass("banjo", partial(instruments.guitar, pluck=0.06, tau=0.15), similar_to="guitar"),
    EventClass("trombone", partial(instruments.trumpet, bright=1.0), similar_to="trumpet"),
    EventClass("viola", partial(instruments.violin, body=0.7), similar_to="violin"),
)

EVENTS: dict[str, EventClass] = {event_class.name: event_class for event_class in _DISTINCT + _SIMILAR}
MAX_CLASSES = len(_DISTINCT)


def class_names(classes: int, similar: bool) -> tuple[str, ...]:
    """Names of the first `classes` distinct classes and, with `similar`, of their near-identical partners."""
    names = tuple(event_class.name for event_class in _DISTINCT[:classes])
    if not similar:
        return names
    return names + tuple(event_class.name for event_class in _SIMILAR if event_class.similar_to in names)


def render_event(
    event_class: EventClass, rng: Generator, rate: int, seconds: float, pitch: float, count: int | None = None
) -> np.ndarray:
    """Render one event, trimmed to its audible part.

    Args:
        event_class: class of the event.
        rng: random generator.
        rate: sample rate in Hz.
        seconds: longest duration.
        pitch: frequency factor.
        count: calls of a countable class; None draws a count that fits.

    Returns:
        float32 `[n]` with n <= seconds * rate.
    """
    if event_class.unit is None:
        return audible(event_class.render(rng, time_axis(seconds, rate), pitch), rate)
    if count is None:
        fitting = int(seconds / (1.3 * event_class.unit[0]))
        low, high = event_class.repeats
        count = int(rng.integers(low, high + 1))
        count = max(1, min(count, fitting))
    length = min(rng.uniform(*event_class.unit), seconds / (count + 0.3 * (count - 1)))
    call = audible(event_class.render(rng, time_axis(length, rate), pitch), rate)
    # Gaps of at least 0.3 of a call make the calls countable.
    spare = max(0.0, seconds / length - (count + 0.3 * (count - 1)))
    period = length * (1.3 + rng.uniform(0.0, min(1.0, spare / max(count - 1, 1))))
    t = time_axis(min(seconds, (count - 1) * period + len(call) / rate), rate)
    return grains(t, period * np.arange(count), [call * gain for gain in rng.uniform(0.85, 1.0, count)])


def audible(wave: np.ndarray, rate: int, threshold: float = AUDIBLE) -> np.ndarray:
    """Trim `wave` to its `audible_span`; fade its end, and a cut start, over 5 ms."""
    first, last = audible_span(wave, rate, threshold)
    wave = wave[first:last].astype(np.float32)
    fade = min(rate // 200, len(wave) // 2)
    ramp = np.linspace(0.0, 1.0, fade, endpoint=False, dtype=np.float32)
    if first > 0:
        wave[:fade] *= ramp
    wave[len(wave) - fade :] *= ramp[::-1]
    return wave


def audible_span(wave: np.ndarray, rate: int, threshold: float = AUDIBLE) -> tuple[int, int]:
    """The first sample of the first 10 ms block above `threshold`, relative to the loudest, and the end of the last."""
    energies = block_energies(wave, rate)
    blocks = np.flatnonzero(energies > energies.max() * threshold)
    return int(blocks[0]) * (rate // 100), min(len(wave), int(blocks[-1] + 1) * (rate // 100))


def block_energies(wave: np.ndarray, rate: int) -> np.ndarray:
    """Energies of the blocks of 10 ms."""
    return np.add.reduceat(np.square(wave), np.arange(0, len(wave), rate // 100))
