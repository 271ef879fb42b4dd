"""Captions as data sets store them: under one of several names, as a string or a list of strings, or as tags."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from atk.data.containers import Unusable

CAPTION_NAMES = ("caption", "text", "captions")  # of a column or key; the first that exists is used
TagSampling = Literal["stochastic", "one", "shuffle"]
TAG_SAMPLINGS = get_args(TagSampling)


def sample_tags(caption: str, sampling: TagSampling, random: np.random.Generator) -> str:
    """Draw from the tags of a caption that lists them with commas: "rock, sad, 80s" may become "sad, rock".

    Args:
        caption: the tags; one without commas stays as it is.
        sampling: "stochastic" draws k of L tags in random order, where k is uniform in 1..L; "one" draws a single tag;
            "shuffle" draws all of them.
        random: generator of the draws.
    """
    tags = [tag for tag in map(str.strip, caption.split(",")) if tag]
    if len(tags) < 2:
        return caption
    counts = {"stochastic": int(random.integers(1, len(tags) + 1)), "one": 1, "shuffle": len(tags)}
    return ", ".join(tags[index] for index in random.permutation(len(tags))[: counts[sampling]])


def caption_names(names: Iterable[str], wanted: str | None = None) -> list[str]:
    """The names of the captions among those of columns or keys: `wanted`, or a usual one; else caption_1 and so on."""
    names = list(names)
    usual = [name for name in ([wanted] if wanted else CAPTION_NAMES) if name in names]
    return usual[:1] or ([] if wanted else [name for name in names if re.fullmatch(r"caption_\d+", name)])


def wanted_names(wanted: str | None) -> str:
    """The names that `caption_names` looks for, in words."""
    return wanted or f"{', '.join(CAPTION_NAMES[:-1])}, or {CAPTION_NAMES[-1]}"


def captions_in(record: Mapping[str, Any], wanted: str | None = None) -> list[str]:
    """The captions of a record, normalized.

    Raises:
        Unusable: the record has none.
    """
    names = caption_names(record, wanted)
    if not names:
        keys = ", ".join(map(str, record)) or "no keys"
        raise Unusable(f"no caption: no {wanted_names(wanted)} among {keys}; caption_column can name another")
    values = [record[name] for name in names if record[name]]
    return normalized([text for value in values for text in (value if isinstance(value, list) else [value])])


def normalized(texts: list[Any]) -> list[str]:
    """Texts without repeats, each on one line with single spaces.

    Raises:
        Unusable: there is no text.
    """
    if not all(isinstance(text, str) for text in texts):
        raise Unusable("its caption is neither text nor a list of texts")
    captions = list(dict.fromkeys(" ".join(text.split()) for text in texts))
    if not any(captions):
        raise Unusable("its caption is empty")
    return [caption for caption in captions if caption]
