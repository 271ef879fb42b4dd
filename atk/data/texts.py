"""Captions as data sets store them: under one of several names, as a string or a list of strings."""

from collections.abc import Iterable, Mapping
from typing import Any

from atk.data.containers import Unusable

CAPTION_NAMES = ("caption", "text", "captions")  # of a column or key; the first that exists is used


def caption_name(names: Iterable[str], wanted: str | None = None) -> str | None:
    """The name of the captions among the names of columns or keys: `wanted`, or a usual one; None if it is missing."""
    names = set(names)
    return next((name for name in ([wanted] if wanted else CAPTION_NAMES) if name in names), None)


def wanted_names(wanted: str | None) -> str:
    """The names that `caption_name` looks for, in words."""
    return wanted or f"{', '.join(CAPTION_NAMES[:-1])}, or {CAPTION_NAMES[-1]}"


def captions_in(record: Mapping[str, Any], wanted: str | None = None) -> list[str]:
    """The captions of a record, normalized.

    Raises:
        Unusable: the record has none.
    """
    name = caption_name(record, wanted)
    if name is None:
        raise Unusable(f"no caption: no {wanted_names(wanted)} among {', '.join(map(str, record)) or 'no keys'}")
    return normalized(record[name])


def normalized(texts: Any) -> list[str]:
    """One or several texts without repeats, each on one line with single spaces.

    Raises:
        Unusable: there is no text.
    """
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Unusable("its caption is neither text nor a list of texts")
    captions = list(dict.fromkeys(" ".join(text.split()) for text in texts))
    if not any(captions):
        raise Unusable("its caption is empty")
    return [caption for caption in captions if caption]
