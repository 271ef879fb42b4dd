"""Data folders: `train.csv`, `val.csv` and `test.csv` name audio files and their captions."""

import csv
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from atk.data.audio import AudioError, audio_info, find_audio
from atk.ops.checks import one_of

ON_ERROR = ("skip", "raise")
_THREADS = 4  # headers are small reads: the disk answers several at once


@dataclass(frozen=True)
class Clip:
    """One audio file with its captions (none where it is unlabelled) and its length in seconds."""

    file_name: str
    path: Path
    captions: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Split:
    """The usable clips of a split in the order of its file, and the names and reasons of what was skipped."""

    clips: list[Clip]
    skipped: list[tuple[str, str]]


def read_split(folder: str | Path, split: str, on_error: str = "skip") -> Split:
    """Read `folder/split.csv` and check the header of every audio file it names.

    Columns: `file_name` (relative to the folder) and `caption`, or `caption_1`, `caption_2`, ...; several rows of one
    file add up. Captions are stripped, runs of white space become one space, and exact repeats within a clip count
    once.

    Args:
        folder: the data folder.
        split: "train", "val" or "test", or any other `.csv` there.
        on_error: "skip" leaves out bad rows and files and lists them in `skipped`; "raise" stops at the first.

    Raises:
        FileNotFoundError: no such folder or split.
        ValueError: not UTF-8, not well-formed CSV, a column is missing, or nothing is usable. With `on_error="raise"`
            also a row without file name or caption, or with too many fields.
        AudioError: with `on_error="raise"`, an audio file is missing, empty or unreadable.
    """
    one_of("on_error", on_error, ON_ERROR)
    path = Path(folder) / f"{split}.csv"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{folder}: no such data folder")
    if not path.is_file():
        there = sorted(other.name for other in path.parent.glob("*.csv"))
        raise FileNotFoundError(f"{path}: no such file; the folder has {', '.join(there) or 'no .csv file'}")
    captions: dict[str, list[str]] = {}
    skipped = []
    for name, texts, fault in _rows(path):
        if fault is None:
            captions.setdefault(name, []).extend(texts)
        elif on_error == "raise":
            raise ValueError(f"{name}: {fault}")
        else:
            skipped.append((name, fault))
    clips = [(name, _locate(path.parent, name), tuple(dict.fromkeys(texts))) for name, texts in captions.items()]
    return checked_clips(clips, skipped, on_error, path)


def read_folder(folder: str | Path, on_error: str = "skip") -> Split:
    """The audio files below a folder as clips without captions; names are relative to the folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: nothing there is usable.
        AudioError: with `on_error="raise"`, a file is empty or unreadable.
    """
    one_of("on_error", on_error, ON_ERROR)
    clips = [(path.relative_to(folder).as_posix(), path, ()) for path in find_audio(folder)]
    return checked_clips(clips, [], on_error, Path(folder))


def describe_skipped(skipped: Sequence[tuple[str, str]], limit: int = 10) -> str:
    """One line that counts what was skipped and names the first `limit` of it; "" for nothing."""
    if not skipped:
        return ""
    names = "; ".join(f"{name} ({reason})" for name, reason in skipped[:limit])
    more = f"; and {len(skipped) - limit} more" if len(skipped) > limit else ""
    return f"skipped {len(skipped)}: {names}{more}"


def _rows(path: Path) -> Iterator[tuple[str, list[str], str | None]]:
    """(file name, captions, None) of each row, or (name, [], what is wrong with the row)."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            columns = [i for i, name in enumerate(header) if name == "caption" or name.startswith("caption_")]
            if "file_name" not in header or not columns:
                raise ValueError(
                    f"{path}: needs the columns file_name and caption (or caption_1, caption_2, ...), has "
                    + (", ".join(header) or "none")
                )
            for row in reader:
                if row:
                    yield _row(row, header, columns, f"{path.name} line {reader.line_num}")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num}: not well-formed CSV ({error})") from None


def _row(row: list[str], header: list[str], columns: list[int], where: str) -> tuple[str, list[str], str | None]:
    cells = row + [""] * (len(header) - len(row))
    name = cells[header.index("file_name")]
    if not name.strip():
        return where, [], "no file name"
    if len(row) > len(header):
        return name, [], f"{where} has {len(row)} fields for {len(header)} columns; quote captions that hold commas"
    texts = [text for text in (" ".join(cells[i].split()) for i in columns) if text]
    return name, texts, None if texts else f"{where} has no caption"


def _locate(folder: Path, name: str) -> Path:
    """The file's path; a name with accents is also found where the disk spells them in the other Unicode form."""
    path = folder / name
    if name.isascii():
        return path
    others = (folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    try:
        return next((other for other in (path, *others) if other.exists()), path)
    except OSError:  # a name too long: the header check says so
        return path


def checked_clips(
    found: list[tuple[str, Path, tuple[str, ...]]], skipped: list[tuple[str, str]], on_error: str, source: Path
) -> Split:
    """The clips (name, path, captions) whose header can be read, with their lengths; the rest joins `skipped`."""

    def check(clip: tuple[str, Path, tuple[str, ...]]) -> Clip | AudioError:
        name, path, captions = clip
        try:
            return Clip(name, path, captions, audio_info(path).seconds)
        except AudioError as error:
            return AudioError(name, error.reason)

    clips = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for clip in pool.map(check, found):
            if isinstance(clip, Clip):
                clips.append(clip)
            elif on_error == "raise":
                pool.shutdown(wait=False, cancel_futures=True)
                raise clip
            else:
                skipped.append((clip.file, clip.reason))
    if not clips:
        raise ValueError(f"{source}: no usable clip; {describe_skipped(skipped, 3) or 'it names none'}")
    return Split(clips, skipped)
