"""The files of a published data set where they lie: audio by its name alone, and tables by theirs."""

# Names of files are text without a path, of which there may be millions.
# ruff: noqa: PTH116, PTH118, PTH122

import filecmp
import fnmatch
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from atk.data import listing
from atk.data.codecs import CODEC_SUFFIXES
from atk.data.listing import UNSUPPORTED_SUFFIXES, is_hidden, why_left_out

REPORT = "import.json"  # what every import writes
NO_AUDIO = "no audio file"
_NOT_UNICODE = "its path is not valid UTF-8; rename it"


class Located(NamedTuple):
    """The absolute path of a clip's audio, or why it cannot be used."""

    path: str
    fault: str = ""


class Tree:
    """The audio below a folder, and the tables below the same or another folder.

    A file is known by its name without the suffix, so that converted audio and moved folders are found. Links to
    folders are followed, each folder is searched once, and hidden files and the tables of imports are ignored. An entry
    takes about 150 bytes.

    Args:
        root: folder with the audio.
        patterns: names of the tables; `*` and `?` are wildcards.
        tables: folder with the tables; None = `root`.
        audio_suffixes: suffixes of audio besides those that are usual.

    Attributes:
        root: absolute path of the folder with the audio.
        table_root: absolute path of the folder with the tables.
        unreadable: folders that cannot be listed.
        ambiguous: clips for which several files are equally suitable; the first one by path is used.
    """

    def __init__(
        self,
        root: str | Path,
        patterns: Iterable[str],
        *,
        tables: str | Path | None = None,
        audio_suffixes: Collection[str] = (),
    ):
        self.root = os.path.abspath(root)  # noqa: PTH100  # unlike resolve(), it keeps links
        self.unreadable: list[str] = []
        self.ambiguous: list[str] = []
        self.table_root = self.root if tables is None else os.path.abspath(tables)  # noqa: PTH100
        self._usable = frozenset(listing.audio_suffixes()).union(audio_suffixes)
        self._suffixes: dict[str, int] = {}  # positions in the list of those that files have, as spelled
        self._spelled_suffixes: list[str] = []
        self._folders: list[str] = []
        self._parts: list[frozenset[str]] = []  # of the path of each folder
        self._files: dict[str, int | tuple[int, ...]] = {}  # name without suffix: folder << 8 | suffix
        self._normalized: dict[str, str] = {}  # only of names that are not in the normal form
        self._tables: dict[str, list[str]] = {}
        is_table = re.compile("|".join(map(fnmatch.translate, patterns))).match
        for folder, names in self._walk(self.root):
            self._add_audio(folder, names)
            if tables is None:
                self._add_tables(folder, names, is_table)
        if tables is not None:
            for folder, names in self._walk(self.table_root):
                self._add_tables(folder, names, is_table)

    def __iter__(self) -> Iterator[str]:
        """The names of the audio files, without suffixes."""
        return iter(self._files)

    def _walk(self, root: str) -> Iterator[tuple[str, list[str]]]:
        seen: set[tuple[int, int]] = set()

        def fault(error: OSError) -> None:
            self.unreadable.append(str(error.filename))

        for folder, folders, names in os.walk(root, onerror=fault, followlinks=True):
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                folders.clear()
                continue
            seen.add(identity)
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            yield folder, sorted(name for name in names if not is_hidden(name))

    def _add_audio(self, folder: str, names: Iterable[str]) -> None:
        self._folders.append(folder)
        parts = Path(folder).relative_to(self.root).parts
        self._parts.append(frozenset(map(str.lower, (Path(self.root).name, *parts))))
        position = len(self._folders) - 1 << 8
        known = self._usable.union(UNSUPPORTED_SUFFIXES)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in known:
                continue
            if suffix not in self._suffixes:
                self._suffixes[suffix] = len(self._suffixes)
                self._spelled_suffixes.append(suffix)
            code = position | self._suffixes[suffix]
            others = self._files.get(stem)
            self._files[stem] = code if others is None else (*_as_tuple(others), code)
            if (normal := _normal_form(stem)) != stem:
                self._normalized.setdefault(normal, stem)

    def _add_tables(self, folder: str, names: Collection[str], is_table: Callable[[str], object]) -> None:
        for name in filter(is_table, () if REPORT in names else names):
            self._tables.setdefault(name, []).append(os.path.join(folder, name))

    def locate(self, names: Iterable[str], folders: Collection[str] = (), only_there: bool = False) -> Located:
        """Find the audio of a clip.

        Args:
            names: names that the file may have, with or without the suffix of an audio file, the best first. They are
                looked up as they are, then without surrounding spaces, in the other Unicode form, and with `_` for `:`.
            folders: names of folders; among files of the same name, the one below most of them is used.
            only_there: whether the file must be below one of `folders`.
        """
        names = list(names)
        wanted = frozenset(map(str.lower, folders))
        # Almost all files have one of the names as it is, and the other spellings take longer than the lookup.
        for stem in chain(names, chain.from_iterable(map(self._spellings, names))):
            codes = _as_tuple(self._files.get(stem, ()))
            if only_there:
                codes = tuple(code for code in codes if wanted & self._parts[code >> 8])
            if codes:
                return self._located(stem, self._best(stem, codes, wanted))
        return Located("", NO_AUDIO)

    def _spellings(self, name: str) -> Iterator[str]:
        stem = self.without_suffix(name)
        yield stem
        normal = _normal_form(stem)
        if normal != stem:
            yield normal
        if normal in self._normalized:
            yield self._normalized[normal]

    def without_suffix(self, name: str) -> str:
        """A name without its folders and the suffix of an audio file, if it has one."""
        name = name.replace("\\", "/").rpartition("/")[2]
        stem, suffix = os.path.splitext(name)
        suffix = suffix.strip().lower()
        return stem if suffix in self._usable or suffix in UNSUPPORTED_SUFFIXES else name

    def _best(self, stem: str, codes: tuple[int, ...], wanted: frozenset[str]) -> int:
        if len(codes) == 1:
            return codes[0]

        def rank(code: int) -> tuple[bool, int, bool]:
            suffix = self._suffix(code)  # videos come after audio that was extracted from them
            return (suffix not in self._usable, -len(wanted & self._parts[code >> 8]), suffix in CODEC_SUFFIXES)

        best = min(codes, key=rank)  # the first of several
        if sum(rank(code) == rank(best) for code in codes) > 1:
            self.ambiguous.append(stem)
        return best

    def _suffix(self, code: int) -> str:
        return self._spelled_suffixes[code & 0xFF].lower()

    def _located(self, stem: str, code: int) -> Located:
        path = os.path.join(self._folders[code >> 8], stem + self._spelled_suffixes[code & 0xFF])
        if not path.isascii() and not _is_unicode(path):
            return Located("", _NOT_UNICODE)
        suffix = self._suffix(code)
        return Located(path) if suffix in self._usable else Located("", why_left_out(suffix))

    def table(self, *names: str, folder: str = "") -> Path | None:
        """The table of one of these names, the first that exists.

        Args:
            names: file names.
            folder: name of a folder that the table must be in or below; "" = any.

        Raises:
            ValueError: there are several such tables, and they differ.
        """
        for name in names:
            paths = [path for path in self._tables.get(name, ()) if not folder or folder in self.folders_of(path)]
            if paths and any(not filecmp.cmp(paths[0], path, shallow=False) for path in paths[1:]):
                raise ValueError(f"{paths[0]} and {paths[1]} differ; name the folder of the right one with --tables")
            if paths:
                return Path(paths[0])
        return None

    def folders_of(self, table: str | Path) -> tuple[str, ...]:
        """The names of the folders that a table is in, from that of `table_root` on."""
        return (Path(self.table_root).name, *Path(table).relative_to(self.table_root).parts[:-1])

    def tables_like(self, pattern: str) -> list[Path]:
        """The tables whose names match a pattern, in the order of their paths."""
        names = fnmatch.filter(self._tables, pattern)
        return sorted(Path(path) for name in names for path in self._tables[name])


def _as_tuple(codes: int | tuple[int, ...]) -> tuple[int, ...]:
    return codes if isinstance(codes, tuple) else (codes,)


def _normal_form(stem: str) -> str:
    return (stem if stem.isascii() else unicodedata.normalize("NFC", stem)).strip().replace(":", "_")


def _is_unicode(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
