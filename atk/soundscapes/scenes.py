"""Scenes: their events and order (`plan`), and their audio (`render`).

Every random draw uses a generator seeded by (seed, split, scene, purpose), so scenes can be rendered in any process.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from atk.data.captions import SPLITS
from atk.soundscapes.backgrounds import background, recorded_background
from atk.soundscapes.config import SoundscapeConfig
from atk.soundscapes.materials import SYNTHETIC, Materials
from atk.soundscapes.rooms import Respond, reverberate
from atk.soundscapes.sounds import Event

LEVEL_DB = {"quiet": (-41.0, -38.0), "": (-30.0, -26.0), "loud": (-18.0, -15.0)}
_ANY_LEVEL_DB = (-32.0, -22.0)  # where captions do not name the level
_GAP = 0.1  # seconds between sequential events
_MARGIN = 0.1  # seconds before the first event and after the last one
_ATTEMPTS = 2000  # draws per scene before giving up


_Groups = tuple[tuple[Event, ...], ...]
_Description = tuple[frozenset[Event], ...]
_DrawGroups = Callable[[Generator, SoundscapeConfig, Materials], _Groups]
_Reverb = Callable[[np.ndarray], np.ndarray]


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
    recording: str = ""
    """Name of the recording that it comes from; "" if it is synthesized."""


class EventSound(NamedTuple):
    """The sound of an event.

    Attributes:
        event: the event.
        wave: float32 `[n]`, the event and any reverberation that follows it.
        samples: length of the event in samples, without reverberation.
        level: level in the loudest 50 ms, in dB.
        recording: name of the recording that it comes from; "" if it is synthesized.
    """

    event: Event
    wave: np.ndarray
    samples: int
    level: float
    recording: str


def plan(config: SoundscapeConfig, materials: Materials = SYNTHETIC) -> dict[str, list[Scene]]:
    """Draw the scenes of each split; no two scenes of val and test have the same description.

    Scenes 2k and 2k + 1 of test, k < `config.twins`, are twins.

    Raises:
        ValueError: the settings allow too few distinct scenes.
    """
    taken: set[_Description] = set()

    def draw(split: str, index: int, groups: _DrawGroups = _groups) -> Scene:
        return _draw(
            Scene(split, index, (), source=index), config, materials, groups, None if split == "train" else taken
        )

    scenes = {split: [draw(split, index) for index in range(getattr(config, split))] for split in ("train", "val")}
    twins = []
    for index in range(0, 2 * config.twins, 2):
        first = draw("test", index, _sequence)
        second = replace(first, index=index + 1, groups=first.groups[::-1], reversed=True)
        taken.add(second.description)
        twins += [first, second]
    scenes["test"] = twins + [draw("test", index) for index in range(len(twins), config.test)]
    return scenes


def render(scene: Scene, config: SoundscapeConfig, materials: Materials = SYNTHETIC) -> tuple[np.ndarray, list[Placed]]:
    """Render a scene.

    Returns:
        The audio, float32 `[n]` within [-1, 1], and its events by group, with times rounded to whole samples.
    """
    rng = scene.rng(config, 1)
    rate = config.sample_rate
    audio = np.zeros(round(rng.uniform(*config.seconds) * rate), np.float32)
    sounds = _place(scene, config, materials, rng, len(audio))
    for sound, first in sounds:
        audio[first : first + len(sound.wave)] += sound.wave[: len(audio) - first]
    if config.backgrounds:
        quietest = min(0.0, *(sound.level for sound, _ in sounds))
        name = str(rng.choice(config.backgrounds))
        gain = 10 ** ((quietest - rng.uniform(*config.snr_db)) / 20)
        audio += gain * _background(name, scene.rng(config, 3), len(audio), rate, materials)
    peak = np.abs(audio).max()
    if peak > 0.99:
        audio *= 0.99 / peak
    return audio, [
        Placed(sound.event, first / rate, (first + sound.samples) / rate, sound.recording) for sound, first in sounds
    ]


def _place(
    scene: Scene, config: SoundscapeConfig, materials: Materials, rng: Generator, size: int
) -> list[tuple[EventSound, int]]:
    """Render the events of a scene of `size` samples, by group, each with its first sample.

    In a reversed scene, sequential events are in the opposite order; each still plays forward, and the gaps are
    mirrored.
    """
    rate = config.sample_rate
    groups = scene.groups[::-1] if scene.reversed else scene.groups
    usable = size / rate - 2 * _MARGIN - _GAP * (len(groups) - 1)
    shares = rng.uniform(0.8, 1.25, len(groups))
    slots = usable * shares / shares.sum()
    respond = materials.rooms.draw(scene.rng(config, 5), config) if materials.rooms else None
    placed: list[tuple[EventSound, int]] = []
    start = _MARGIN
    for row, (group, slot) in enumerate(zip(groups, slots, strict=True)):
        sounds = []
        for member, event in enumerate(group):
            reverb = None
            if respond is not None:
                reverb = _reverb(respond, scene.rng(config, 6, row, member), config)
            sounds.append(
                event_sound(event, scene.rng(config, 2, row, member), config, slot, materials, scene.split, reverb)
            )
        offsets = _offsets(rng, [sound.samples for sound in sounds], round(slot * rate))
        placed += [(sound, round(start * rate) + offset) for sound, offset in zip(sounds, offsets, strict=True)]
        start += slot + _GAP
    if scene.reversed:
        placed = [(sound, size - first - sound.samples) for sound, first in reversed(placed)]
    return placed


def _draw(
    scene: Scene,
    config: SoundscapeConfig,
    materials: Materials,
    groups: _DrawGroups,
    taken: set[_Description] | None,
) -> Scene:
    """Draw the groups of `scene` until its description is new, and add that to `taken`.

    A scene that gets a twin needs a new description in reverse, too.
    """
    rng = scene.rng(config, 0)
    for _ in range(_ATTEMPTS):
        scene = replace(scene, groups=groups(rng, config, materials))
        if taken is None:
            return scene
        twin_taken = groups is _sequence and scene.description[::-1] in taken
        if scene.description not in taken and not twin_taken:
            taken.add(scene.description)
            return scene
    raise ValueError(
        f"{scene.split}: found no scene {scene.index} that differs from the previous ones; use fewer val and test "
        "scenes, or more classes, events or attributes"
    )


def _groups(rng: Generator, config: SoundscapeConfig, materials: Materials) -> _Groups:
    """Draw one to four events; each overlaps the previous one with probability `config.overlap`."""
    groups: list[tuple[Event, ...]] = []
    for event in _events(rng, config, materials, config.events[0]):
        if groups and len(groups[-1]) == 1 and rng.random() < config.overlap:
            groups[-1] += (event,)
        else:
            groups.append((event,))
    return tuple(groups)


def _sequence(rng: Generator, config: SoundscapeConfig, materials: Materials) -> _Groups:
    """Draw two to four sequential events."""
    return tuple((event,) for event in _events(rng, config, materials, max(2, config.events[0])))


def _events(rng: Generator, config: SoundscapeConfig, materials: Materials, fewest: int) -> list[Event]:
    names = materials.events.names(config)
    count = int(rng.integers(fewest, config.events[1] + 1))
    chosen = rng.choice(len(names), count, replace=False)
    return [materials.events.draw(rng, config, names[index]) for index in chosen]


def event_sound(
    event: Event,
    rng: Generator,
    config: SoundscapeConfig,
    seconds: float,
    materials: Materials = SYNTHETIC,
    split: str = "train",
    reverb: _Reverb | None = None,
) -> EventSound:
    """Render an event of at most `seconds`, not counting the reverberation that `reverb` adds."""
    named = config.loudness and not config.recordings
    level = rng.uniform(*(LEVEL_DB[event.loudness] if named else _ANY_LEVEL_DB))
    dry, recording = materials.events.wave(event, rng, config, split, seconds)
    wave = dry if reverb is None else reverb(dry)
    block = config.sample_rate // 20
    powers = np.add.reduceat(np.square(wave), np.arange(0, len(wave), block)) / block
    gain = 10 ** (level / 20) / np.sqrt(powers.max())
    return EventSound(event, wave * np.float32(min(gain, 0.9 / np.abs(wave).max())), len(dry), level, recording)


def _reverb(respond: Respond, rng: Generator, config: SoundscapeConfig) -> _Reverb:
    """Draw a position in a room and a direct-to-reverberant ratio."""
    response = respond(rng)
    ratio = rng.uniform(*config.drr_db)
    return lambda wave: reverberate(wave, response, ratio, config.sample_rate)


def _background(name: str, rng: Generator, samples: int, rate: int, materials: Materials) -> np.ndarray:
    """Background `name`, float32 `[samples]` of unit RMS: synthesized, or from the folder of this name."""
    if name in materials.backgrounds:
        return recorded_background(materials.backgrounds[name], rng, samples, rate)
    return background(name, rng, samples, rate)


def _offsets(rng: Generator, lengths: list[int], size: int) -> list[int]:
    """Draw the first sample of each sound in a slot of `size` samples; shorter sounds lie within the longest one."""
    longest = max(lengths)
    first = int(rng.integers(0, max(1, size - longest + 1)))
    return [first + int(rng.integers(0, longest - length + 1)) for length in lengths]
