"""The pool: recordings of single events by class, to be mixed into scenes and subtracted again."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from .captions import draw_style, name_event
from .config import MAX_POOL, POOL_FOLDS, SoundscapeConfig
from .events import class_names
from .scenes import SPLITS, draw_event, event_sound

ESC50_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
_TAKE = "A"


@dataclass(frozen=True)
class Recording:
    """Recording `number` (from 0) of the event class `name`, whose column in tags.csv is `target` (from 0)."""

    name: str
    target: int
    number: int

    @property
    def fold(self) -> int:
        return self.number % POOL_FOLDS + 1

    @property
    def source(self) -> int:
        """A number that no other recording has."""
        return self.target * MAX_POOL + self.number

    @property
    def file_name(self) -> str:
        return f"audio/{self.fold}-{self.source}-{_TAKE}-{self.target}.wav"

    @property
    def esc50_row(self) -> tuple:
        """The line of meta/esc50.csv."""
        name = self.file_name.removeprefix("audio/")
        return (name, self.fold, self.target, self.name, False, self.source, _TAKE)

    def rng(self, config: SoundscapeConfig) -> Generator:
        return np.random.default_rng((config.seed, len(SPLITS), self.target, self.number))


def plan_pool(config: SoundscapeConfig) -> list[Recording]:
    """`config.pool` recordings of each class in use."""
    names = class_names(config.classes, config.similar)
    return [Recording(name, target, n) for target, name in enumerate(names) for n in range(config.pool)]


def render_recording(recording: Recording, config: SoundscapeConfig) -> tuple[np.ndarray, str]:
    """The event alone, [n] float32 within -1 .. 1, as long and as loud as in a scene, and the phrase that names it."""
    rng = recording.rng(config)
    event = draw_event(rng, config, recording.name)
    seconds = rng.uniform(*config.seconds) / rng.integers(config.events[0], config.events[1] + 1)
    wave, _ = event_sound(event, rng, config, seconds)
    return wave, name_event(event, draw_style(rng), rng)
