"""Settings of a synthetic data set."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .events import MAX_CLASSES

BACKGROUNDS = ("white", "pink", "brown", "hum", "babble")
MAX_CAPTIONS = 5
POOL_FOLDS, MAX_POOL = 5, 10000
_SECONDS_AN_EVENT = 0.9


@dataclass(frozen=True)
class SoundscapeConfig:
    """A complete description of a data set: the same settings write the same bytes.

    Ranges are pairs (lowest, highest), both included. A setting that cannot be met raises ValueError naming the field.
    """

    train: int = 2000
    """Training scenes."""
    val: int = 0
    """Validation scenes; 0 writes no val.csv."""
    test: int = 200
    """Test scenes, twins included."""
    twins: int = 0
    """Pairs of test scenes that hold the same sounds in opposite order, their captions differing in order only."""
    seed: int = 0
    """Seed of everything that is drawn."""
    sample_rate: int = 16000
    """Samples per second of the written files."""
    seconds: tuple[float, float] = (4.0, 6.0)
    """Length of a scene in seconds."""
    captions_per_clip: int = 1
    """Captions of each clip, 1 to 5; above 1 the columns are caption_1, caption_2, ..."""
    classes: int = 24
    """Event classes in use, 2 to 36, the most distinct first."""
    similar: bool = False
    """Adds to the classes their near-identical partners (flute and recorder, rain and shower, ...)."""
    events: tuple[int, int] = (1, 3)
    """Events in a scene, 1 to 4, each of a different class."""
    overlap: float = 0.25
    """Chance that an event sounds at the same time as the one before it (at most two at a time)."""
    snr_db: tuple[float, float] = (15.0, 25.0)
    """Level of the scene's quietest event above the background, in dB."""
    backgrounds: tuple[str, ...] = BACKGROUNDS
    """Backgrounds to draw from: white, pink, brown, hum, babble; empty for none."""
    pitch: bool = False
    """Low and high versions of events, told by a word."""
    loudness: bool = False
    """Quiet and loud events, told by a word."""
    count: bool = False
    """Calls that sound twice or three times, told by a word."""
    attribute_rate: float = 0.5
    """Chance that an event carries a word for each attribute in use; without it the event is in the middle, or once."""
    later_first: float = 0.0
    """Chance that the caption of two events in sequence names the later one first ("a bell after a dog")."""
    rephrase: bool = False
    """Each caption of a clip words its events anew, as several people would."""
    pool: int = 0
    """Recordings of single events without background of each class, in pool/ as ESC-50 lays them out; 0 or at least 5.
    """

    def __post_init__(self) -> None:
        for name in ("seconds", "events", "snr_db", "backgrounds"):
            value = getattr(self, name)
            if isinstance(value, list):  # as read from YAML
                object.__setattr__(self, name, tuple(value))
        self._check_types()
        self._check_values()

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "SoundscapeConfig":
        """The settings of `easy`, `medium` or `hard`, with any field overridden."""
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        for field in overrides:
            if field not in known:
                raise ValueError(f"{field} is not a setting of soundscapes; settings: {', '.join(sorted(known))}")
        return cls(**{**PRESETS[name], **overrides})

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind = type(field.default)
            if kind is tuple:
                item = type(field.default[0])
                good = isinstance(value, tuple) and all(_is_a(item, entry) for entry in value)
                wanted = f"a sequence of {item.__name__}"
                if good and item is not str:
                    good, wanted = len(value) == 2 and value[0] <= value[1], f"{wanted}, (lowest, highest)"
            else:
                good, wanted = _is_a(kind, value), f"of type {kind.__name__}"
            if not good:
                raise ValueError(f"{field.name} must be {wanted}, got {value!r}")

    def _check_values(self) -> None:
        limits = {
            "train": (0, 10**7), "val": (0, 10**6), "test": (0, 10**6), "twins": (0, self.test // 2),
            "seed": (0, 2**63), "sample_rate": (8000, 192000), "captions_per_clip": (1, MAX_CAPTIONS),
            "classes": (2, MAX_CLASSES), "overlap": (0, 1), "attribute_rate": (0, 1), "later_first": (0, 1),
            "pool": (0, MAX_POOL),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in {low} .. {high}, got {getattr(self, name)}")
        if 0 < self.pool < POOL_FOLDS:
            raise ValueError(f"pool must be 0 or at least {POOL_FOLDS}, one recording a fold, got {self.pool}")
        if not (self.events[0] >= 1 and self.events[1] <= min(4, self.classes)):
            raise ValueError(f"events must lie in 1 .. 4 and not above classes ({self.classes}), got {self.events}")
        if self.twins and self.events[1] < 2:
            raise ValueError(f"twins need scenes of two events: events must reach 2, got {self.events}")
        shortest = _SECONDS_AN_EVENT * self.events[1]
        if not (self.seconds[0] >= shortest and self.seconds[1] <= 600):
            raise ValueError(
                f"seconds must lie in {shortest:g} .. 600 ({_SECONDS_AN_EVENT} an event), got {self.seconds}"
            )
        if not (self.snr_db[0] >= -60 and self.snr_db[1] <= 100):
            raise ValueError(f"snr_db must lie in -60 .. 100, got {self.snr_db}")
        if unknown := set(self.backgrounds) - set(BACKGROUNDS):
            raise ValueError(f"backgrounds must be among {', '.join(BACKGROUNDS)}, got {', '.join(sorted(unknown))}")
        if self.train + self.val + self.test == 0:
            raise ValueError("train, val and test are all 0: nothing to write")


def _is_a(kind: type, value: object) -> bool:
    """Whether `value` is a `kind`, an int passing as a float and a bool as neither."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "easy": {"classes": 24, "events": (1, 2), "overlap": 0.2, "snr_db": (20.0, 30.0)},
    "medium": {"classes": 36, "events": (1, 3), "overlap": 0.3, "snr_db": (10.0, 20.0), "pitch": True,
               "later_first": 0.1},
    "hard": {"classes": 36, "similar": True, "events": (2, 4), "overlap": 0.35, "snr_db": (0.0, 12.0), "pitch": True,
             "loudness": True, "count": True, "attribute_rate": 0.4, "later_first": 0.25},
}  # fmt: skip
