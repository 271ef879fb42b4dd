"""Recordings to mix into clips and to subtract again: a captioned folder, any folder of audio, or ESC-50's layout."""

import csv
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atk.checks import one_of
from atk.data.captions import ON_ERROR, Clip, checked_clips, read_folder, read_split

_ESC50_COLUMNS = ("filename", "fold", "category")


@dataclass(frozen=True)
class ReferencePool:
    """Recordings with their classes ("" where the folder does not tell), and what was skipped."""

    clips: list[Clip]
    classes: list[str]
    skipped: list[tuple[str, str]]

    def draw(
        self, random: np.random.Generator, count: int, clip: Clip, avoid: Collection[str] = frozenset()
    ) -> list[int]:
        """Numbers of `count` recordings, fewer where there are fewer: none of a class in `avoid`, nor `clip` itself."""
        allowed = [
            number
            for number, (other, name) in enumerate(zip(self.clips, self.classes, strict=True))
            if name not in avoid and other.path != clip.path
        ]
        if not allowed:
            raise ValueError(f"references: none of {len(self.clips)} can be mixed into {clip.file_name}")
        return random.choice(allowed, min(count, len(allowed)), replace=False).tolist()

    def another(self, random: np.random.Generator, number: int) -> int:
        """Another recording of the class of recording `number`."""
        same = [other for other, name in enumerate(self.classes) if name == self.classes[number] and other != number]
        return int(random.choice(same))

    def check_classes(self) -> None:
        """Raises ValueError unless every recording has a class, and another recording of that class."""
        counts = {name: self.classes.count(name) for name in set(self.classes)}
        if "" in counts:
            raise ValueError(
                "references: recordings of the same class are asked for, but the folder tells no classes; "
                "it needs meta/esc50.csv, or a folder for each class"
            )
        if single := sorted(name for name, count in counts.items() if count < 2):
            raise ValueError(f"references: class {single[0]!r} has one recording only, two or more are needed")


def read_references(
    folder: str | Path, on_error: str = "skip", *, folds: Sequence[int] | None = None, held_out: Sequence[int] = ()
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

    Raises:
        FileNotFoundError, ValueError, AudioError: as `read_split` and `read_folder`; no recording is left in the folds.
    """
    one_of("on_error", on_error, ON_ERROR)
    folder = Path(folder)
    table = folder / "meta" / "esc50.csv"
    if table.is_file():
        return _read_esc50(table, on_error, lambda fold: (folds is None or fold in folds) and fold not in held_out)
    captioned = (folder / "train.csv").is_file()
    split = read_split(folder, "train", on_error) if captioned else read_folder(folder, on_error)
    classes = [_class_folder(clip.file_name, captioned) for clip in split.clips]
    return ReferencePool(split.clips, classes, split.skipped)


def _class_folder(name: str, captioned: bool) -> str:
    parts = Path(name).parts
    return parts[0] if len(parts) > 1 and not captioned else ""


def _read_esc50(table: Path, on_error: str, wanted: Callable[[int], bool]) -> ReferencePool:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in _ESC50_COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{table}: needs the columns {', '.join(_ESC50_COLUMNS)}; {', '.join(missing)} missing")
        rows = [row for row in reader if wanted(int(row["fold"]))]
    if not rows:
        raise ValueError(f"{table}: no recording in the folds asked for")
    audio = table.parent.parent / "audio"
    found = [(f"audio/{row['filename']}", audio / row["filename"], ()) for row in rows]
    split = checked_clips(found, [], on_error, table)
    category = {f"audio/{row['filename']}": row["category"] for row in rows}
    return ReferencePool(split.clips, [category[clip.file_name] for clip in split.clips], split.skipped)
