"""Pools: recordings of single events by class, as references to mix into scenes and to subtract."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from atk.data.captions import SPLITS
from atk.soundscapes.captions import draw_style, name_event
from atk.soundscapes.config import MAX_POOL, POOL_FOLDS, SoundscapeConfig
from atk.soundscapes.events import class_names
from atk.soundscapes.materials import SYNTHETIC
from atk.soundscapes.scenes import event_sound

ESC50_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
_TAKE = "A"


@dataclass(frozen=True)
class Recording:
    """A recording of a pool.

    Attributes:
        name: name of the event class.
        target: index of the class among the tags of tags.csv, from 0.
        index: index of the recording within its class, from 0.
    """

    name: str
    target: int
    index: int

    @property
    def fold(self) -> int:
        """Fold in the ESC-50 layout, from 1."""
        return self.index % POOL_FOLDS + 1

    @property
    def source(self) -> int:
        """Unique ID in the pool, for the column src_file."""
        return self.target * MAX_POOL + self.index

    @property
    def file_name(self) -> str:
        """File name relative to the folder of the pool."""
        return f"audio/{self.fold}-{self.source}-{_TAKE}-{self.target}.wav"

    @property
    def esc50_row(self) -> tuple[str, int, int, str, bool, int, str]:
        """Row of meta/esc50.csv, with the columns `ESC50_COLUMNS`."""
        name = self.file_name.removeprefix("audio/")
        return (name, self.fold, self.target, self.name, False, self.source, _TAKE)

    def rng(self, config: SoundscapeConfig) -> Generator:
        """Random generator of this recording."""
        return np.random.default_rng((config.seed, len(SPLITS), self.target, self.index))


def plan_pool(config: SoundscapeConfig) -> list[Recording]:
    """Plan `config.pool` recordings of each class in use."""
    names = class_names(config.classes, config.similar)
    return [Recording(name, target, index) for target, name in enumerate(names) for index in range(config.pool)]


def render_recording(recording: Recording, config: SoundscapeConfig) -> tuple[np.ndarray, str]:
    """Render a recording of a single event with the duration and level of an event in a scene.

    Returns:
        The waveform, float32 `[n]` within [-1, 1], and the phrase that names the event.
    """
    rng = recording.rng(config)
    event = SYNTHETIC.events.draw(rng, config, recording.name)
    seconds = rng.uniform(*config.seconds) / rng.integers(config.events[0], config.events[1] + 1)
    sound = event_sound(event, rng, config, seconds)
    return sound.wave, name_event(event, draw_style(rng), rng)
