"""What `--data` takes: one or several data sets, each in one of several layouts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atk.data import hub
from atk.data.captions import ON_ERROR, SPLITS, Split, checked_clips, read_folder
from atk.data.layouts import AudioFolder, DataSet, Folder, named_shards, remote_shards, shards_in
from atk.data.listing import list_folder, not_listed
from atk.data.metadata import metadata_folder
from atk.data.remote import is_url
from atk.data.shards import COMPRESSED, COMPRESSED_SUFFIXES, SHARD_SUFFIX, expand_braces
from atk.ops.checks import one_of

_LAYOUTS = (
    "train.csv, val.csv, or test.csv; tar shards, perhaps in train/, valid/, and test/; metadata.csv, .jsonl, or "
    ".parquet; Parquet files; and what save_to_disk writes"
)


@dataclass(frozen=True)
class DataSets:
    """One or several data sets, read as one.

    Args:
        sets: the data sets.
    """

    sets: list[DataSet]

    def splits(self) -> list[str]:
        """The names of the splits that any of the data sets has."""
        return list(dict.fromkeys(split for data_set in self.sets for split in data_set.splits()))

    def first_with(self, split: str) -> DataSet:
        """The first data set that has a split; a single data set without it may still read it, or raise its error.

        Raises:
            FileNotFoundError: there are several data sets, and none has the split.
        """
        if len(self.sets) == 1:
            return self.sets[0]
        for data_set in self.sets:
            if split in data_set.splits():
                return data_set
        raise FileNotFoundError(f"no data set has {split}: {', '.join(data_set.name for data_set in self.sets)}")

    def read(self, split: str, on_error: str = "skip") -> Split:
        """Read "train" of all data sets that have it, one after the other, or any other split of the first that has it.

        If there are several data sets, the relative file names of training clips begin with the name of theirs.

        Raises:
            FileNotFoundError, ValueError, AudioError: as for `read_split`.
        """
        one_of("on_error", on_error, ON_ERROR)
        if len(self.sets) == 1 or split != "train":
            return self.first_with(split).read(split, on_error)
        self.first_with(split)  # raises an error if there is none
        clips, skipped, sizes = [], [], []
        signals: Counter[tuple[int, int]] = Counter()
        for data_set in self.sets:
            part = data_set.read(split, on_error) if split in data_set.splits() else Split([], [])
            sizes.append(len(part.clips))
            signals += part.signals
            clips += [clip.renamed(data_set.named(clip.file_name)) for clip in part.clips]
            skipped += [(data_set.named(name), reason) for name, reason in part.skipped]
        return Split(clips, skipped, tuple(sizes), signals)


Data = str | Path | Sequence[str | Path] | DataSets
_Open = Callable[[str, str | None], DataSet]


def open_data(data: Data, caption_column: str | None = None) -> DataSets:
    """Recognize the layout of one or several data sets; those that are open already stay as they are.

    Args:
        data: a folder with CSV files or tar shards, or the name of tar shards, where `{000..099}` stands for a range;
            or a list of these.
        caption_column: name of the captions, where the layout does not fix it.

    Raises:
        FileNotFoundError: a path does not exist, or holds no data set of a known layout.
        ValueError: `data` is empty, or names a compressed tar file or an empty range of shards; or `caption_column` is
            given for captioned folders alone.
    """
    return data if isinstance(data, DataSets) else _open_all(data, caption_column, _open)


def open_audio(data: Data, caption_column: str | None = None) -> DataSets:
    """As `open_data`, except that a local folder without train.csv, val.csv, and test.csv may be any folder of audio.

    Raises:
        FileNotFoundError, ValueError: as for `open_data`.
    """
    return data if isinstance(data, DataSets) else _open_all(data, caption_column, _open_audio)


def _open_all(data: str | Path | Sequence[str | Path], caption_column: str | None, one: _Open) -> DataSets:
    names = [data] if isinstance(data, (str, Path)) else list(data)
    if not names:
        raise ValueError("data must name at least one data set, got an empty list")
    sets = [one(str(name), caption_column) for name in names]
    if caption_column is not None and all(isinstance(data_set, (Folder, AudioFolder)) for data_set in sets):
        raise ValueError(
            "caption_column is for shards, metadata files, and Hugging Face data sets, but the data sets are folders "
            f"with CSV files, whose captions are in caption or caption_1, caption_2, ...; got {caption_column!r}"
        )
    return DataSets(sets)


def read_data(data: Data, split: str, on_error: str = "skip", *, caption_column: str | None = None) -> Split:
    """Read a split of one or several data sets: `open_data(data, caption_column).read(split, on_error)`.

    Args:
        data, caption_column: as in `open_data`.
        split: "train", "val", "test", or any other split that the layout has. "train" is read from all data sets that
            have it, and any other split from the first that has it.
        on_error: as in `read_split`.

    Raises:
        FileNotFoundError, ValueError, AudioError: as for `open_data` and `read_split`.
    """
    return open_data(data, caption_column).read(split, on_error)


def read_all(name: str | Path, on_error: str = "skip") -> Split:
    """Every audio file below a folder; of tar shards, tables, and what a metadata file lists, the clips of all splits.

    None of them needs a caption. A single audio file is a folder of one.

    Raises:
        FileNotFoundError, ValueError, AudioError: as for `read_folder` and `read_data`.
    """
    if not str(name):
        raise ValueError("folder: must name a folder or another data set, got an empty string")
    if Path(name).is_file() and not str(name).lower().endswith((SHARD_SUFFIX, *COMPRESSED_SUFFIXES)):
        return checked_clips([(Path(name).name, name, ())], [], on_error, Path(name), Path(name).parent)
    data_set = _open_audio(str(name), None)
    if isinstance(data_set, (Folder, AudioFolder)):
        return read_folder(name, on_error)
    audio = list_folder(name)[0] if data_set.folder.is_dir() else []
    parts: list[Split] = []
    fault: ValueError | None = None
    for split in data_set.splits():
        try:
            parts.append(data_set.read(split, on_error, needs_captions=False))
        except ValueError as error:  # nothing usable, which does not matter if there are other clips
            if on_error == "raise":
                raise
            fault = fault or error
            parts.append(Split([], [(split, str(error))]))
    if others := set(not_listed(audio, [clip.path for part in parts for clip in part.clips])):
        files = read_folder(name, on_error)
        parts.append(Split([clip for clip in files.clips if clip.path in others], files.skipped))
    if fault is not None and not any(part.clips for part in parts):
        raise fault
    return Split([clip for part in parts for clip in part.clips], [bad for part in parts for bad in part.skipped])


def known_layout(name: str, caption_column: str | None = None) -> DataSet | None:
    """The data set in a local folder; None if its layout is not a known one."""
    if any((Path(name) / f"{split}.csv").is_file() for split in SPLITS):
        return Folder(name)
    layouts = (metadata_folder, shards_in, hub.from_folder)
    others = (layout(name, caption_column) for layout in layouts)
    return next(filter(None, others), Folder(name) if any(Path(name).glob("*.csv")) else None)


def _open_audio(name: str, caption_column: str | None) -> DataSet:
    data_set = known_layout(name, caption_column) if Path(name).is_dir() else _open(name, caption_column)
    has_splits = data_set is not None and (
        not isinstance(data_set, Folder) or {*SPLITS}.intersection(data_set.splits())
    )
    return data_set if data_set is not None and has_splits else AudioFolder(name)


def _open(name: str, caption_column: str | None) -> DataSet:
    if Path(name).is_dir():
        data_set = known_layout(name, caption_column)
        if data_set is None:
            raise FileNotFoundError(f"{name}: no data set of a known layout; looked for {_LAYOUTS}")
        return data_set
    if hub.is_address(name):
        return hub.from_hub(name, caption_column)
    if name.lower().endswith(COMPRESSED_SUFFIXES):
        raise ValueError(f"{name}: {COMPRESSED}")
    if name.lower().endswith(SHARD_SUFFIX):
        return named_shards(name, expand_braces(name), caption_column)
    if is_url(name):
        return remote_shards(name, caption_column)
    if Path(name).is_file():
        raise FileNotFoundError(f"{name}: neither a folder nor tar shards; name the folder of a CSV file")
    raise FileNotFoundError(f"{name}: no such data folder")
