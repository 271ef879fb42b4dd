"""The layouts of data sets of captioned clips: a folder with CSV files, and tar shards."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atk.data.captions import Split, read_split
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


@dataclass(frozen=True)
class DataSet(ABC):
    """A data set of captioned clips.

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

    @abstractmethod
    def splits(self) -> list[str]:
        """The names of its splits."""

    @abstractmethod
    def read(self, split: str, on_error: str) -> Split:
        """Read a split; errors are those of `read_split`."""


class Folder(DataSet):
    """A folder with train.csv, val.csv, or test.csv."""

    def splits(self) -> list[str]:
        """The names of the CSV files."""
        return sorted(path.stem for path in self.folder.glob("*.csv"))

    def read(self, split: str, on_error: str) -> Split:
        """As `read_split`."""
        return read_split(self.name, split, on_error)


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

    def read(self, split: str, on_error: str) -> Split:
        """As `read_shards`."""
        shards = self.shards.get("train" if self.whole else split)
        if shards is None:
            raise FileNotFoundError(f"{self.name}: no shards of {split}; it has those of {', '.join(self.shards)}")
        return read_shards(shards, on_error, self.name, self.caption_column)


def named_shards(name: str, paths: Iterable[str], caption_column: str | None = None) -> Shards:
    """Shards given by their paths."""
    return Shards(name, {"train": {path: path for path in paths}}, True, "", caption_column)


def shards_in(name: str, caption_column: str | None = None) -> Shards | None:
    """The shards of a folder, in folders named after their splits or without such folders; None if it has none."""
    root = Path(name)
    splits: dict[str, dict[str, str]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)):
        names = [f"{folder.name}/{path.name}" for path in _tars(folder)]
        if names:
            splits.setdefault(standard_name(folder.name), {}).update({name: str(root / name) for name in names})
    whole = not splits
    if whole:
        splits = {"train": {path.name: str(path) for path in _tars(root)}}
    return Shards(name, splits, whole, f"{name.rstrip('/')}/", caption_column) if any(splits.values()) else None


def remote_shards(url: str, caption_column: str | None = None) -> Shards:
    """The shards in a remote folder, as `shards_in` finds them.

    Raises:
        FileNotFoundError: there are none.
        OSError: the store cannot be reached.
    """
    splits: dict[str, dict[str, str]] = {}
    for address in remote_files(url, SHARD_SUFFIX):
        *_, folder, name = address.split("/")
        if folder == url.rstrip("/").split("/")[-1]:
            splits.setdefault("", {})[name] = address
        else:
            splits.setdefault(standard_name(folder), {})[f"{folder}/{name}"] = address
    top = splits.pop("", {})
    if not splits and not top:
        raise FileNotFoundError(f"{url}: no {SHARD_SUFFIX} shards in this folder or in its subfolders")
    return Shards(url, splits or {"train": top}, not splits, f"{url.rstrip('/')}/", caption_column)


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"[!.]*{SHARD_SUFFIX}") if path.is_file())
