"""Recordings to mix into clips and to subtract again: a captioned folder, any folder of audio, or ESC-50's layout."""

import csv
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from atk.data.captions import ON_ERROR, Clip, checked_clips, read_folder, read_split
from atk.ops.checks import one_of

_ESC50_COLUMNS = ("filename", "fold", "category")


@dataclass(frozen=True)
class ReferencePool:
    """Recordings with their classes ("" where the folder does not tell), and what was skipped."""

    clips: list[Clip]
    classes: list[str]
    skipped: list[tuple[str, str]]

    @cached_property
    def _by_class(self) -> dict[str, np.ndarray]:
        return _numbers(self.classes)

    @cached_property
    def _by_file(self) -> dict[str, np.ndarray]:
        return _numbers(os.path.realpath(clip.path) for clip in self.clips)

    def _own(self, clip: Clip) -> np.ndarray:
        """Numbers of the recordings that are the file of `clip`, however its path is spelt."""
        return self._by_file.get(os.path.realpath(clip.path), np.empty(0, np.int64))

    def choices(self, clip: Clip, avoid: Collection[str] = frozenset(), least: int = 1) -> np.ndarray:
        """Numbers of the recordings that can be mixed into `clip`, int64.

        None of a class in `avoid`, nor `clip` itself, nor of a class of which fewer than `least` then are left.
        """
        allowed, own = np.ones(len(self.clips), dtype=bool), self._own(clip)
        allowed[own] = False
        few = [name for name in {self.classes[number] for number in own} if allowed[self._by_class[name]].sum() < least]
        for name in (*avoid, *few):
            if name in self._by_class:
                allowed[self._by_class[name]] = False
        return allowed.nonzero()[0]

    def has_choice(self, clip: Clip, avoid: Collection[str] = frozenset(), least: int = 1) -> bool:
        """Whether there are any `choices`; a data set asks for each of its clips."""
        if not avoid and least == 1:
            return len(self._own(clip)) < len(self.clips)
        return len(self.choices(clip, avoid, least)) > 0

    def draw(
        self,
        random: np.random.Generator,
        count: int,
        clip: Clip,
        avoid: Collection[str] = frozenset(),
        least: int = 1,
    ) -> list[int]:
        """Numbers of `count` of the `choices`, fewer where there are fewer."""
        allowed = self.choices(clip, avoid, least)
        return random.choice(allowed, min(count, len(allowed)), replace=False).tolist() if len(allowed) else []

    def another(self, random: np.random.Generator, number: int, clip: Clip) -> int:
        """Another recording of the class of recording `number`, not `clip`; there is one where `least` was 2."""
        same = self._by_class[self.classes[number]]
        return int(random.choice(same[(same != number) & ~np.isin(same, self._own(clip))]))

    def check_classes(self) -> None:
        """Raises ValueError unless every recording has a class, and another recording of that class."""
        if "" in self._by_class:
            raise ValueError(
                "references: recordings of the same class are asked for, but the folder tells no classes; "
                "it needs meta/esc50.csv, or a folder for each class"
            )
        if single := sorted(name for name, numbers in self._by_class.items() if len(numbers) < 2):
            raise ValueError(f"references: class {single[0]!r} has one recording only, two or more are needed")


def _numbers(values: Iterable[str]) -> dict[str, np.ndarray]:
    """The places at which each value stands, int64."""
    found: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        found.setdefault(value, []).append(number)
    return {value: np.array(numbers) for value, numbers in found.items()}


def read_references(
    folder: str | Path,
    on_error: str = "skip",
    *,
    folds: Sequence[int] | None = None,
    held_out: Sequence[int] = (),
    split: str = "train",
) -> ReferencePool:
    """Read a folder of recordings.

    Where `meta/esc50.csv` exists it is read as ESC-50 (columns filename, fold, category; files in `audio/`); else where
    train.csv exists, as a captioned folder; else every audio file below the folder counts. Without esc50.csv the
    classes are the names of the sub-folders that files lie in directly below `folder`.

    Args:
        folder: the recordings.
        on_error: "skip" leaves out bad files and rows and lists them, "raise" stops at the first.
        folds: of ESC-50's layout, those to read; None for all.
        held_out: folds to leave out.
        split: of a captioned folder, the split to read; train.csv where it has no such split.

    Raises:
        FileNotFoundError, ValueError, AudioError: as `read_split` and `read_folder`; no recording is left in the folds;
            with `on_error="raise"`, a row of esc50.csv lacks its file name, fold or category.
    """
    one_of("on_error", on_error, ON_ERROR)
    folder = Path(folder)
    table = folder / "meta" / "esc50.csv"
    if table.is_file():
        return _read_esc50(table, on_error, lambda fold: (folds is None or fold in folds) and fold not in held_out)
    if captioned := (folder / "train.csv").is_file():
        found = read_split(folder, split if (folder / f"{split}.csv").is_file() else "train", on_error)
    else:
        found = read_folder(folder, on_error)
    classes = [_class_folder(clip.file_name, captioned) for clip in found.clips]
    return ReferencePool(found.clips, classes, found.skipped)


def _class_folder(name: str, captioned: bool) -> str:
    parts = Path(name).parts
    return parts[0] if len(parts) > 1 and not captioned else ""


def _read_esc50(table: Path, on_error: str, wanted: Callable[[int], bool]) -> ReferencePool:
    category, skipped, folds = {}, [], set()
    for line, row in _esc50_rows(table):
        if fault := _fault(row):
            if on_error == "raise":
                raise ValueError(f"{table} line {line}: {fault}")
            skipped.append((f"{table.name} line {line}", fault))
            continue
        folds.add(int(row["fold"]))
        if wanted(int(row["fold"])):
            category[f"audio/{row['filename'].strip()}"] = row["category"].strip()
    if not category:
        has = ", ".join(map(str, sorted(folds))) or "none that can be read"
        raise ValueError(f"{table}: no recording in the folds asked for; its folds are {has}")
    found = [(name, table.parent.parent / name, ()) for name in category]
    split = checked_clips(found, skipped, on_error, table)
    return ReferencePool(split.clips, [category[clip.file_name] for clip in split.clips], split.skipped)


def _esc50_rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows with their line numbers; cells that are missing are ""."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        try:
            if missing := [name for name in _ESC50_COLUMNS if name not in (reader.fieldnames or ())]:
                wanted = ", ".join(_ESC50_COLUMNS)
                raise ValueError(f"{table}: needs the columns {wanted}; {', '.join(missing)} missing")
            for row in reader:
                yield reader.line_num, row
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{table} line {reader.line_num}: not well-formed CSV in UTF-8 ({error})") from None


def _fault(row: dict[str, str]) -> str | None:
    """What is wrong with a row of esc50.csv."""
    if empty := [name for name in _ESC50_COLUMNS if not row[name].strip()]:
        return f"no {', no '.join(empty)}"
    return None if row["fold"].strip().isdecimal() else f"fold must be a whole number, got {row['fold']!r}"
