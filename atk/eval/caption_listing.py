"""Captions of the clips of a split: as a table, as text, and how often they name the events of soundscapes."""

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from atk.data.references import ReferencePool
from atk.soundscapes.phrases import classes_named

SEPARATOR = "; "  # between the names in `Captions.added`
_MODES = ("input", "mix", "minus_added", "minus_input")  # the captions of a clip, fields of `Captions`


@dataclass(frozen=True)
class Captions:
    """Captions of one clip by a model (thesis Table 4.3).

    Args:
        file_name: file name of the clip.
        added: recordings mixed into the clip, joined by "; "; "" if nothing was mixed in. `mix`, `minus_added` and
            `minus_input` are then "" too.
        input: caption of the clip.
        mix: caption of the mixture, without a reference.
        minus_added: caption of `Diff(mix, added)`, which should describe the clip; "" without a Diff block.
        minus_input: caption of `Diff(mix, clip)`, which should describe the added sound; "" without a Diff block.
    """

    file_name: str
    added: str
    input: str
    mix: str = ""
    minus_added: str = ""
    minus_input: str = ""


def class_mentions(
    rows: Sequence[Captions], classes: Sequence[frozenset[str]], pool: ReferencePool
) -> dict[str, dict[str, float]]:
    """How often captions mention the events of the clip and the added sounds.

    Args:
        rows: captions of soundscapes.
        classes: event classes of each clip.
        pool: recordings that were added, with their classes.

    Returns:
        For each mode of captions, in percent: `"target"`, events of the clips that are mentioned; `"added"`, added
        recordings whose class is mentioned; `"target_alone"`, captions that mention an event of the clip and no
        added sound.
    """
    class_of = {clip.file_name: name for clip, name in zip(pool.clips, pool.classes, strict=True)}
    added_classes = [[class_of[name] for name in row.added.split(SEPARATOR)] if row.added else [] for row in rows]
    result = {}
    for mode in _MODES:
        if not any(getattr(row, mode) for row in rows):
            continue
        cases = [
            (classes_named(getattr(row, mode)), target, added)
            for row, target, added in zip(rows, classes, added_classes, strict=True)
            if row.added or mode == "input"
        ]
        result[mode] = {
            "target": _percent([name in named for named, target, _ in cases for name in target]),
            "added": _percent([name in named for named, _, added in cases for name in added]),
            "target_alone": _percent(
                [bool(named & target) and not named & set(added) for named, target, added in cases]
            ),
        }
    return result


def _percent(hits: Sequence[bool]) -> float:
    return round(100 * sum(hits) / max(1, len(hits)), 2)


def write_captions(path: Path, rows: Sequence[Captions], baseline: Sequence[Captions] = ()) -> None:
    """Write captions as CSV, with the fields of `Captions` as columns.

    Args:
        path: file to write.
        rows: captions of the clips.
        baseline: captions of the same clips by another model, for columns `baseline_input`, `baseline_mix`, ...
    """
    names = [field.name for field in fields(Captions)]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*names, *(f"baseline_{mode}" for mode in _MODES if baseline)])
        for row, other in _paired(rows, baseline):
            table.writerow([*astuple(row), *(getattr(other, mode, "") for mode in _MODES if baseline)])


def format_captions(rows: Sequence[Captions], baseline: Sequence[Captions] = ()) -> str:
    """Format captions as text for the terminal; arguments are as in `write_captions`."""
    lines = []
    for row, other in _paired(rows, baseline):
        lines.append(f"{row.file_name} + {row.added}")
        for mode in _MODES:
            texts = {mode: getattr(row, mode)} | ({"  baseline": getattr(other, mode)} if other else {})
            lines += [f"  {name:<12} {text}" for name, text in texts.items() if text]
    return "\n".join(lines)


def window_lines(captions: Sequence[tuple[float, float, str]]) -> str:
    """The captions of the windows of a recording, a line each, with their times if there are several."""
    lines = [text if len(captions) == 1 else f"{start:.1f}-{end:.1f} s  {text}" for start, end, text in captions]
    return "\n".join(lines)


def _paired(rows: Sequence[Captions], baseline: Sequence[Captions]) -> list[tuple[Captions, Captions | None]]:
    """Each row with that of the baseline for the same clip, or None."""
    others = {row.file_name: row for row in baseline}
    return [(row, others.get(row.file_name)) for row in rows]
