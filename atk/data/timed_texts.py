"""Timed captions: texts that say what sounds in spans of a clip; those of a training crop."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Span = tuple[float, float]  # start and end, in seconds


class TimedCaption(NamedTuple):
    """A text, and the `spans` of a clip that it describes; it holds nowhere else in the clip."""

    text: str
    spans: tuple[Span, ...]


class TimedTexts(NamedTuple):
    """The timed captions of a training crop, and the texts of those that were left out, because there were too many."""

    captions: tuple[TimedCaption, ...] = ()
    left_out: tuple[str, ...] = ()


def timed_texts(
    captions: Sequence[TimedCaption], start: float, seconds: float, limit: int, random: np.random.Generator
) -> TimedTexts:
    """The timed captions that sound in a crop, in seconds from its start; at most `limit` of them, drawn at random."""
    sounding = []
    for caption in captions:
        moved = ((max(0.0, first - start), min(seconds, end - start)) for first, end in caption.spans)
        if spans := tuple((first, end) for first, end in moved if first < end):
            sounding.append(TimedCaption(caption.text, spans))
    if len(sounding) <= limit:
        return TimedTexts(tuple(sounding))
    chosen = set(random.choice(len(sounding), limit, replace=False).tolist())
    kept = tuple(caption for index, caption in enumerate(sounding) if index in chosen)
    return TimedTexts(kept, tuple(caption.text for index, caption in enumerate(sounding) if index not in chosen))


class TimedSource(NamedTuple):
    """What a training dataset needs to add timed captions: those of each file, and the most that a crop gets."""

    captions: Mapping[str, Sequence[TimedCaption]]
    limit: int
