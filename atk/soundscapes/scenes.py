"""Scenes: their events and order (`plan`), and their audio (`render`).

Every random draw uses a generator seeded by (seed, split, scene, purpose), so scenes can be rendered in any process.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from atk.soundscapes.backgrounds import background
from atk.soundscapes.config import SoundscapeConfig
from atk.soundscapes.events import EVENTS, class_names, render_event

SPLITS = ("train", "val", "test")
PITCH_SEMITONES = {"low": (-10.0, -8.0), "": (-1.5, 1.5), "high": (8.0, 10.0)}
LEVEL_DB = {"quiet": (-41.0, -38.0), "": (-30.0, -26.0), "loud": (-18.0, -15.0)}
_ANY_LEVEL_DB = (-32.0, -22.0)  # where captions do not name the level
_ANY_PITCH_SEMITONES = (-5.0, 5.0)
_GAP = 0.1  # seconds between sequential events
_MARGIN = 0.1  # seconds before the first event and after the last one
_ATTEMPTS = 2000  # draws per scene before giving up


@dataclass(frozen=True)
class Event:
    """An event and its attributes; "" means medium, or any value if captions never name the attribute."""

    name: str
    pitch: str = ""
    loudness: str = ""
    count: int | None = None
    """Call count; None if the class cannot be counted or the settings don't use counts."""


_Groups = tuple[tuple[Event, ...], ...]
_Description = tuple[frozenset[Event], ...]
_Span = tuple[Event, int, int]  # an event with its first sample and the one after its last


@dataclass(frozen=True)
class Scene:
    """A sequence of groups of events; the events of a group overlap."""

    split: str
    """Name of the split."""
    index: int
    """Index of the scene in its split."""
    groups: _Groups
    """Events of each group, in order."""
    source: int
    """Index of the scene whose random draws this scene uses: itself or its twin."""
    reversed: bool = False
    """Whether the events of the source are in the opposite order."""

    @property
    def file_name(self) -> str:
        """Name of the audio file, relative to the folder of the dataset."""
        return f"audio/{self.split}/{self.index:05d}.wav"

    @property
    def description(self) -> _Description:
        """What a caption describes: the events, their attributes, and their order."""
        return tuple(frozenset(group) for group in self.groups)

    def rng(self, config: SoundscapeConfig, *purpose: int) -> Generator:
        """Random generator of this scene, shared with its twin, for one purpose."""
        return np.random.default_rng((config.seed, SPLITS.index(self.split), self.source, *purpose))


@dataclass(frozen=True)
class Placed:
    """An event in the audio, with its exact start and end in seconds."""

    event: Event
    start: float
    end: float


def plan(config: SoundscapeConfig) -> dict[str, list[Scene]]:
    """Draw the scenes of each split; no two scenes of val and test have the same description.

    Scenes 2k and 2k + 1 of test, k < `config.twins`, are twins.

    Raises:
        ValueError: the settings allow too few distinct scenes.
    """
    taken: set[_Description] = set()
    scenes = {"train": [_draw(config, "train", index, _groups, None) for index in range(config.train)]}
    scenes["val"] = [_draw(config, "val", index, _groups, taken) for index in range(config.val)]
    twins = []
    for index in range(0, 2 * config.twins, 2):
        first = _draw(config, "test", index, _sequence, taken)
        second = replace(first, index=index + 1, groups=first.groups[::-1], reversed=True)
        taken.add(second.description)
        twins += [first, second]
    rest = range(len(twins), config.test)
    scenes["test"] = twins + [_draw(config, "test", index, _groups, taken) for index in rest]
    return scenes


def render(scene: Scene, config: SoundscapeConfig) -> tuple[np.ndarray, list[Placed]]:
    """Render a scene.

    Returns:
        The audio, float32 `[n]` within [-1, 1], and its events by group, with times rounded to whole samples.
    """
    rng = scene.rng(config, 1)
    rate = config.sample_rate
    groups = scene.groups[::-1] if scene.reversed else scene.groups
    audio = np.zeros(round(rng.uniform(*config.seconds) * rate), np.float32)
    spans: list[_Span] = []
    quietest = 0.0
    usable = len(audio) / rate - 2 * _MARGIN - _GAP * (len(groups) - 1)
    shares = rng.uniform(0.8, 1.25, len(groups))
    slots = usable * shares / shares.sum()
    start = _MARGIN
    for row, (group, slot) in enumerate(zip(groups, slots, strict=True)):
        waves = []
        for member, event in enumerate(group):
            wave, level = event_sound(event, scene.rng(config, 2, row, member), config, slot)
            waves.append(wave)
            quietest = min(quietest, level)
        for event, wave, offset in zip(group, waves, _offsets(rng, waves, round(slot * rate)), strict=True):
            first = round(start * rate) + offset
            audio[first : first + len(wave)] += wave
            spans.append((event, first, first + len(wave)))
        start += slot + _GAP
    if scene.reversed:
        audio, spans = _reverse(audio, spans)
    if config.backgrounds:
        name = str(rng.choice(config.backgrounds))
        gain = 10 ** ((quietest - rng.uniform(*config.snr_db)) / 20)
        audio += gain * background(name, scene.rng(config, 3), len(audio), rate)
    peak = np.abs(audio).max()
    if peak > 0.99:
        audio *= 0.99 / peak
    return audio, [Placed(event, first / rate, last / rate) for event, first, last in spans]


def _draw(
    config: SoundscapeConfig,
    split: str,
    index: int,
    groups: Callable[[Generator, SoundscapeConfig], _Groups],
    taken: set[_Description] | None,
) -> Scene:
    """Draw scene `index` with `groups(rng, config)` until its description is new, and add that to `taken`.

    A scene that gets a twin needs a new description in reverse, too.
    """
    scene = Scene(split, index, (), source=index)
    rng = scene.rng(config, 0)
    for _ in range(_ATTEMPTS):
        scene = replace(scene, groups=groups(rng, config))
        if taken is None:
            return scene
        twin_taken = groups is _sequence and scene.description[::-1] in taken
        if scene.description not in taken and not twin_taken:
            taken.add(scene.description)
            return scene
    raise ValueError(
        f"{split}: found no scene {index} that differs from the previous ones; use fewer val and test scenes, "
        "or more classes, events or attributes"
    )


def _groups(rng: Generator, config: SoundscapeConfig) -> _Groups:
    """Draw one to four events; each overlaps the previous one with probability `config.overlap`."""
    groups: list[tuple[Event, ...]] = []
    for event in _events(rng, config, config.events[0]):
        if groups and len(groups[-1]) == 1 and rng.random() < config.overlap:
            groups[-1] += (event,)
        else:
            groups.append((event,))
    return tuple(groups)


def _sequence(rng: Generator, config: SoundscapeConfig) -> _Groups:
    """Draw two to four sequential events."""
    return tuple((event,) for event in _events(rng, config, max(2, config.events[0])))


def _events(rng: Generator, config: SoundscapeConfig, fewest: int) -> list[Event]:
    names = class_names(config.classes, config.similar)
    count = int(rng.integers(fewest, config.events[1] + 1))
    return [draw_event(rng, config, names[index]) for index in rng.choice(len(names), count, replace=False)]


def draw_event(rng: Generator, config: SoundscapeConfig, name: str) -> Event:
    """Draw an event of class `name`; each attribute in use gets a word with probability `config.attribute_rate`."""
    event_class = EVENTS[name]
    worded = rng.random(3) < config.attribute_rate  # pitch, loudness, count
    pitch = str(rng.choice(("low", "high"))) if config.pitch and event_class.pitched and worded[0] else ""
    loudness = str(rng.choice(("quiet", "loud"))) if config.loudness and worded[1] else ""
    count = None
    if config.count and event_class.unit is not None:
        count = int(rng.integers(2, 4)) if worded[2] else 1
    return Event(name, pitch, loudness, count)


def event_sound(event: Event, rng: Generator, config: SoundscapeConfig, seconds: float) -> tuple[np.ndarray, float]:
    """Render an event of at most `seconds`; returns the waveform and its level in dB (in its loudest 50 ms)."""
    event_class = EVENTS[event.name]
    semitones = PITCH_SEMITONES[event.pitch] if config.pitch and event_class.pitched else _ANY_PITCH_SEMITONES
    level = rng.uniform(*(LEVEL_DB[event.loudness] if config.loudness else _ANY_LEVEL_DB))
    longest = seconds if event_class.unit else seconds * rng.uniform(0.75, 1.0)
    pitch = 2 ** (rng.uniform(*semitones) / 12)
    wave = render_event(event_class, rng, config.sample_rate, longest, pitch, event.count)
    block = config.sample_rate // 20
    powers = np.add.reduceat(np.square(wave), np.arange(0, len(wave), block)) / block
    gain = 10 ** (level / 20) / np.sqrt(powers.max())
    return wave * np.float32(min(gain, 0.9 / np.abs(wave).max())), level


def _offsets(rng: Generator, waves: list[np.ndarray], size: int) -> list[int]:
    """Draw the first sample of each sound in a slot of `size` samples; shorter sounds lie within the longest one."""
    longest = max(len(wave) for wave in waves)
    first = int(rng.integers(0, max(1, size - longest + 1)))
    return [first + int(rng.integers(0, longest - len(wave) + 1)) for wave in waves]


def _reverse(audio: np.ndarray, spans: list[_Span]) -> tuple[np.ndarray, list[_Span]]:
    """Put sequential events in the opposite order; each still plays forward, and the gaps are mirrored."""
    out = np.zeros_like(audio)
    moved: list[_Span] = []
    for event, first, last in reversed(spans):
        start = len(audio) - last
        out[start : len(audio) - first] = audio[first:last]
        moved.append((event, start, len(audio) - first))
    return out, moved
