"""Import a published data set: find its audio, write a data folder that names it, and report what is missing."""

import contextlib
import json
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import atk
from atk.data.layouts import in_order
from atk.data.progress import progress_bar
from atk.data.published.clips import NAMES_KEPT, Source
from atk.data.published.folder import FolderWriter
from atk.data.published.registry import SETS
from atk.data.published.replacing import files_in, finish_import, has_other_files, put_in_place, staging_folder
from atk.data.published.tree import REPORT, Tree
from atk.ops.checks import one_of


def import_set(
    name: str,
    source: str | Path,
    out: str | Path,
    *,
    tables: str | Path | None = None,
    exclude: Sequence[str] = (),
    progress: str | None = None,
) -> dict[str, Any]:
    """Read a published data set where it lies and write a data folder.

    The folder has `train.csv`, `val.csv`, and `test.csv`, as far as the set has these splits, with absolute paths of
    the audio; `tags.csv` and `vocabularies/`, `events.csv`, and `folds.csv`, if the set has such annotations; and
    `import.json`. Clips without audio are counted and left out.

    Args:
        name: a key of `SETS`.
        source: folder with the audio.
        out: folder to write; may hold an earlier import, which is replaced.
        tables: folder with the tables of the set, if they are not below `source`, or if `source` has several versions.
        exclude: exclusion lists (of the sets that have any): paths, or names of files below `tables`.
        progress: label of a progress bar; None = no bar.

    Returns:
        The content of `import.json`: `"set"`, `"source"`, `"tables"`, `"exclude"`, `"time"`, `"versions"`; `"splits"`
        with the numbers of `"clips"` and `"captions"` written and of clips `"left_out"`; `"events"`; `"left_out"`, by
        reason: `"count"`, `"splits"`, and the first `"names"`; `"notes"`; and `"files"`, the files written.

    Raises:
        FileNotFoundError: `source` or `tables` does not exist.
        ValueError: there is no such set, `source` has another layout, a table is malformed, no clip has audio, or `out`
            has files that no earlier import wrote.
    """
    one_of("set", name, tuple(SETS))
    published = SETS[name]
    for place in (source, *([] if tables is None else [tables])):
        if not Path(place).is_dir():
            raise FileNotFoundError(f"{place}: no such folder")
    if exclude and not published.exclusion_lists:
        lists = ", ".join(key for key, entry in SETS.items() if entry.exclusion_lists)
        raise ValueError(f"exclude: {name} has no exclusion lists; sets with lists: {lists}")
    out = Path(out)
    finish_import(out)  # one that was interrupted
    earlier = _files_of_earlier_import(out)
    tree = Tree(source, published.tables, tables=tables, audio_suffixes=published.audio_suffixes)
    content = Source(tree, published.audio, exclude)
    contents = published.read(content)
    with staging_folder(out) as folder:
        with FolderWriter(folder, contents.vocabularies, content) as writer:
            for clip in progress_bar(contents.clips, progress, unit="clip"):
                writer.add(clip)
        if not writer.splits:
            raise ValueError(_nothing_usable(content))
        report = {
            "set": name,
            "source": tree.root,
            "tables": tree.table_root,
            "exclude": list(map(str, exclude)),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {"atk": atk.__version__, "python": platform.python_version(), "numpy": np.__version__},
            "splits": _splits(writer, content),
            "events": writer.events,
            "left_out": {
                reason: {"count": entry.count, "splits": dict(entry.splits), "names": entry.names}
                for reason, entry in content.left_out.items()
            },
            "notes": content.notes + _notes_on(tree),
            "files": sorted(writer.files),
        }
        (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        put_in_place(folder, out, earlier)
    return report


def imported_set(folder: str | Path) -> str | None:
    """The name of the published set that a data folder was imported from, from its `import.json`; None without it."""
    try:
        name = json.loads((Path(folder) / REPORT).read_text(encoding="utf-8"))["set"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return name if isinstance(name, str) and name in SETS else None


def _files_of_earlier_import(out: Path) -> list[str]:
    """The files that an earlier import wrote to `out`.

    Raises:
        ValueError: `out` has files, and no import wrote them.
    """
    if imported_set(out) is not None:
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
            return files_in(out)
    if has_other_files(out):
        raise ValueError(f"out: {out} has files and no {REPORT} of an earlier import; choose another folder")
    return []


def _nothing_usable(source: Source) -> str:
    reasons = [f"{entry.count} {reason} (first: {entry.names[0]})" for reason, entry in source.left_out.items()]
    left_out = "; ".join(reasons) or "its tables list none"
    return f"{source.tree.root}: no usable clip; {left_out}; audio files are looked for as {source.audio}"


def _splits(writer: FolderWriter, source: Source) -> dict[str, dict[str, int]]:
    left_out: dict[str, int] = {}
    for entry in source.left_out.values():
        for split, count in entry.splits.items():
            left_out[split] = left_out.get(split, 0) + count
    return {
        split: {
            "clips": writer.splits[split].clips if split in writer.splits else 0,
            "captions": writer.splits[split].captions if split in writer.splits else 0,
            "left_out": left_out.get(split, 0),
        }
        for split in in_order([*writer.splits, *left_out])
    }


def _notes_on(tree: Tree) -> list[str]:
    notes = []
    if tree.ambiguous:
        names = ", ".join(tree.ambiguous[:NAMES_KEPT])
        notes.append(f"{len(tree.ambiguous)} clips with several files of the same name; the first is used: {names}")
    if tree.unreadable:
        notes.append(f"{len(tree.unreadable)} folders that cannot be listed: {', '.join(tree.unreadable[:NAMES_KEPT])}")
    return notes
