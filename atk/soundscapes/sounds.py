"""Where the events of scenes come from: the interface, and the synthesized events."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random import Generator

from atk.soundscapes.config import SoundscapeConfig
from atk.soundscapes.events import EVENTS, class_names, render_event
from atk.soundscapes.phrases import CLAUSES, NOUNS

PITCH_SEMITONES = {"low": (-10.0, -8.0), "": (-1.5, 1.5), "high": (8.0, 10.0)}
_ANY_PITCH_SEMITONES = (-5.0, 5.0)  # where captions do not name the pitch


@dataclass(frozen=True)
class Event:
    """An event and its attributes; "" means medium, or any value if captions never name the attribute."""

    name: str
    pitch: str = ""
    loudness: str = ""
    count: int | None = None
    """Call count; None if the class cannot be counted or the settings don't use counts."""


class Sounds(Protocol):
    """A source of events."""

    def names(self, config: SoundscapeConfig) -> tuple[str, ...]:
        """Names of the event classes."""
        ...

    def draw(self, rng: Generator, config: SoundscapeConfig, name: str) -> Event:
        """Draw the attributes of an event of class `name`."""
        ...

    def wave(
        self, event: Event, rng: Generator, config: SoundscapeConfig, split: str, seconds: float
    ) -> tuple[np.ndarray, str]:
        """Return the sound of an event of at most `seconds`, float32 `[n]`, and the name of its recording, if any."""
        ...

    def forms(self, style: str, name: str) -> tuple[str, ...]:
        """Wordings of a class in a style ("clause" or "noun"), with places for adjectives (`{a}`) and adverbs (`{b}`).

        Every class has nouns.
        """
        ...


@dataclass(frozen=True)
class Synthesized:
    """Synthesized events."""

    def names(self, config: SoundscapeConfig) -> tuple[str, ...]:
        """Names of the classes that `config` selects."""
        return class_names(config.classes, config.similar)

    def draw(self, rng: Generator, config: SoundscapeConfig, name: str) -> Event:
        """Draw an event of class `name`; each attribute in use gets a word with probability `config.attribute_rate`."""
        event_class = EVENTS[name]
        worded = rng.random(3) < config.attribute_rate  # pitch, loudness, count
        pitch = str(rng.choice(("low", "high"))) if config.pitch and event_class.pitched and worded[0] else ""
        loudness = str(rng.choice(("quiet", "loud"))) if config.loudness and worded[1] else ""
        count = None
        if config.count and event_class.unit is not None:
            count = int(rng.integers(2, 4)) if worded[2] else 1
        return Event(name, pitch, loudness, count)

    def wave(
        self, event: Event, rng: Generator, config: SoundscapeConfig, split: str, seconds: float
    ) -> tuple[np.ndarray, str]:
        """Render an event of at most `seconds`; the split does not matter."""
        event_class = EVENTS[event.name]
        semitones = PITCH_SEMITONES[event.pitch] if config.pitch and event_class.pitched else _ANY_PITCH_SEMITONES
        longest = seconds if event_class.unit else seconds * rng.uniform(0.75, 1.0)
        pitch = 2 ** (rng.uniform(*semitones) / 12)
        return render_event(event_class, rng, config.sample_rate, longest, pitch, event.count), ""

    def forms(self, style: str, name: str) -> tuple[str, ...]:
        """Wordings of a class in a style."""
        return (CLAUSES if style == "clause" else NOUNS)[name]
