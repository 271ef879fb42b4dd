"""Captions as data sets store them: under one of several names, as a string or a list of strings."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from atk.data.containers import Unusable

CAPTION_NAMES = ("caption", "text", "captions")  # of a column or key; the first that exists is used


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
        raise Unusable(f"no caption: no {wanted_names(wanted)} among {', '.join(map(str, record)) or 'no keys'}")
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
