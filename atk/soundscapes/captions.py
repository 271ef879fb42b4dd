"""Captions: the wording of events, of their order, and of their overlap."""

import re
from collections.abc import Sequence
from typing import TypeVar

from numpy.random import Generator

from atk.soundscapes.config import SoundscapeConfig
from atk.soundscapes.materials import SYNTHETIC, Materials
from atk.soundscapes.phrases import COUNT_WORDS, LOUDNESS_ADJECTIVES, LOUDNESS_ADVERBS, PITCH_WORDS
from atk.soundscapes.scenes import Scene
from atk.soundscapes.sounds import Event, Sounds

_T = TypeVar("_T")

# Two simultaneous events; the order in which they are named has no meaning.
_OVERLAP = {
    "clause": ("{} while {}", "{} as {}", "{} and at the same time {}", "{} and meanwhile {}", "{} just as {}"),
    "noun": ("{} over {}", "{} together with {}", "{} along with {}", "{} at the same time as {}", "{} mixed with {}"),
}
# Sequential events: the first one, those in the middle, the last one.
_ORDER = {
    "clause": (
        ("{}", ", then {}", ", then {}"),
        ("{}", " and then {}", " and then {}"),
        ("first {}", ", then {}", ", and afterwards {}"),
        ("{}", ", after that {}", ", and after that {}"),
        ("{}", ", next {}", ", and later {}"),
    ),
    "noun": (
        ("{}", ", then {}", ", then {}"),
        ("{}", " followed by {}", " followed by {}"),
        ("{}", ", then {}", ", and finally {}"),
        ("{}", ", after that {}", ", and after that {}"),
        ("{}", ", next {}", ", and later {}"),
    ),
}
# Two sequential events whose order is given by a single word, in order or with the later one first.
_TWO = {"clause": ("{0} before {1}", "after {0}, {1}"), "noun": ("{0} before {1}", "{0} and right after it {1}")}
_LATER_FIRST = {"clause": ("{1} after {0}", "before {1}, {0}"), "noun": ("{1} after {0}", "{1} preceded by {0}")}
_FRAMES = {
    "clause": ("in this recording {}", "in the clip {}", "here {}", "we hear how {}", "{} in this clip"),
    "noun": ("the sound of {}", "a recording of {}", "we hear {}", "here is {}", "{} in this clip"),
}


def describe(
    scene: Scene, config: SoundscapeConfig, materials: Materials = SYNTHETIC
) -> tuple[list[str], list[list[str]]]:
    """Write the captions of a scene.

    With `config.rephrase`, the first caption is the same as without it, and the phrases are those of the first caption.
    Twins draw from the same generator: their captions have the same template and phrases, in opposite order.

    Returns:
        `config.captions_per_clip` distinct captions, and the phrase of each event, by group.
    """
    rng = scene.rng(config, 4)
    style, phrases = name_events(scene, rng, materials.events)
    captions, first_phrases = [], phrases
    while len(captions) < config.captions_per_clip:
        caption = _sentence(rng, style, phrases, config.later_first)
        if caption not in captions:
            captions.append(caption)
        if config.rephrase:
            style, phrases = name_events(scene, rng, materials.events)
    return captions, first_phrases


def name_events(scene: Scene, rng: Generator, sounds: Sounds) -> tuple[str, list[list[str]]]:
    """Draw a style for all events of a scene ("clause" or "noun"), and a phrase for each event, by group."""
    style = draw_style(rng)
    if not all(sounds.forms(style, event.name) for group in scene.groups for event in group):
        style = "noun"
    groups = scene.groups[::-1] if scene.reversed else scene.groups
    phrases = [[name_event(event, style, rng, sounds) for event in group] for group in groups]
    return style, phrases[::-1] if scene.reversed else phrases


def draw_style(rng: Generator) -> str:
    """Draw a style, "clause" or "noun"."""
    return "clause" if rng.random() < 0.5 else "noun"


def name_event(event: Event, style: str, rng: Generator, sounds: Sounds = SYNTHETIC.events) -> str:
    """Word one event and its attributes as a "clause" (a dog barks) or a "noun" (a dog barking)."""
    forms = sounds.forms(style, event.name)
    count_words = COUNT_WORDS.get(event.count or 0)
    fitting = [form for form in forms if ("{b}" in form or not count_words) and ("{a}" in form or not event.pitch)]
    form = _pick(rng, fitting)
    adjectives: list[str] = []
    adverbs: list[str] = []
    if event.loudness:
        if "{b}" in form and ("{a}" not in form or rng.random() < 0.5):
            adverbs.append(_pick(rng, LOUDNESS_ADVERBS[event.loudness]))
        else:
            adjectives.append(_pick(rng, LOUDNESS_ADJECTIVES[event.loudness]))
    if event.pitch:
        adjectives.append(_pick(rng, PITCH_WORDS[event.pitch]))
    if count_words:
        adverbs.append(_pick(rng, count_words))
    phrase = form.format(a="".join(word + " " for word in adjectives), b="".join(" " + word for word in adverbs))
    return re.sub(r"\ba (?=[aeiou])", "an ", phrase) if "{a}" in form else phrase


def _sentence(rng: Generator, style: str, phrases: list[list[str]], later_first: float) -> str:
    """Write one caption. The number of random draws depends on the event counts alone, so twins stay in sync."""
    overlap = _pick(rng, _OVERLAP[style])
    parts = [overlap.format(*group) if len(group) == 2 else group[0] for group in phrases]
    if len(parts) == 2 and max(map(len, phrases)) == 1 and rng.random() < max(later_first, 0.4):
        templates = _LATER_FIRST[style] if rng.random() < later_first / max(later_first, 0.4) else _TWO[style]
        text = _pick(rng, templates).format(*parts)
    else:
        text = _in_order(_pick(rng, _ORDER[style]), parts)
    return _pick(rng, _FRAMES[style]).format(text) if rng.random() < 0.5 else text


def _in_order(template: tuple[str, str, str], parts: list[str]) -> str:
    """Join parts with the template of the first, the middle, and the last ones."""
    if len(parts) == 1:
        return parts[0]
    first, between, last = template
    return first.format(parts[0]) + "".join(between.format(part) for part in parts[1:-1]) + last.format(parts[-1])


def _pick(rng: Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]
