"""Read the optional annotation files of a data folder: events.csv, tags.csv, folds.csv, and twins.csv."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from atk.data.audio import DataWarning
from atk.data.tables import ForeignTableError, Table

TAG_SEPARATOR = ";"

_Row = TypeVar("_Row")


class Event(NamedTuple):
    """A row of events.csv: `phrase` is the wording of the event in the clip's captions; times are in seconds."""

    file_name: str
    event: str
    phrase: str
    start: float
    end: float


def read_events(path: str | Path) -> list[Event]:
    """Read an events.csv with the columns `file_name, event, phrase, start, end`.

    Raises:
        ValueError: the file or a column is missing, a phrase is empty, a time is negative, infinite, or not a number,
            or an event ends before it starts; the message names the line.
    """
    return [_event(row, f"{path}, line {line}") for line, row in _records(Path(path), Event._fields)]


def _event(row: dict[str, str], where: str) -> Event:
    try:
        start, end = float(row["start"]), float(row["end"])
    except (TypeError, ValueError):
        raise ValueError(f"{where}: start and end must be seconds, got {row['start']!r}, {row['end']!r}") from None
    if not 0 <= start <= end < float("inf"):
        raise ValueError(f"{where}: an event must have 0 <= start <= end, both finite, got {start} and {end}")
    if not row["phrase"].strip():
        raise ValueError(f"{where}: phrase is empty")
    return Event(row["file_name"], row["event"], row["phrase"].strip(), start, end)


def find_events(audio: str | Path, path: str | Path | None = None) -> list[Event]:
    """Find the events of one audio file.

    Args:
        audio: audio file.
        path: events.csv that lists the file; None searches the parent folders and uses the nearest events.csv, if any.
            Files of that name with other columns are ignored.

    Raises:
        ValueError: as for `read_events`, or `path` is given and does not list the file.
    """
    audio = Path(audio).absolute()
    tables = [folder / "events.csv" for folder in audio.parents] if path is None else [Path(path).absolute()]
    for table in tables:
        if path is None and not table.is_file():
            continue
        try:
            rows = read_events(table)
        except (ForeignTableError, OSError):
            if path is not None:
                raise
            continue
        events = [event for event in rows if table.parent / event.file_name == audio]
        if path is not None and not events:
            raise ValueError(f"{path} lists no event of {audio}")
        return events
    return []


class _TagsOfFiles(Mapping[str, list[bool]]):
    """Whether each file has each of `count` tags, kept as the indices of the tags that it has."""

    def __init__(self, indices: dict[str, tuple[int, ...]], count: int):
        self._indices = indices
        self._count = count

    def __getitem__(self, name: str) -> list[bool]:
        values = [False] * self._count
        for index in self._indices[name]:
            values[index] = True
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def read_tags(path: str | Path, vocabulary: str | None = None) -> tuple[list[str], Mapping[str, list[bool]]]:
    """Read a tags.csv in one of two forms.

    - `file_name`, then one column of 0 and 1 per tag.
    - `file_name` and `tags`, which are joined by `;`. The possible tags, one per line, are in `vocabularies/NAME.txt`
      beside the table. There may be several vocabularies; tags that only the others contain are left out.

    Args:
        path: table.
        vocabulary: name of the vocabulary, without `.txt`; None takes the first one by name.

    Returns:
        The tags, and for each file name, whether the file has each tag. In the second form, the memory grows with the
        number of tags that the files have, not with the size of the vocabulary.

    Raises:
        ValueError: the file or its column `file_name` is missing, it has no tags or no rows, or a value is not 0 or 1;
            or, in the second form, the vocabulary is missing, or no vocabulary contains a tag.
    """
    path = Path(path)
    if path.is_file() and "tags" in Table.open(path, ("file_name",), like=("tags",)).header:
        return _read_joined_tags(path, vocabulary)
    if vocabulary is not None:
        raise ValueError(f"{path} has no column tags, so that it has no vocabulary {vocabulary}")
    rows = list(_records(path, ("file_name",)))
    tags = [name for name in rows[0][1] if name not in ("file_name", "")] if rows else []
    if not tags:
        raise ValueError(f"{path} must have a column for each tag and at least one line")
    table = {}
    for line, row in rows:
        values = [row[tag].strip() for tag in tags]
        if any(value not in ("0", "1") for value in values):
            raise ValueError(f"{path}, line {line}: tags must be 0 or 1, got {', '.join(map(str, values))}")
        table[row["file_name"]] = [value == "1" for value in values]
    return tags, table


def vocabulary_names(path: str | Path) -> list[str | None]:
    """The vocabularies of a tags.csv by name, for `read_tags`; only None if the table has a column per tag.

    Raises:
        ValueError: the file is missing, or it has joined tags and no vocabulary.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    if "tags" not in Table.open(path, ("file_name",), like=("tags",)).header:
        return [None]
    names = sorted(file.stem for file in (path.parent / "vocabularies").glob("*.txt"))
    if not names:
        raise ValueError(f"{path.parent / 'vocabularies'} has no vocabulary NAME.txt")
    return [*names]


def read_folds(path: str | Path) -> dict[str, str]:
    """Read a folds.csv (`file_name`, `fold`): the fold of each file.

    Raises:
        ValueError: the file or a column is missing.
    """
    return {row["file_name"]: row["fold"].strip() for _, row in _records(Path(path), ("file_name", "fold"))}


def _read_joined_tags(path: Path, name: str | None) -> tuple[list[str], _TagsOfFiles]:
    folder = path.parent / "vocabularies"
    vocabularies = {file.stem: _read_vocabulary(file) for file in sorted(folder.glob("*.txt"))}
    name = next(iter(vocabularies), "NAME") if name is None else name
    if name not in vocabularies:
        raise ValueError(f"{folder / name}.txt is missing; vocabularies there: {', '.join(vocabularies) or 'none'}")
    index = {tag: position for position, tag in enumerate(vocabularies[name])}
    known = set().union(*vocabularies.values())
    indices: dict[str, tuple[int, ...]] = {}
    shared: dict[str, tuple[int, ...]] = {}  # by cell, because many files have the same tags
    for line, row in _records(path, ("file_name", "tags")):
        cell = row["tags"]
        if cell not in shared:
            tags = [tag for tag in map(str.strip, cell.split(TAG_SEPARATOR)) if tag]
            if unknown := [tag for tag in tags if tag not in known]:
                raise ValueError(f"{path}, line {line}: no vocabulary contains the tag {unknown[0]!r}")
            shared[cell] = tuple(index[tag] for tag in tags if tag in index)
        indices[row["file_name"]] = shared[cell]
    if not indices or not index:
        raise ValueError(f"{path} must have at least one line, and its vocabulary {name} at least one tag")
    return list(index), _TagsOfFiles(indices, len(index))


def _read_vocabulary(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
    return list(dict.fromkeys(tag for tag in map(str.strip, lines) if tag))


def read_twins(path: str | Path) -> list[tuple[str, str]]:
    """Read the pairs of a twins.csv (`file_name`, `twin`); each pair is returned once, in sorted order.

    Raises:
        ValueError: the file or a column is missing.
    """
    pairs = {}
    for _, row in _records(Path(path), ("file_name", "twin")):
        first, second = sorted((row["file_name"], row["twin"]))
        pairs[first, second] = None  # a dict keeps the order
    return list(pairs)


def read_if_ours(path: Path, read: Callable[[Path], list[_Row]]) -> list[_Row]:
    """The rows of a side file, none if it does not exist; one with other columns is ignored with a `DataWarning`."""
    try:
        return read(path) if path.is_file() else []
    except ForeignTableError as error:
        warnings.warn(f"{error}; it is ignored", DataWarning, stacklevel=3)
        return []


def _records(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The line and the cells of each row of a table with these columns."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    return Table.open(path, columns).records()
