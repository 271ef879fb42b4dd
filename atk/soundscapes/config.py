"""Settings of a synthetic dataset."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atk.soundscapes.events import MAX_CLASSES

BACKGROUNDS = ("white", "pink", "brown", "hum", "babble")
MAX_CAPTIONS = 5
SIMULATED = "simulated"
POOL_FOLDS = 5
MAX_POOL = 10000
_SECONDS_PER_EVENT = 0.9


@dataclass(frozen=True)
class SoundscapeConfig:
    """Settings of a synthetic dataset; the same settings always write the same bytes.

    Ranges are pairs (lowest, highest), both inclusive. An invalid setting raises ValueError with the field name.
    """

    train: int = 2000
    """Number of training scenes."""
    val: int = 0
    """Number of validation scenes; 0 writes no val.csv."""
    test: int = 200
    """Number of test scenes, including twins."""
    twins: int = 0
    """Number of pairs of test scenes with the same sounds in opposite order and captions that differ only in order."""
    seed: int = 0
    """Seed of all random draws."""
    sample_rate: int = 16000
    """Sample rate of the audio files in Hz."""
    seconds: tuple[float, float] = (4.0, 6.0)
    """Length of a scene in seconds."""
    captions_per_clip: int = 1
    """Captions per clip, 1 to 5; if more than 1, the columns are caption_1, caption_2, ..."""
    classes: int = 24
    """Number of event classes, 2 to 36; the most distinct ones come first."""
    similar: bool = False
    """Add near-identical partners of the classes (flute and recorder, rain and shower, ...)."""
    events: tuple[int, int] = (1, 3)
    """Events per scene, 1 to 4, each of a different class."""
    overlap: float = 0.25
    """Probability that an event overlaps the previous one (at most two at a time)."""
    snr_db: tuple[float, float] = (15.0, 25.0)
    """Level of the quietest event of a scene relative to the background, in dB."""
    backgrounds: tuple[str, ...] | str = BACKGROUNDS
    """Backgrounds to draw from: white, pink, brown, hum, babble, and folders of recordings; empty for none."""
    pitch: bool = False
    """Include low-pitched and high-pitched events, named by a word in the caption."""
    loudness: bool = False
    """Include quiet and loud events, named by a word in the caption."""
    count: bool = False
    """Include events that sound two or three times, named by a word in the caption."""
    attribute_rate: float = 0.5
    """Probability of a word for each attribute in use; without one, an event has medium pitch or level, or sounds once.
    """
    later_first: float = 0.0
    """Probability that a caption of two sequential events names the later one first ("a bell after a dog")."""
    rephrase: bool = False
    """Reword the events in each caption of a clip, as several annotators would."""
    pool: int = 0
    """Number of recordings of single events per class, without background, in pool/ (as ESC-50); 0 or at least 5."""
    recordings: str = ""
    """Folder of recordings of single events to use instead of synthesized ones: the layout of ESC-50 or FSD50K, or one
    subfolder per class. Then classes, similar, pitch, loudness, and count have no effect."""
    rirs: str = ""
    """Room impulse responses: a folder with a subfolder per room, or "simulated"; "" for no reverberation."""
    drr_db: tuple[float, float] = (0.0, 15.0)
    """Direct-to-reverberant ratio of an event in dB, with rirs; distant events have low ones."""
    rt60: tuple[float, float] = (0.2, 0.6)
    """Reverberation time of simulated rooms in seconds."""

    def __post_init__(self) -> None:
        if isinstance(self.backgrounds, str):
            object.__setattr__(self, "backgrounds", (self.backgrounds,))
        for name in ("seconds", "events", "snr_db", "backgrounds", "drr_db", "rt60"):
            value = getattr(self, name)
            if isinstance(value, list):  # YAML gives lists
                object.__setattr__(self, name, tuple(value))
        self._check_types()
        self._check_values()
        self._check_materials()

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "SoundscapeConfig":
        """Settings of the preset `easy`, `medium`, or `hard`, with overrides for any field."""
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        for field in overrides:
            if field not in known:
                raise ValueError(f"{field} is not a soundscape setting; settings are {', '.join(sorted(known))}")
        return cls(**{**PRESETS[name], **overrides})

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            default = getattr(type(self), field.name)
            if isinstance(default, tuple):
                item = type(default[0])
                good = isinstance(value, tuple) and all(_is_a(item, entry) for entry in value)
                expected = f"a sequence of {item.__name__}"
                if good and item is not str:
                    good = len(value) == 2 and value[0] <= value[1]
                    expected = f"{expected}, (lowest, highest)"
            else:
                good = _is_a(type(default), value)
                expected = f"of type {type(default).__name__}"
            if not good:
                raise ValueError(f"{field.name} must be {expected}, got {value!r}")

    def _check_values(self) -> None:
        limits = {
            "train": (0, 10**7), "val": (0, 10**6), "test": (0, 10**6), "twins": (0, self.test // 2),
            "seed": (0, 2**63), "sample_rate": (8000, 192000), "captions_per_clip": (1, MAX_CAPTIONS),
            "classes": (2, MAX_CLASSES), "overlap": (0, 1), "attribute_rate": (0, 1), "later_first": (0, 1),
            "pool": (0, MAX_POOL),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in [{low}, {high}], got {getattr(self, name)}")
        if 0 < self.pool < POOL_FOLDS:
            raise ValueError(f"pool must be 0 or at least {POOL_FOLDS}, one recording per fold, got {self.pool}")
        if not (self.events[0] >= 1 and self.events[1] <= min(4, self.classes)):
            raise ValueError(f"events must be in [1, 4] and at most classes ({self.classes}), got {self.events}")
        if self.twins and self.events[1] < 2:
            raise ValueError(f"events must include 2 because twins need scenes of two events, got {self.events}")
        shortest = _SECONDS_PER_EVENT * self.events[1]
        if not (self.seconds[0] >= shortest and self.seconds[1] <= 600):
            raise ValueError(
                f"seconds must be in [{shortest:g}, 600] ({_SECONDS_PER_EVENT} per event), got {self.seconds}"
            )
        if self.train + self.val + self.test == 0:
            raise ValueError("train, val and test are all 0: nothing to write")

    def _check_materials(self) -> None:
        for name, (low, high) in {"snr_db": (-60, 100), "drr_db": (-60, 100), "rt60": (0.2, 2.0)}.items():
            lowest, highest = getattr(self, name)
            if not low <= lowest <= highest <= high:
                raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {getattr(self, name)}")
        for name in self.backgrounds:
            if name not in BACKGROUNDS and not Path(name).is_dir():
                raise ValueError(f"backgrounds must be among {', '.join(BACKGROUNDS)}, or folders, got {name}")
        if self.recordings and self.pool:
            raise ValueError(f"pool must be 0 with recordings, which are such a pool themselves, got {self.pool}")


def _is_a(expected: type, value: object) -> bool:
    """Whether `value` is of type `expected`; an int counts as a float, a bool counts as neither."""
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "easy": {"classes": 24, "events": (1, 2), "overlap": 0.2, "snr_db": (20.0, 30.0)},
    "medium": {"classes": 36, "events": (1, 3), "overlap": 0.3, "snr_db": (10.0, 20.0), "pitch": True,
               "later_first": 0.1},
    "hard": {"classes": 36, "similar": True, "events": (2, 4), "overlap": 0.35, "snr_db": (0.0, 12.0), "pitch": True,
             "loudness": True, "count": True, "attribute_rate": 0.4, "later_first": 0.25},
}  # fmt: skip
