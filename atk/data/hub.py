"""Data sets read through the `datasets` library: from the Hugging Face hub, saved to a folder, or in Parquet files."""

import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from atk.data import codecs
from atk.data.audio import AudioError, audio_info
from atk.data.cache import cache_name, read_index, write_index
from atk.data.captions import Clip, Split, describe_skipped
from atk.data.containers import Unusable
from atk.data.headers import shared_index
from atk.data.layouts import DataSet, standard_name
from atk.data.texts import caption_names, captions_in, wanted_names
from atk.extras import optional_imports
from atk.ops.user_cache import cache_folder

HUB = "hf://datasets/"
_ADDRESS = re.compile(rf"{HUB}([^/@#]+/[^/@#]+)(?:@([^#]+))?(?:#(.+))?")
_REFERENCE = re.compile(r"@refs/(?:convert|pr)/\w+(?=#|/|$)")  # revisions that contain slashes
_LAYOUT = 2  # version of the cached headers

Table = Any  # datasets.Dataset, whose methods are annotated as if they might return a dictionary of tables


@dataclass(frozen=True, slots=True, eq=False)
class AudioColumn:
    """The column of a table that contains audio, as bytes or as paths of files.

    Attributes:
        name: name of the table in messages.
        rows: the table, with this column alone.
    """

    name: str
    rows: Table

    def __getitem__(self, index: int) -> tuple[bytes | None, str | None]:
        """The content and the path of the audio in a row; either may be missing."""
        value = next(iter(self.rows[index].values()))
        return (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)


@dataclass(frozen=True, slots=True)
class Cell:
    """The audio in a row of a table; `str()` gives the name of the table, and the row."""

    column: AudioColumn
    row: int

    def __str__(self) -> str:
        return f"{self.column.name}/{self.row}"

    def read(self) -> bytes:
        """The content of the audio file."""
        return self.column[self.row][0] or b""

    @property
    def name(self) -> str:
        """The name of the audio file; "" if the table does not state it."""
        return self.column[self.row][1] or ""

    @property
    def size(self) -> int:
        """Size of the audio file in bytes."""
        return len(self.read())


class _Header(NamedTuple):
    """What a row says about its audio, or why it cannot be used; and the file, if it is not in the row."""

    fault: str = ""
    seconds: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    file: str = ""


@dataclass(frozen=True)
class Tables(DataSet):
    """A data set of the `datasets` library.

    Attributes:
        tables: the table of each split.
        whole: the only table belongs to no split in particular: it is read for training, and for any split by name.
        caption_column: name of the column with the captions; None is the first that exists of the usual ones.
    """

    tables: Mapping[str, Table]
    whole: bool = False
    caption_column: str | None = None

    def splits(self) -> list[str]:
        """The names of the splits."""
        return list(self.tables)

    def read(self, split: str, on_error: str, *, needs_captions: bool = True) -> Split:
        """Read a split: a clip for each row with audio and, unless none is needed, a caption, in order.

        Raises:
            FileNotFoundError: there is no such split.
            ValueError: the table lacks a column with audio or with captions, or no clip is usable.
            AudioError: with `on_error="raise"`, a row cannot be used.
        """
        split = "train" if self.whole else split
        if split not in self.tables:
            raise FileNotFoundError(f"{self.name}: no split {split}; it has {', '.join(self.tables)}")
        table = self.tables[split]
        names = caption_names(table.column_names, self.caption_column)
        if not names and needs_captions:
            columns = ", ".join(table.column_names)
            raise ValueError(f"{self.name}: no column {wanted_names(self.caption_column)}; its columns are {columns}")
        column = _audio_column(self.name, split, table)
        headers = shared_index(column.name, lambda: _headers(column))
        clips: list[Clip] = []
        signals: Counter[tuple[int, int]] = Counter()
        skipped: list[tuple[str, str]] = []
        values = table.select_columns(names) if names else repeat({}, len(headers))
        for row, (header, cells) in enumerate(zip(headers, values, strict=True)):
            name = f"{split}/{row}"
            try:
                if header.fault:
                    raise Unusable(header.fault)
                captions = self._captions(cells, needs_captions)
            except Unusable as error:
                if on_error == "raise":
                    raise AudioError(str(Cell(column, row)), str(error)) from None
                skipped.append((name, str(error)))
                continue
            path = Path(header.file) if header.file else Cell(column, row)
            clips.append(Clip(name, path, tuple(captions), header.seconds))
            signals[header.sample_rate, header.channels] += 1
        if not clips:
            raise ValueError(f"{self.name}: no usable clip; {describe_skipped(skipped, 3) or 'it has no rows'}")
        return Split(clips, skipped, signals=signals)

    def _captions(self, cells: Mapping[str, Any], needed: bool) -> list[str]:
        try:
            return captions_in(cells, self.caption_column)
        except Unusable:
            if needed:
                raise
            return []


def is_address(name: str) -> bool:
    """Whether a name is that of a whole data set on the hub, well-formed or not, and not that of shards in it."""
    return name.startswith(HUB) and _REFERENCE.sub("", name.removeprefix(HUB)).rstrip("/").count("/") <= 1


def from_hub(name: str, caption_column: str | None = None) -> Tables:
    """A data set on the Hugging Face hub, which is downloaded unless the cache of the library has it.

    Args:
        name: `hf://datasets/OWNER/NAME`, optionally with `@REVISION` and `#CONFIGURATION`.
        caption_column: as in `Tables`.

    Raises:
        ValueError: the name is malformed, or the data set cannot be loaded.
    """
    match = _ADDRESS.fullmatch(name)
    if match is None:
        raise ValueError(f"{name}: must be {HUB}OWNER/NAME, optionally with @REVISION and #CONFIGURATION")
    return _load(name, caption_column, path=match[1], revision=match[2], name=match[3])


def from_folder(name: str, caption_column: str | None = None) -> Tables | None:
    """The data set that `save_to_disk` wrote to a folder, or that its Parquet files contain; None if it has neither."""
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _load(name, caption_column)
    if any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet")):
        return _load(name, caption_column, path="parquet", data_dir=name)
    return None


def _load(data: str, caption_column: str | None, **options: Any) -> Tables:
    """Load a data set by `load_dataset` with these options, or from the folder that it was saved to."""
    with optional_imports:
        import datasets
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        tables = datasets.load_dataset(**options) if options else datasets.load_from_disk(data)
    except Exception as error:  # noqa: BLE001  # of many types
        raise ValueError(f"{data}: cannot be loaded ({' '.join(str(error).split())[:300]})") from None
    if isinstance(tables, datasets.Dataset):
        return Tables(data, {"train": tables}, True, caption_column)
    return Tables(data, {standard_name(str(split)): table for split, table in tables.items()}, False, caption_column)


def _audio_column(data: str, split: str, table: Table) -> AudioColumn:
    """The first column with audio, which is not decoded."""
    with optional_imports:
        import datasets
    for name, feature in table.features.items():
        rows = table.select_columns([name])
        if isinstance(feature, datasets.Audio):
            return AudioColumn(f"{data}/{split}", rows.cast_column(name, datasets.Audio(decode=False)))
        is_struct = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        if is_struct or (isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")):
            return AudioColumn(f"{data}/{split}", rows)
    raise ValueError(f"{data}: no column with audio; its columns are {', '.join(table.column_names)}")


def _headers(column: AudioColumn) -> list[_Header]:
    """The header of the audio in each row, from the cache if the table has not changed."""
    files = [Path(file["filename"]) for file in column.rows.cache_files]
    stamps = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = [_LAYOUT, column.rows.column_names, len(column.rows), stamps, codecs.has_av()]
    cache = cache_folder() / "tables" / f"{cache_name(*key)}.json"
    headers = _cached_headers(cache, key)
    if headers is None:
        headers = [_header(column, row) for row in range(len(column.rows))]
        if files and not any(header.file for header in headers):  # files may change without the table
            write_index(cache, key, {"headers": headers}, column.name)
    return headers


def _cached_headers(cache: Path, key: list[Any]) -> list[_Header] | None:
    try:
        rows = read_index(cache, key)["headers"]
        headers = [_Header(str(row[0]), float(row[1]), int(row[2]), int(row[3])) for row in rows]
        return headers if len(headers) == key[2] else None
    except (ValueError, TypeError, LookupError):  # missing or damaged
        return None


def _header(column: AudioColumn, row: int) -> _Header:
    content, file = column[row]
    if content is None and file is None:
        return _Header("the row has no audio")
    try:
        info = audio_info(file or "") if content is None else audio_info(Cell(column, row), content)
    except AudioError as error:
        return _Header(error.reason)
    return _Header("", info.seconds, info.sample_rate, info.channels, (file or "") if content is None else "")
