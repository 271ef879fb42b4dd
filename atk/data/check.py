"""Look at every row and every file of a data folder, and say what is wrong before a training run does."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atk.data.audio import AudioError, decode_audio
from atk.data.captions import read_rows
from atk.data.headers import read_headers
from atk.data.listing import list_folder
from atk.data.side_files import read_events, read_tags, read_twins
from atk.data.tables import ForeignTableError
from atk.extras import optional_imports

SPLITS = ("train", "val", "test")
_NAMES_IN: dict[str, Callable[[Path], set[str]]] = {
    "events.csv": lambda path: {event.file_name for event in read_events(path)},
    "tags.csv": lambda path: set(read_tags(path)[1]),
    "twins.csv": lambda path: {name for pair in read_twins(path) for name in pair},
}
_NUMBER = re.compile(r"\d[\d.]*")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong or worth knowing.

    Attributes:
        name: a file, a row, or a table.
        reason: what is wrong.
        stops: whether training or evaluating with `on_error="raise"` would stop here.
    """

    name: str
    reason: str
    stops: bool

    @property
    def category(self) -> str:
        """The reason, with N for each number and without the name of the table."""
        return _NUMBER.sub("N", self.reason.split(" line ", 1)[-1] if " line " in self.reason else self.reason)


@dataclass(frozen=True)
class FolderCheck:
    """What `check_folder` found: the `problems`, and the numbers of `rows` and `files` that it looked at."""

    problems: list[Problem]
    rows: int
    files: int

    @property
    def stops(self) -> bool:
        """Whether training or evaluating with `on_error="raise"` would stop."""
        return any(problem.stops for problem in self.problems)


def check_folder(
    folder: str | Path, *, decode: bool = False, workers: int = 4, progress: str | None = None
) -> FolderCheck:
    """Check the splits, side files, and audio of a data folder; without splits, check all audio below the folder.

    Args:
        folder: data folder, or any folder of audio.
        decode: decode every file in full instead of reading only its header.
        workers: files to read at a time.
        progress: label of a progress bar; None = no bar.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    folder = Path(folder)
    audio, left_out = list_folder(folder)
    problems = [Problem(_relative(error.file, folder), error.reason, False) for error in left_out]
    tables = [folder / f"{split}.csv" for split in SPLITS if (folder / f"{split}.csv").is_file()]
    rows, listed, faults = _read_tables(tables)
    problems += faults
    for name, splits in listed.values():
        if len(splits) > 1:
            problems.append(Problem(name, f"in {' and '.join(f'{split}.csv' for split in splits)}", False))
    if tables:
        known = {os.path.realpath(path) for path in listed if "\0" not in str(path)}
        unlisted = [path for path in audio if os.path.realpath(path) not in known]
        problems += [Problem(_relative(path, folder), "no split lists this file", False) for path in unlisted]
        problems += _side_file_problems(folder, {name for name, _ in listed.values()})
        files = {path: name for path, (name, _) in listed.items()}
    else:
        files = {path: _relative(path, folder) for path in audio}
        if not files:
            problems.append(Problem(str(folder), "neither a split (train.csv, val.csv, test.csv) nor audio", True))
    problems += _audio_problems(files, folder, decode, workers, progress)
    return FolderCheck(problems, rows, len(files))


def _read_tables(tables: Sequence[Path]) -> tuple[int, dict[Path, tuple[str, list[str]]], list[Problem]]:
    """The total number of rows, the name and splits of each file by path, and the problems."""
    problems: list[Problem] = []
    rows = 0
    listed: dict[Path, tuple[str, list[str]]] = {}  # path: (name, splits)
    for table in tables:
        try:
            for name, path, fault in read_rows(table):
                rows += 1
                if fault is not None:
                    problems.append(Problem(name, fault, True))
                    continue
                splits = listed.setdefault(path, (name, []))[1]
                if table.stem not in splits:
                    splits.append(table.stem)
        except ValueError as error:
            problems.append(Problem(table.name, str(error).removeprefix(f"{table}: "), True))
        else:
            if not any(table.stem in splits for _, splits in listed.values()):
                problems.append(Problem(table.name, "it lists no clip", True))
    return rows, listed, problems


def _audio_problems(
    files: dict[Path, str], folder: Path, decode: bool, workers: int, progress: str | None
) -> Iterator[Problem]:
    with optional_imports:
        from tqdm import tqdm  # pyrefly: ignore[untyped-import]  # its stubs are a separate package

    results = _decoded(files, workers) if decode else read_headers(list(map(str, files)), folder, workers)
    bar: Any = tqdm(results, progress, len(files), unit="file", leave=False, disable=None if progress else True)
    for name, result in zip(files.values(), bar, strict=True):
        if isinstance(result, AudioError):
            yield Problem(name, result.reason, True)
        elif isinstance(result, list):
            yield from (Problem(name, note, False) for note in result)


def _decoded(files: Iterable[Path], workers: int) -> Iterator[list[str] | AudioError]:
    """The notes on each file, or why it cannot be decoded."""

    def decode(path: Path) -> list[str] | AudioError:
        try:
            return decode_audio(path)
        except AudioError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(decode, files)


def _side_file_problems(folder: Path, listed: set[str]) -> Iterator[Problem]:
    """What is wrong with events.csv, tags.csv, and twins.csv, and which of their files no split lists."""
    for table, names_in in _NAMES_IN.items():
        path = folder / table
        if not path.is_file():
            continue
        try:
            for name in sorted(names_in(path) - listed):
                yield Problem(name, f"{table} names this file, but no split lists it", False)
        except ForeignTableError as error:
            yield Problem(table, f"{str(error).removeprefix(f'{path}: ')}; it is ignored", False)
        except ValueError as error:
            yield Problem(table, str(error).removeprefix(str(path)).lstrip(", :"), True)


def _relative(path: str | Path, folder: Path) -> str:
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else str(path)
