"""Scenes: which events sound when (`plan`), and the sound itself (`render`).

Each choice is drawn from a generator seeded by (seed, split, scene, purpose), so it matters not who renders a scene.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from .backgrounds import background
from .config import SoundscapeConfig
from .events import EVENTS, class_names, render_event

SPLITS = ("train", "val", "test")
PITCH_SEMITONES = {"low": (-10.0, -8.0), "": (-1.5, 1.5), "high": (8.0, 10.0)}
LEVEL_DB = {"quiet": (-41.0, -38.0), "": (-30.0, -26.0), "loud": (-18.0, -15.0)}
_LEVEL_OPEN_DB = (-32.0, -22.0)
_PITCH_OPEN_SEMITONES = (-5.0, 5.0)
_GAP, _MARGIN = 0.1, 0.1  # seconds between events in sequence, and at the ends of a scene
_ATTEMPTS = 2000


@dataclass(frozen=True)
class Event:
    """What a caption can say of an event; an empty word means the middle."""

    name: str
    pitch: str = ""
    loudness: str = ""
    count: int | None = None
    """Calls; None where the class or the settings leave it open."""


@dataclass(frozen=True)
class Scene:
    """Groups of events in sequence; the events of one group sound together."""

    split: str
    number: int
    groups: tuple[tuple[Event, ...], ...]
    source: int
    """Scene whose random numbers render this one: its own number, or that of its twin."""
    reversed: bool = False
    """Whether the events of the source are laid in opposite order."""

    @property
    def file_name(self) -> str:
        return f"audio/{self.split}/{self.number:05d}.wav"

    @property
    def description(self) -> tuple[frozenset[Event], ...]:
        """What retrieval has to tell apart: the attributes of the events and their order."""
        return tuple(frozenset(group) for group in self.groups)

    def rng(self, config: SoundscapeConfig, *purpose: int) -> Generator:
        """The generator of this scene (shared with its twin) for one purpose."""
        return np.random.default_rng((config.seed, SPLITS.index(self.split), self.source, *purpose))


@dataclass(frozen=True)
class Placed:
    """An event in the audio, with its true start and end in seconds."""

    event: Event
    start: float
    end: float


def plan(config: SoundscapeConfig) -> dict[str, list[Scene]]:
    """The scenes of each split. No two scenes of val and test together have the same description.

    The scenes 2k and 2k + 1 of test, k < `config.twins`, are twins. Raises ValueError if the settings hold too few
    different scenes.
    """
    taken: set = set()
    scenes = {"train": [_draw(config, "train", number, _groups, None) for number in range(config.train)]}
    scenes["val"] = [_draw(config, "val", number, _groups, taken) for number in range(config.val)]
    twins = []
    for number in range(0, 2 * config.twins, 2):
        first = _draw(config, "test", number, _sequence, taken)
        second = replace(first, number=number + 1, groups=first.groups[::-1], reversed=True)
        taken.add(second.description)
        twins += [first, second]
    scenes["test"] = twins + [_draw(config, "test", n, _groups, taken) for n in range(len(twins), config.test)]
    return scenes


def render(scene: Scene, config: SoundscapeConfig) -> tuple[np.ndarray, list[Placed]]:
    """The audio [n] float32 within -1 .. 1 and its events by group, rounded to whole samples."""
    rng = scene.rng(config, 1)
    rate = config.sample_rate
    groups = scene.groups[::-1] if scene.reversed else scene.groups
    audio = np.zeros(round(rng.uniform(*config.seconds) * rate), np.float32)
    placed, quietest = [], 0.0
    usable = len(audio) / rate - 2 * _MARGIN - _GAP * (len(groups) - 1)
    shares = rng.uniform(0.8, 1.25, len(groups))
    slots = usable * shares / shares.sum()
    edge = _MARGIN
    for index, (group, slot) in enumerate(zip(groups, slots, strict=True)):
        waves = []
        for member, event in enumerate(group):
            wave, level = event_sound(event, scene.rng(config, 2, index, member), config, slot)
            waves.append(wave)
            quietest = min(quietest, level)
        for event, wave, offset in zip(group, waves, _together(rng, waves, round(slot * rate)), strict=True):
            first = round(edge * rate) + offset
            audio[first : first + len(wave)] += wave
            placed.append((index, event, first, first + len(wave)))
        edge += slot + _GAP
    if scene.reversed:
        audio, placed = _reverse(audio, placed)
    if config.backgrounds:
        kind = str(rng.choice(config.backgrounds))
        level = 10 ** ((quietest - rng.uniform(*config.snr_db)) / 20)
        audio += level * background(kind, scene.rng(config, 3), len(audio), rate)
    peak = np.abs(audio).max()
    if peak > 0.99:
        audio *= 0.99 / peak
    return audio, [Placed(event, first / rate, last / rate) for _, event, first, last in placed]


def _draw(config: SoundscapeConfig, split: str, number: int, groups: Callable, taken: set | None) -> Scene:
    """Scene `number` with groups from `groups(rng, config)`, drawn until neither it nor its reverse is `taken`."""
    scene = Scene(split, number, (), source=number)
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
        f"{split}: no scene number {number} that differs from those before; ask for fewer val and test scenes, "
        "or for more classes, events or attributes"
    )


def _groups(rng: Generator, config: SoundscapeConfig) -> tuple[tuple[Event, ...], ...]:
    """One to four events, each joined to the one before it at the chance of `config.overlap`."""
    groups: list[tuple[Event, ...]] = []
    for event in _events(rng, config, config.events[0]):
        if groups and len(groups[-1]) == 1 and rng.random() < config.overlap:
            groups[-1] += (event,)
        else:
            groups.append((event,))
    return tuple(groups)


def _sequence(rng: Generator, config: SoundscapeConfig) -> tuple[tuple[Event, ...], ...]:
    """Two to four events one after another."""
    return tuple((event,) for event in _events(rng, config, max(2, config.events[0])))


def _events(rng: Generator, config: SoundscapeConfig, fewest: int) -> list[Event]:
    names = class_names(config.classes, config.similar)
    count = int(rng.integers(fewest, config.events[1] + 1))
    return [draw_event(rng, config, names[index]) for index in rng.choice(len(names), count, replace=False)]


def draw_event(rng: Generator, config: SoundscapeConfig, name: str) -> Event:
    """An event whose attributes in use are told at the chance of `config.attribute_rate`."""
    kind = EVENTS[name]
    told = rng.random(3) < config.attribute_rate
    pitch = str(rng.choice(("low", "high"))) if config.pitch and kind.pitched and told[0] else ""
    loudness = str(rng.choice(("quiet", "loud"))) if config.loudness and told[1] else ""
    count = None
    if config.count and kind.unit is not None:
        count = int(rng.integers(2, 4)) if told[2] else 1
    return Event(name, pitch, loudness, count)


def event_sound(event: Event, rng: Generator, config: SoundscapeConfig, seconds: float) -> tuple[np.ndarray, float]:
    """The waveform of an event in at most `seconds`, and its level in dB (loudest 50 ms)."""
    kind = EVENTS[event.name]
    semitones = PITCH_SEMITONES[event.pitch] if config.pitch and kind.pitched else _PITCH_OPEN_SEMITONES
    level = rng.uniform(*(LEVEL_DB[event.loudness] if config.loudness else _LEVEL_OPEN_DB))
    span = seconds if kind.unit else seconds * rng.uniform(0.75, 1.0)
    wave = render_event(kind, rng, config.sample_rate, span, 2 ** (rng.uniform(*semitones) / 12), event.count)
    block = config.sample_rate // 20
    powers = np.add.reduceat(np.square(wave), np.arange(0, len(wave), block)) / block
    gain = 10 ** (level / 20) / np.sqrt(powers.max())
    return wave * np.float32(min(gain, 0.9 / np.abs(wave).max())), level


def _together(rng: Generator, waves: list[np.ndarray], room: int) -> list[int]:
    """First samples in a slot of `room` samples; of two sounds the shorter lies within the longer."""
    longest = max(len(wave) for wave in waves)
    edge = int(rng.integers(0, max(1, room - longest + 1)))
    return [edge + int(rng.integers(0, longest - len(wave) + 1)) for wave in waves]


def _reverse(audio: np.ndarray, placed: list[tuple]) -> tuple[np.ndarray, list[tuple]]:
    """Events one after another laid in opposite order, each played forwards, the gaps mirrored."""
    out = np.zeros_like(audio)
    moved = []
    for index, event, first, last in reversed(placed):
        start = len(audio) - last
        out[start : len(audio) - first] = audio[first:last]
        moved.append((index, event, start, len(audio) - first))
    return out, moved
