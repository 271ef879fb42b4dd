"""Read the optional annotation files of a data folder: events.csv, tags.csv, and twins.csv."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from atk.data.audio import DataWarning
from atk.data.tables import ForeignTableError, Table

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


def read_tags(path: str | Path) -> tuple[list[str], dict[str, list[bool]]]:
    """Read a tags.csv: `file_name`, then one column of 0 and 1 per tag.

    Returns:
        The tags, and for each file name, whether the file has each tag.

    Raises:
        ValueError: the file or its column `file_name` is missing, it has no tags or no rows, or a value is not 0 or 1.
    """
    rows = list(_records(Path(path), ("file_name",)))
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
