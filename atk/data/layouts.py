"""The layouts of data sets: a folder with CSV files, any folder of audio, and tar shards."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from atk.data.audio import DataWarning
from atk.data.captions import SPLITS, Split, read_folder, read_split
from atk.data.listing import is_hidden
from atk.data.pairs import read_shards
from atk.data.remote import remote_files
from atk.data.shards import SHARD_SUFFIX

_STANDARD_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def standard_name(split: str) -> str:
    """Our name for a split: "val" for "valid", "validation", and "dev", for example; unknown names stay as they are."""
    return _STANDARD_NAMES.get(split.lower(), split)


def in_order(splits: Iterable[str]) -> list[str]:
    """Names of splits, each once: "train", "val", "test", then the others."""
    names = list(dict.fromkeys(splits))
    return [*(name for name in SPLITS if name in names), *(name for name in names if name not in SPLITS)]


@dataclass(frozen=True)
class DataSet(ABC):
    """A data set of clips, usually with captions.

    Attributes:
        name: its name as given.
    """

    name: str

    @property
    def folder(self) -> Path:
        """Where its side files are, if it has any."""
        return Path(self.name)

    @property
    def prefix(self) -> str:
        """What goes before its file names if there are several data sets."""
        return f"{self.name.rstrip('/')}/"

    def named(self, file_name: str) -> str:
        """The name of one of its files among those of several data sets; absolute paths stay as they are."""
        return file_name if file_name.startswith("/") else self.prefix + file_name

    @abstractmethod
    def splits(self) -> list[str]:
        """The names of its splits."""

    @abstractmethod
    def read(self, split: str, on_error: str, *, needs_captions: bool = True) -> Split:
        """Read a split; errors are those of `read_split`.

        Args:
            split, on_error: as in `read_split`.
            needs_captions: whether audio without a caption counts as bad; CSV files always need captions.
        """


class Folder(DataSet):
    """A folder with train.csv, val.csv, or test.csv."""

    def splits(self) -> list[str]:
        """The names of the CSV files."""
        return sorted(path.stem for path in self.folder.glob("*.csv"))

    def read(self, split: str, on_error: str, *, needs_captions: bool = True) -> Split:
        """As `read_split`."""
        return read_split(self.name, split, on_error)


class AudioFolder(DataSet):
    """Any folder of audio, without captions: a single split, "all"."""

    def splits(self) -> list[str]:
        """The only one."""
        return ["all"]

    def read(self, split: str, on_error: str, *, needs_captions: bool = True) -> Split:
        """As `read_folder`."""
        return read_folder(self.name, on_error)


@dataclass(frozen=True)
class Shards(DataSet):
    """Tar shards of pairs (see `read_shards`).

    Attributes:
        shards: for each split, the path of each shard by its name in messages.
        whole: the shards belong to no split in particular: they are read for training, and for any split by name.
        prefix: as in `DataSet`.
        caption_column: as in `read_shards`.
    """

    shards: dict[str, dict[str, str]]
    whole: bool
    prefix: str = ""
    caption_column: str | None = None

    def splits(self) -> list[str]:
        """The names of the splits."""
        return list(self.shards)

    def read(self, split: str, on_error: str, *, needs_captions: bool = True) -> Split:
        """As `read_shards`."""
        shards = self.shards.get("train" if self.whole else split)
        if shards is None:
            raise FileNotFoundError(f"{self.name}: no shards of {split}; it has those of {', '.join(self.shards)}")
        return read_shards(shards, on_error, self.name, self.caption_column, needs_captions=needs_captions)


def named_shards(name: str, paths: Iterable[str], caption_column: str | None = None) -> Shards:
    """Shards given by their paths."""
    return Shards(name, {"train": {path: path for path in paths}}, True, "", caption_column)


def shards_in(name: str, caption_column: str | None = None) -> Shards | None:
    """The shards of a folder, in folders named after their splits or without such folders; None if it has none."""
    root = Path(name)
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    files = [path for folder in folders for path in sorted(folder.iterdir()) if _is_shard(path)]
    return _shards_of(name, {path.relative_to(root).as_posix(): str(path) for path in files}, caption_column)


def remote_shards(url: str, caption_column: str | None = None) -> Shards:
    """The shards in a remote folder, as `shards_in` finds them.

    Raises:
        FileNotFoundError: there are none.
        OSError: the store cannot be reached.
    """
    shards = _shards_of(url, remote_files(url, SHARD_SUFFIX), caption_column)
    if shards is None:
        raise FileNotFoundError(f"{url}: no {SHARD_SUFFIX} shards in this folder or in its subfolders")
    return shards


def _is_shard(path: Path) -> bool:
    return path.name.lower().endswith(SHARD_SUFFIX) and path.is_file()


def _shards_of(name: str, paths: Mapping[str, str], caption_column: str | None) -> Shards | None:
    """The shards with these paths, by names relative to the folder `name`; None if there are none."""
    top: dict[str, str] = {}
    splits: dict[str, dict[str, str]] = {}
    for shard, path in paths.items():
        folder, _, file = shard.rpartition("/")
        if not is_hidden(folder) and not is_hidden(file):
            (splits.setdefault(standard_name(folder), {}) if folder else top)[shard] = path
    if splits and top:
        note = (
            f"{name}: shards outside of the folders of splits are ignored: {len(top)}, the first is {next(iter(top))}"
        )
        warnings.warn(note, DataWarning, stacklevel=2)
    if not splits and not top:
        return None
    return Shards(name, splits or {"train": top}, not splits, f"{name.rstrip('/')}/", caption_column)
