"""What a reader of a published data set is given, and what it returns."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from atk.data.published.tree import Located, Tree

NAMES_KEPT = 20  # names of left-out clips that import.json lists for each reason


class Span(NamedTuple):
    """An event: its name in the set, its wording, and its times in seconds."""

    event: str
    phrase: str
    start: float
    end: float


class PublishedClip(NamedTuple):
    """A clip as a data set lists it.

    Attributes:
        name: its name in the set.
        splits: the CSV files that list it, without `.csv`.
        audio: its audio file.
        captions: its captions.
        tags: its tags; None if it is not annotated with tags.
        events: its events.
        fold: its fold; "" if there are none.
    """

    name: str
    splits: tuple[str, ...]
    audio: Located
    captions: Sequence[str] = ()
    tags: Sequence[str] | None = None
    events: Sequence[Span] = ()
    fold: str = ""


class Contents(NamedTuple):
    """The clips of a data set, and the tags of each vocabulary in its order."""

    clips: Iterable[PublishedClip]
    vocabularies: Mapping[str, Sequence[str]] = {}


@dataclass
class LeftOut:
    """What was left out for one reason: how much, from which splits, and the first names."""

    count: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)


@dataclass
class Source:
    """A folder with a published data set.

    Attributes:
        tree: its files.
        audio: names of its audio files, for messages.
        exclude: exclusion lists.
        left_out: what was left out, by reason.
        notes: what else is worth knowing.
    """

    tree: Tree
    audio: str
    exclude: Sequence[str] = ()
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, name: str, splits: Iterable[str] = ()) -> None:
        """Count something that is left out."""
        entry = self.left_out.setdefault(reason, LeftOut())
        entry.count += 1
        entry.splits.update(splits)
        if len(entry.names) < NAMES_KEPT:
            entry.names.append(name)

    def missing(self, *names: str) -> NoReturn:
        """Raise the error about a folder without any of the tables that the set needs."""
        tables = " or ".join(names)
        raise ValueError(
            f"{self.tree.table_root}: has no {tables}; if the tables are elsewhere, name them with --tables"
        )

    def split_tables(self, names: Mapping[str, Sequence[str]], folder: str = "") -> dict[str, Path]:
        """The table of each split; splits without a table are noted.

        Args:
            names: names that the table of a split may have, by split.
            folder: as in `Tree.table`.

        Raises:
            ValueError: there is no such table, or several tables of the same name differ.
        """
        tables = {split: self.tree.table(*options, folder=folder) for split, options in names.items()}
        if not any(tables.values()):
            self.missing(*(options[0] for options in names.values()))
        self.notes += [f"no {split}.csv: no table {names[split][0]}" for split, path in tables.items() if path is None]
        return {split: path for split, path in tables.items() if path is not None}


def label_text(label: str) -> str:
    """A label as words: `dog_bark` -> "dog bark"."""
    return " ".join(label.replace("_", " ").split())


def label_caption(labels: Iterable[str]) -> list[str]:
    """The caption of a clip that has only labels, without repeats; none without labels."""
    text = ", ".join(dict.fromkeys(map(label_text, labels)))
    return [text] if text else []


def fold_splits(folds: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The splits of each clip: the last fold is the test split, the one before it the validation split.

    Args:
        folds: number of the fold of each clip.
    """
    others = sorted(set(folds.values()), key=float)[1:]
    roles = dict(zip(reversed(others), ("test", "val"), strict=False))
    return {name: (roles.get(fold, "train"), "all") for name, fold in folds.items()}


def split_name(text: str, where: str) -> str:
    """The split that a table names in its own way.

    Raises:
        ValueError: it names none; the message begins with `where`.
    """
    names = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
    try:
        return names[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{where}: expected the name of a split, got {text!r}") from None


def to_number(text: object, where: str) -> float:
    """A finite number from a table.

    Raises:
        ValueError: `text` is not one; the message begins with `where`.
    """
    try:
        value = float(str(text))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a number, got {text!r}")
    return value


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not JSON in UTF-8.
    """
    content = read_text(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
