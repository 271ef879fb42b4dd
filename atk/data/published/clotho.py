"""Clotho, in the layout of its archives or of aac-datasets."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from atk.data.published.clips import Contents, PublishedClip, Source
from atk.data.published.exclusions import EXCLUDED, read_exclusions
from atk.data.tables import Table

_FOLDERS = {"train": "development", "val": "validation", "test": "evaluation"}
TABLES = ("clotho_captions_*.csv", "clotho_metadata_*.csv", "retrieval_captions.csv")


def read_clotho(source: Source) -> Contents:
    """Read Clotho: `clotho_captions_development.csv` and so on, with five captions per clip.

    Exclusion lists are compared with the Freesound identifiers in `clotho_metadata_*.csv`.
    """
    tables = source.split_tables({split: (f"clotho_captions_{folder}.csv",) for split, folder in _FOLDERS.items()})
    if source.tree.table("retrieval_captions.csv"):
        source.notes.append("retrieval_captions.csv does not name the clips of its captions; give them to atk search")
    excluded = read_exclusions(source).get("FreeSound", frozenset())
    return Contents(_clips(source, tables, excluded))


def _clips(source: Source, tables: Mapping[str, Path], excluded: frozenset[str]) -> Iterator[PublishedClip]:
    for split, path in tables.items():
        sound_ids = _sound_ids(source, _FOLDERS[split]) if excluded else {}
        table = Table.open(path, ("file_name", "caption_1"))
        columns = [name for name in table.header if name.startswith("caption_")]
        for _, row in table.records():
            name = row["file_name"]
            if sound_ids.get(name.strip()) in excluded:
                source.leave_out(EXCLUDED, name, (split,))
                continue
            audio = source.tree.locate((name,), (_FOLDERS[split],))
            yield PublishedClip(name, (split,), audio, [row[column] for column in columns])


def _sound_ids(source: Source, folder: str) -> dict[str, str]:
    """The Freesound identifier of each clip; "Not found" for some."""
    path = source.tree.table(f"clotho_metadata_{folder}.csv")
    if path is None:
        raise ValueError(f"{source.tree.table_root}: exclusion lists need clotho_metadata_{folder}.csv")
    table = Table.open(path, ("file_name", "sound_id"), encoding="iso-8859-1")
    return {row["file_name"].strip(): row["sound_id"].strip() for _, row in table.records()}
