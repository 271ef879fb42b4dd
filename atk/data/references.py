"""Reference recordings that are mixed into clips: a captioned folder, any folder of audio, or the ESC-50 layout."""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from atk.data.captions import ON_ERROR, Clip, Entry, checked_clips, read_folder, read_split
from atk.data.tables import Table
from atk.ops.checks import one_of

_ESC50_COLUMNS = ("filename", "fold", "category")


@dataclass(frozen=True)
class ReferencePool:
    """Reference recordings.

    Attributes:
        clips: the recordings.
        classes: class of each recording; "" if the folder has no classes.
        skipped: (name, reason) of each file or row that was skipped.
    """

    clips: list[Clip]
    classes: list[str]
    skipped: list[tuple[str, str]]

    @cached_property
    def _by_class(self) -> dict[str, np.ndarray]:
        return _indices(self.classes)

    @cached_property
    def _by_file(self) -> dict[str, np.ndarray]:
        return _indices(_identity(clip) for clip in self.clips)

    def _same_file(self, clip: Clip) -> np.ndarray:
        """Indices of the recordings that are the same file as `clip`, even if their paths are spelled differently."""
        return self._by_file.get(_identity(clip), np.empty(0, np.int64))

    def choices(self, clip: Clip, avoid: Collection[str] = frozenset(), least: int = 1) -> np.ndarray:
        """Indices of the recordings that can be mixed into `clip`, int64.

        Args:
            clip: clip to mix into; it is never its own reference.
            avoid: classes to leave out.
            least: leave out classes that have fewer recordings than this besides `clip`.
        """
        same_file = self._same_file(clip)
        allowed = np.ones(len(self.clips), dtype=bool)
        allowed[same_file] = False
        classes = {self.classes[index] for index in same_file}  # those from which `clip` is left out
        too_small = [name for name in classes if allowed[self._by_class[name]].sum() < least]
        if least > 1:
            too_small += [name for name, indices in self._by_class.items() if len(indices) < least]
        for name in (*avoid, *too_small):
            if name in self._by_class:
                allowed[self._by_class[name]] = False
        return allowed.nonzero()[0]

    def has_choice(self, clip: Clip, avoid: Collection[str] = frozenset(), least: int = 1) -> bool:
        """Whether `choices` isn't empty; cheaper than `choices` in the usual case."""
        if not avoid and least == 1:
            return len(self._same_file(clip)) < len(self.clips)
        return len(self.choices(clip, avoid, least)) > 0

    def draw(
        self,
        random: np.random.Generator,
        count: int,
        clip: Clip,
        avoid: Collection[str] = frozenset(),
        least: int = 1,
    ) -> list[int]:
        """Draw `count` different `choices`, or all of them if there are fewer."""
        allowed = self.choices(clip, avoid, least)
        return random.choice(allowed, min(count, len(allowed)), replace=False).tolist() if len(allowed) else []

    def another(self, random: np.random.Generator, index: int, clip: Clip) -> int:
        """Draw another recording of the same class as recording `index`, but not `clip`.

        One exists for every recording among the `choices` with `least=2`.
        """
        same_class = self._by_class[self.classes[index]]
        return int(random.choice(same_class[(same_class != index) & ~np.isin(same_class, self._same_file(clip))]))

    def check_classes(self) -> None:
        """Raise ValueError unless every recording has a class with at least two recordings."""
        if "" in self._by_class:
            raise ValueError(
                "references: the condition needs recordings of the same class, but the folder has no classes; "
                "add meta/esc50.csv or one subfolder per class"
            )
        if single := sorted(name for name, indices in self._by_class.items() if len(indices) < 2):
            raise ValueError(f"references: class {single[0]!r} has only one recording; at least two are needed")


def _identity(clip: Clip) -> str:
    """The same for clips with the same audio file, even if their paths are spelled differently."""
    return os.path.realpath(clip.path) if isinstance(clip.path, Path) else str(clip.path)


def _indices(values: Iterable[str]) -> dict[str, np.ndarray]:
    """Positions of each value, int64."""
    positions: dict[str, list[int]] = {}
    for index, value in enumerate(values):
        positions.setdefault(value, []).append(index)
    return {value: np.array(indices) for value, indices in positions.items()}


def read_references(
    folder: str | Path,
    on_error: str = "skip",
    *,
    folds: Sequence[int] | None = None,
    held_out: Sequence[int] = (),
    split: str = "train",
) -> ReferencePool:
    """Read a folder of reference recordings.

    A folder with `meta/esc50.csv` is read as ESC-50 (columns filename, fold, category; files in `audio/`). Otherwise, a
    folder with train.csv is read as a captioned folder, without classes. Otherwise, every audio file below the folder
    is used; files in subfolders get the name of the top-level subfolder as their class.

    Args:
        folder: folder of recordings.
        on_error: "skip" leaves out bad files and rows and lists them; "raise" stops at the first one.
        folds: folds of the ESC-50 layout to read; None reads all.
        held_out: folds to leave out.
        split: split of a captioned folder to read; train.csv if this split doesn't exist.

    Raises:
        FileNotFoundError, ValueError, AudioError: as for `read_split` and `read_folder`.
        ValueError: the folds contain no recording; with `on_error="raise"`, a row of esc50.csv repeats a file,
            lacks its file name, fold, or category, or has a fold that is not an integer.
    """
    one_of("on_error", on_error, ON_ERROR)
    folder = Path(folder)
    table = folder / "meta" / "esc50.csv"
    if table.is_file():
        return _read_esc50(table, on_error, lambda fold: (folds is None or fold in folds) and fold not in held_out)
    if captioned := (folder / "train.csv").is_file():
        recordings = read_split(folder, split if (folder / f"{split}.csv").is_file() else "train", on_error)
    else:
        recordings = read_folder(folder, on_error)
    classes = [_class_folder(clip.file_name, captioned) for clip in recordings.clips]
    return ReferencePool(recordings.clips, classes, recordings.skipped)


def _class_folder(name: str, captioned: bool) -> str:
    parts = Path(name).parts
    return parts[0] if len(parts) > 1 and not captioned else ""


def _read_esc50(table: Path, on_error: str, is_selected: Callable[[int], bool]) -> ReferencePool:
    category: dict[str, str] = {}  # by file name
    seen: dict[str, int] = {}  # line by file name
    skipped: list[tuple[str, str]] = []
    folds: set[int] = set()
    for line, row in Table.open(table, _ESC50_COLUMNS).records():
        name = f"audio/{row['filename'].strip()}"
        fault = _fault(row)
        if fault is None and seen.setdefault(name, line) != line:
            fault = f"line {seen[name]} already lists {row['filename'].strip()}"
        if fault:
            if on_error == "raise":
                raise ValueError(f"{table} line {line}: {fault}")
            skipped.append((f"{table.name} line {line}", fault))
            continue
        folds.add(int(row["fold"]))
        if is_selected(int(row["fold"])):
            category[name] = row["category"].strip()
    if not category:
        available = ", ".join(map(str, sorted(folds))) or "none"
        raise ValueError(f"{table}: no recording in the requested folds; its folds are {available}")
    entries: list[Entry] = [(name, table.parent.parent / name, ()) for name in category]
    split = checked_clips(entries, skipped, on_error, table, table.parent.parent)
    return ReferencePool(split.clips, [category[clip.file_name] for clip in split.clips], split.skipped)


def _fault(row: dict[str, str]) -> str | None:
    """Describe what is wrong with a row of esc50.csv; None if it is good."""
    if empty := [name for name in _ESC50_COLUMNS if not row[name].strip()]:
        return f"no {', no '.join(empty)}"
    return None if row["fold"].strip().isdecimal() else f"fold must be an integer, got {row['fold']!r}"
