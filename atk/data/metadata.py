"""Folders in the layout of Hugging Face's audiofolder: audio files, and a metadata file that lists their captions."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from atk.data.captions import SPLITS, Entry, Split, checked_clips, locate, path_prefix
from atk.data.containers import Unusable
from atk.data.layouts import DataSet, standard_name
from atk.data.tables import Table
from atk.data.texts import captions_in
from atk.extras import optional_imports


class _Row(NamedTuple):
    """A row of a metadata file: where it is, its cells, and what is wrong; a row that is wrong has no cells."""

    where: str
    cells: Mapping[str, Any]
    fault: str = ""


class _Listed(NamedTuple):
    """A listed file: its name relative to the folder, its path, and its captions, or why the row has none."""

    name: str
    path: str
    captions: list[str]
    fault: str = ""
    names_audio: bool = True


@dataclass(frozen=True)
class MetadataFolder(DataSet):
    """A folder of audio files with a metadata file.

    Attributes:
        files: the listed files of each split.
        whole: the files belong to no split in particular: they are read for training, and for any split by name.
    """

    files: dict[str, list[_Listed]]
    whole: bool

    def splits(self) -> list[str]:
        """The names of the splits."""
        return list(self.files)

    def read(self, split: str, on_error: str, *, needs_captions: bool = True) -> Split:
        """Read a split; as `read_split`, except that a bad row raises ValueError with `on_error="raise"`."""
        files = self.files.get("train" if self.whole else split)
        if files is None:
            raise FileNotFoundError(
                f"{self.name}: its metadata lists no file of {split}, only of {', '.join(sorted(self.files))}"
            )
        skipped: list[tuple[str, str]] = []
        entries: dict[str, Entry] = {}
        for name, path, captions, fault, names_audio in files:
            usable = names_audio and not (fault and needs_captions)
            if not usable and on_error == "raise":
                raise ValueError(f"{name}: {fault}")
            if not usable:
                skipped.append((name, fault))
                continue
            first, _, others = entries.get(path, (name, path, ()))
            entries[path] = first, path, tuple(dict.fromkeys((*others, *captions)))
        return checked_clips(list(entries.values()), skipped, on_error, Path(self.name), Path(self.name))


def metadata_folder(name: str, caption_column: str | None = None) -> MetadataFolder | None:
    """What `metadata.csv`, `.jsonl`, or `.parquet` lists, in the folder itself or in folders named after splits.

    A file in a folder named after a split belongs to it, any other to "train".

    Raises:
        ValueError: a metadata file is malformed.
    """
    root = Path(name)
    folders = [root, *sorted(path for path in root.iterdir() if standard_name(path.name) in SPLITS)]
    tables = [table for folder in folders for suffix in _READERS if (table := folder / f"metadata{suffix}").is_file()]
    if not tables:
        return None
    files: dict[str, list[_Listed]] = {}
    in_folders = False
    for table in tables:
        for row in _READERS[table.suffix](table):
            listed = _listed(row, table.parent, root, caption_column)
            split = standard_name(Path(listed.name).parts[0]) if len(Path(listed.name).parts) > 1 else ""
            in_folders |= split in SPLITS
            files.setdefault(split if split in SPLITS else "train", []).append(listed)
    return MetadataFolder(name, files or {"train": []}, not in_folders)


def _listed(row: _Row, folder: Path, root: Path, caption_column: str | None) -> _Listed:
    place = folder.relative_to(root)
    file_name = row.cells.get("file_name")
    if row.fault or not isinstance(file_name, str) or not file_name.strip():
        return _Listed(str(place / row.where), str(folder), [], row.fault or "no file_name", False)
    name, path = (place / file_name).as_posix(), locate(path_prefix(folder), file_name)
    try:
        return _Listed(name, path, captions_in(row.cells, caption_column))
    except Unusable as error:
        return _Listed(name, path, [], str(error))


def _csv_rows(path: Path) -> Iterator[_Row]:
    table = Table.open(path, ("file_name",))
    for line, cells in table.rows():
        where = f"{path.name} line {line}"
        if len(cells) > len(table.header):
            yield _Row(where, {}, f"{len(cells)} fields for {len(table.header)} columns")
        else:
            yield _Row(where, dict(zip(table.header, cells, strict=True)))


def _json_rows(path: Path) -> Iterator[_Row]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() also splits inside of captions
    except UnicodeError:
        raise ValueError(f"{path}: not UTF-8; save it as UTF-8") from None
    for index, line in enumerate(lines, 1):
        where = f"{path.name} line {index}"
        try:
            cells = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            yield _Row(where, {}, "not well-formed JSON")
            continue
        if isinstance(cells, dict):
            yield _Row(where, cells)
        elif cells is not None:
            yield _Row(where, {}, "not a mapping of columns to values")


def _parquet_rows(path: Path) -> Iterator[_Row]:
    with optional_imports:
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:200]})") from None
    for row, cells in enumerate(table.to_pylist()):
        yield _Row(f"{path.name} row {row}", cells)


_READERS = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
