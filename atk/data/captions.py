"""Read data folders: `train.csv`, `val.csv`, and `test.csv` list audio files and their captions."""

import contextlib
import itertools
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from atk.data.audio import AudioError
from atk.data.containers import Stored
from atk.data.headers import read_headers
from atk.data.listing import list_folder
from atk.data.tables import Table
from atk.ops.checks import one_of

OnError = Literal["skip", "raise"]
ON_ERROR = get_args(OnError)
SPLITS = ("train", "val", "test")
UNFINISHED_IMPORT = ".atk-import"  # in a data folder: what an import has not yet put in place
_DELIMITER_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
_RESPELLED = re.compile(r"//|(?:^|/)\.(?:/|$)|^/|/$")  # names that pathlib shortens, or that are absolute

Entry = tuple[str, str | Path, tuple[str, ...]]  # file name, path, captions


@dataclass(frozen=True, slots=True, init=False)
class Clip:
    """An audio file with its captions. There may be millions, so each stores little beyond its name and captions.

    Attributes:
        file_name: name in the data folder, as listed.
        path: path of the file; for audio inside a larger file, where it lies.
        captions: its captions; empty for unlabeled audio.
        seconds: length of the file.
    """

    file_name: str
    captions: tuple[str, ...]
    seconds: float
    _place: str | Stored = field(repr=False)  # the folder, shared by its clips; or where audio in a larger file lies
    _name: str = field(repr=False)  # after the folder; usually the same object as the file name

    def __init__(self, file_name: str, path: str | Path | Stored, captions: tuple[str, ...], seconds: float):
        place, name = path, ""
        if isinstance(path, (str, Path)):
            place = os.fspath(path)
            if file_name and place.endswith(file_name):
                place, name = place[: -len(file_name)], file_name
            place = sys.intern(place)
        put = object.__setattr__  # the class is frozen
        put(self, "file_name", file_name)
        put(self, "captions", captions)
        put(self, "seconds", seconds)
        put(self, "_place", place)
        put(self, "_name", name)

    @property
    def path(self) -> Path | Stored:
        """Path of the file, or where it lies inside a larger one."""
        return Path(self._place + self._name) if isinstance(self._place, str) else self._place

    def renamed(self, file_name: str) -> "Clip":
        """The same clip under another name."""
        return Clip(file_name, self.path, self.captions, self.seconds)

    def by_caption(self) -> "list[Clip]":
        """The clip once per caption, with that caption alone; the clip itself if it has none."""
        place = self._place + self._name if isinstance(self._place, str) else self._place
        return [Clip(self.file_name, place, (text,), self.seconds) for text in self.captions] or [self]

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        path = self._place + self._name if isinstance(self._place, str) else self._place
        return Clip, (self.file_name, path, self.captions, self.seconds)


@dataclass(frozen=True)
class Split:
    """The clips of a split.

    Attributes:
        clips: the usable clips, in the order of the CSV file.
        skipped: (name, reason) of each row or file that was skipped.
        sizes: number of clips of each data set, if there are several.
        signals: number of clips by (sample rate in Hz, channels); empty for clips of different layouts.
    """

    clips: list[Clip]
    skipped: list[tuple[str, str]]
    sizes: tuple[int, ...] = ()
    signals: Counter[tuple[int, int]] = field(default_factory=Counter)

    def by_caption(self) -> "Split":
        """The split with each clip once per caption, next to each other; clips without a caption stay."""
        parts = [self.clips]
        if self.sizes:
            ends = list(itertools.accumulate(self.sizes))
            parts = [self.clips[end - size : end] for size, end in zip(self.sizes, ends, strict=True)]
        rows = [[row for clip in part for row in clip.by_caption()] for part in parts]
        sizes = tuple(map(len, rows)) if self.sizes else ()
        return Split([row for part in rows for row in part], self.skipped, sizes)


def read_split(folder: str | Path, split: str, on_error: str = "skip") -> Split:
    """Read `folder/split.csv` and check the header of every audio file it lists.

    The columns are `file_name` (relative to the folder) and `caption`, or `caption_1`, `caption_2`, ... Captions of
    several rows of the same file are combined. Captions are stripped, each run of white space is replaced by a single
    space, and exact duplicates within a clip are dropped. See `atk.data.tables.Table` for the variants of CSV.

    Args:
        folder: data folder.
        split: "train", "val", "test", or the name of any other `.csv` file in the folder.
        on_error: "skip" leaves out bad rows and files and lists them in `skipped`; "raise" stops at the first one.

    Raises:
        FileNotFoundError: the folder or split does not exist.
        ValueError: the file is not UTF-8 or not well-formed CSV, a column is missing, or no clip is usable; or, with
            `on_error="raise"`, a row has no file name, no caption, or too many fields.
        AudioError: with `on_error="raise"`, an audio file is missing, empty, or unreadable.
    """
    one_of("on_error", on_error, ON_ERROR)
    path = Path(folder) / f"{split}.csv"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{folder}: no such data folder")
    if not path.is_file():
        tables = sorted(table.name for table in path.parent.glob("*.csv"))
        raise FileNotFoundError(f"{path}: no such file; the folder has {', '.join(tables) or 'no .csv file'}")
    captions: dict[str, tuple[str, list[str]]] = {}  # by path, because rows may spell a name differently
    skipped: list[tuple[str, str]] = []
    prefix = path_prefix(path.parent)
    for name, texts, fault in _rows(path):
        if fault is None:
            captions.setdefault(locate(prefix, name), (name, []))[1].extend(texts)
        elif on_error == "raise":
            raise ValueError(f"{name}: {fault}")
        else:
            skipped.append((name, fault))
    entries: list[Entry] = [(name, file, tuple(dict.fromkeys(texts))) for file, (name, texts) in captions.items()]
    return checked_clips(entries, skipped, on_error, path, path.parent)


def read_folder(folder: str | Path, on_error: str = "skip") -> Split:
    """Read the audio files below a folder as clips without captions; file names are relative to the folder.

    Args:
        folder: folder of audio files, searched as by `list_folder`.
        on_error: as in `read_split`; files whose suffix belongs to an unsupported format count as bad, too.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: no clip is usable.
        AudioError: with `on_error="raise"`, a file is empty or unreadable.
    """
    one_of("on_error", on_error, ON_ERROR)
    paths, left_out = list_folder(folder)
    if left_out and on_error == "raise":
        raise left_out[0]
    skipped = [(Path(error.file).relative_to(folder).as_posix(), error.reason) for error in left_out]
    entries: list[Entry] = [(path.relative_to(folder).as_posix(), path, ()) for path in paths]
    return checked_clips(entries, skipped, on_error, Path(folder), Path(folder))


def describe_skipped(skipped: Sequence[tuple[str, str]], limit: int = 10) -> str:
    """Summarize skipped files in one line: their count and the first `limit` names; "" if nothing was skipped.

    Neighbors with the same reason share it: "skipped 3: a.wav, b.wav (no such file); c.wav (empty)".
    """
    if not skipped:
        return ""
    groups = itertools.groupby(skipped[:limit], lambda entry: entry[1])
    names = "; ".join(f"{', '.join(name for name, _ in group)} ({reason})" for reason, group in groups)
    more = f"; and {len(skipped) - limit} more" if len(skipped) > limit else ""
    return f"skipped {len(skipped)}: {names}{more}"


def read_rows(path: Path) -> Iterator[tuple[str, Path, str | None]]:
    """Yield, for each row of a split, the file name, the path, and what is wrong (None if nothing is).

    Raises:
        ValueError: as for `read_split`.
    """
    prefix = path_prefix(path.parent)
    for name, _, fault in _rows(path):
        yield name, Path(locate(prefix, name)), fault


def _rows(path: Path) -> Iterator[tuple[str, list[str], str | None]]:
    """Yield (file name, captions, None) for each good row and (name, [], what is wrong) for each bad one."""
    if (path.parent / UNFINISHED_IMPORT).is_dir():
        raise ValueError(f"{path}: an import into its folder was interrupted; run atk data import again to complete it")
    table = Table.open(path, ("file_name",), like=("caption", "caption_1"))
    columns = [i for i, name in enumerate(table.header) if name == "caption" or name.startswith("caption_")]
    if not columns:
        names = ", ".join(table.header)
        raise ValueError(f"{path}: lacks a column caption (or caption_1, caption_2, ...); its columns are {names}")
    name_column = table.header.index("file_name")
    for line, cells in table.rows():
        where = f"{path.name} line {line}"
        name = cells[name_column]
        captions = [text for text in (" ".join(cells[i].split()) for i in columns) if text]
        if not name.strip():
            yield where, [], "no file name"
        elif len(cells) > len(table.header):
            fault = f"{where} has {len(cells)} fields for {len(table.header)} columns; quote captions that contain"
            yield name, [], f"{fault} {_DELIMITER_NAMES[table.delimiter]}"
        else:
            yield name, captions, None if captions else f"{where} has no caption"


def path_prefix(folder: Path) -> str:
    """What precedes a name in a path, as pathlib spells it."""
    return str(folder / "x")[:-1]


def locate(prefix: str, name: str) -> str:
    """Path of a listed file, in the first spelling that exists; as listed if none does.

    The other spellings are both Unicode normalization forms, the name without surrounding spaces, and the name with
    Windows separators replaced.

    Args:
        prefix: of the paths in the data folder.
        name: the name in the table.
    """
    names = [name]
    if not name.isascii():
        names += [unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]
    if name != name.strip() or "\\" in name:
        names += [name.strip(), name.strip().replace("\\", "/")]
    paths = [str(Path(prefix, name)) if _RESPELLED.search(name) else prefix + name for name in names]
    if len(paths) > 1:
        with contextlib.suppress(OSError, ValueError):  # too long, or with a null character: the header check says so
            return next((path for path in paths if os.path.exists(path)), paths[0])  # noqa: PTH110 (a string)
    return paths[0]


def checked_clips(
    entries: Sequence[Entry], skipped: list[tuple[str, str]], on_error: str, source: Path, folder: Path
) -> Split:
    """Read the header of each file: the readable ones become clips, the others are appended to `skipped`.

    Args:
        entries: (file name, path, captions) of each file.
        skipped: (name, reason) of everything skipped so far; extended in place.
        on_error: "skip" or "raise", as in `read_split`.
        source: folder or file that lists the entries, for messages.
        folder: data folder, where headers are kept.

    Raises:
        ValueError: no clip is usable.
        AudioError: with `on_error="raise"`, a file is missing, empty, or unreadable.
    """
    clips: list[Clip] = []
    signals: Counter[tuple[int, int]] = Counter()
    paths = [os.fspath(path) for _, path, _ in entries]
    with contextlib.closing(read_headers(paths, folder)) as headers:
        for (name, _, captions), path, header in zip(entries, paths, headers, strict=True):
            if not isinstance(header, AudioError):
                clips.append(Clip(name, path, captions, header.seconds))
                signals[header.sample_rate, header.channels] += 1
            elif on_error == "raise":
                raise AudioError(name, header.reason)
            else:
                skipped.append((name, header.reason))
    if not clips:
        raise ValueError(f"{source}: no usable clip; {describe_skipped(skipped, 3) or 'it lists none'}")
    return Split(clips, skipped, signals=signals)
