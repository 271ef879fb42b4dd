"""AudioCaps: its own tables or those of WavCaps, and audio as five downloaders name it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from atk.data.published.clips import Contents, PublishedClip, Source, read_text, to_number
from atk.data.published.youtube import youtube_names
from atk.data.tables import Table

_TABLES = {"train": ("train.csv",), "val": ("val.csv", "valid.csv"), "test": ("test.csv",)}
_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_SECONDS = 10
TABLES = ("train.csv", "val.csv", "valid.csv", "test.csv", "*.txt")


class _Rows(NamedTuple):
    """The captions of a clip, and the identifiers of their rows."""

    captions: list[str]
    identifiers: list[str]


def read_audiocaps(source: Source) -> Contents:
    """Read AudioCaps 1 or 2, whose rows of a clip need not be next to each other.

    Without tables, a text file beside each audio file holds its caption, and the name of the folder is the split.
    """
    if not any(source.tree.table(*names) for names in _TABLES.values()) and source.tree.tables_like("*.txt"):
        return Contents(_clips_with_texts(source))
    return Contents(_clips(source, source.split_tables(_TABLES)))


def _clips(source: Source, tables: Mapping[str, Path]) -> Iterator[PublishedClip]:
    for split, path in tables.items():
        table = Table.open(path, (), like=("youtube_id", "start_time", "caption", "file_name", "caption_1"))
        if "file_name" in table.header:
            yield from _named_clips(source, table, split)
        else:
            yield from _timed_clips(source, path, split)


def _timed_clips(source: Source, path: Path, split: str) -> Iterator[PublishedClip]:
    clips: dict[tuple[str, float], _Rows] = {}
    for line, row in Table.open(path, ("youtube_id", "start_time", "caption")).records():
        key = (row["youtube_id"].strip(), to_number(row["start_time"], f"{path}, line {line}"))
        rows = clips.setdefault(key, _Rows([], []))
        rows.captions.append(row["caption"])
        rows.identifiers.append(row.get("audiocap_id", "").strip())
    for (video, start), rows in clips.items():
        audio = source.tree.locate(youtube_names(video, start, start + _SECONDS), _FOLDERS[split])
        if not audio.path:  # a number alone does not say which set a file belongs to
            named = source.tree.locate(filter(None, rows.identifiers), _FOLDERS[split], only_there=True)
            audio = named if named.path else audio
        yield PublishedClip(f"{video} at {start:g} s", (split,), audio, rows.captions)


def _named_clips(source: Source, table: Table, split: str) -> Iterator[PublishedClip]:
    """The clips of a table with file names, as WavCaps has them."""
    columns = [name for name in table.header if name == "caption" or name.startswith("caption_")]
    clips: dict[str, list[str]] = {}
    for _, row in table.records():
        clips.setdefault(row["file_name"], []).extend(row[column] for column in columns)
    for name, captions in clips.items():
        stem = source.tree.without_suffix(name).strip()
        names = (name, *youtube_names(stem.removeprefix("Y") if len(stem) == 12 else stem))
        yield PublishedClip(name, (split,), source.tree.locate(names, _FOLDERS[split]), captions)


def _clips_with_texts(source: Source) -> Iterator[PublishedClip]:
    splits = {folder: split for split, folders in _FOLDERS.items() for folder in folders}
    for path in source.tree.tables_like("*.txt"):
        audio = source.tree.locate((path.stem,), path.parts[-2:-1], only_there=True)
        if audio.path:  # other texts describe the set
            split = splits.get(path.parent.name.lower(), "train")
            yield PublishedClip(path.stem, (split,), audio, read_text(path).splitlines()[:1])
