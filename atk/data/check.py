"""Look at every row and every file of a data set, and say what is wrong before a training run does."""

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from atk.data.audio import AudioError, AudioInfo, decode_audio
from atk.data.captions import SPLITS, Clip, read_rows
from atk.data.containers import Stored
from atk.data.contents import base_name, content_keys, size_of
from atk.data.headers import map_files, read_headers
from atk.data.layouts import AudioFolder, DataSet, Folder, in_order
from atk.data.listing import list_folder, not_listed
from atk.data.progress import progress_bar
from atk.data.sets import Data, open_audio
from atk.data.side_files import read_events, read_tags, read_twins
from atk.data.tables import ForeignTableError

_NAMES_IN: dict[str, Callable[[Path], set[str]]] = {
    "events.csv": lambda path: {event.file_name for event in read_events(path)},
    "tags.csv": lambda path: set(read_tags(path)[1]),
    "twins.csv": lambda path: {name for pair in read_twins(path) for name in pair},
}
_UNLISTED = "no split lists this file"
_NUMBER = re.compile(r"\d+(\.\d+)*")


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
class DataCheck:
    """What a check found: the `problems`, and the numbers of `rows` and `files` that it looked at."""

    problems: list[Problem]
    rows: int
    files: int

    @property
    def stops(self) -> bool:
        """Whether training or evaluating with `on_error="raise"` would stop."""
        return any(problem.stops for problem in self.problems)


def check_data(
    data: Data,
    caption_column: str | None = None,
    *,
    decode: bool = False,
    workers: int = 4,
    progress: str | None = None,
) -> DataCheck:
    """Check data sets of any layout; a folder in none of the known layouts is checked as a folder of audio.

    Args:
        data: data sets, as in `atk.data.open_data`.
        caption_column: as in `atk.data.open_data`.
        decode, workers, progress: as in `check_folder`.

    Raises:
        FileNotFoundError, ValueError: as for `atk.data.open_data`.
    """
    checks = []
    sets = open_audio(data, caption_column).sets
    for data_set in sets:
        if isinstance(data_set, (Folder, AudioFolder)):
            check = check_folder(data_set.name, decode=decode, workers=workers, progress=progress)
        else:
            check = _check_set(data_set, decode, workers, progress)
        if len(sets) > 1:
            named = [replace(problem, name=data_set.named(problem.name)) for problem in check.problems]
            check = replace(check, problems=named)
        checks.append(check)
    problems = [problem for check in checks for problem in check.problems]
    return DataCheck(problems, sum(check.rows for check in checks), sum(check.files for check in checks))


def _check_set(data_set: DataSet, decode: bool, workers: int, progress: str | None) -> DataCheck:
    """Check all splits of a data set that is not a data folder."""
    problems: list[Problem] = []
    splits: list[str] = []  # of each clip
    clips: list[Clip] = []
    for split in data_set.splits():
        try:
            read = data_set.read(split, "skip")
        except ValueError as error:
            problems.append(Problem(split, str(error).removeprefix(f"{data_set.name}: "), True))
            continue
        problems += [Problem(name, reason, True) for name, reason in read.skipped]
        clips += read.clips
        splits += [split] * len(read.clips)
    files = {clip.path: clip.file_name for clip in clips}
    rows = len(clips) + len(problems)
    problems += _shared(clips, splits, progress)
    if data_set.folder.is_dir():
        problems += _unlisted(list_folder(data_set.folder)[0], files, data_set.folder)
    if decode:  # the headers have been read
        problems += _audio_problems(files.values(), _decoded(files, workers), progress)
    return DataCheck(problems, rows, len(files))


def _shared(clips: Sequence[Clip], splits: Sequence[str], progress: str | None) -> Iterator[Problem]:
    """The clips that several splits have, under the same name with the same content."""
    keys: list[Hashable] = [
        (base_name(clip), size) for clip, size in zip(clips, map_files(size_of, clips), strict=True)
    ]
    splits_of: dict[Hashable, set[str]] = {}
    for key, split in zip(keys, splits, strict=True):
        splits_of.setdefault(key, set()).add(split)
    groups: dict[Hashable, list[int]] = {}
    candidates = [key if len(splits_of[key]) > 1 else None for key in keys]
    for index, key in enumerate(content_keys(clips, candidates, progress)):
        if key is not None:
            groups.setdefault(key, []).append(index)
    for members in groups.values():
        shared = in_order(splits[index] for index in members)
        if len(shared) > 1:
            yield Problem(clips[members[0]].file_name, f"in {' and '.join(shared)}", False)


def check_folder(
    folder: str | Path, *, decode: bool = False, workers: int = 4, progress: str | None = None
) -> DataCheck:
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
        problems += _unlisted(audio, listed, folder)
        problems += _side_file_problems(folder, {name for name, _ in listed.values()})
        files = {path: name for path, (name, _) in listed.items()}
    else:
        files = {path: _relative(path, folder) for path in audio}
        if not files:
            problems.append(Problem(str(folder), "neither a split (train.csv, val.csv, test.csv) nor audio", True))
    results = _decoded(files, workers) if decode else read_headers(list(map(str, files)), folder, workers)
    problems += _audio_problems(files.values(), results, progress)
    return DataCheck(problems, rows, len(files))


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
    names: Collection[str], results: Iterable[AudioInfo | list[str] | AudioError], progress: str | None
) -> Iterator[Problem]:
    """What `read_headers` or `_decoded` says about the files with these names."""
    for name, result in zip(names, progress_bar(results, progress, len(names)), strict=True):
        if isinstance(result, AudioError):
            yield Problem(name, result.reason, True)
        elif isinstance(result, list):
            yield from (Problem(name, note, False) for note in result)


def _decoded(files: Iterable[Path | Stored], workers: int) -> Iterator[list[str] | AudioError]:
    """The notes on each file, or why it cannot be decoded."""

    def decode(path: Path | Stored) -> list[str] | AudioError:
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


def _unlisted(audio: Iterable[Path], listed: Iterable[object], folder: Path) -> list[Problem]:
    return [Problem(_relative(path, folder), _UNLISTED, False) for path in not_listed(audio, listed)]


def _relative(path: str | Path, folder: Path) -> str:
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else str(path)
