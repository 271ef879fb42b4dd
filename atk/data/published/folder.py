"""Write a published data set as a data folder that refers to its audio where it lies."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atk.data.published.clips import PublishedClip, Source, Span
from atk.data.side_files import TAG_SEPARATOR

_NO_CAPTION = "no caption"
_NO_SPLIT = "in no split"
_NO_VOCABULARY = "tag without a place in the vocabulary"
_NO_PHRASE = "event without a phrase"
_BAD_EVENT = "event that does not end after it starts, at 0 s or later"


@dataclass
class SplitCount:
    """Numbers of the clips and captions of a split that were written."""

    clips: int = 0
    captions: int = 0


class FolderWriter:
    """Writes the tables of a data folder clip by clip. Use it in a `with` block.

    Args:
        folder: folder to write to; it exists and is empty.
        vocabularies: the tags of each vocabulary; no tags.csv is written without any.
        source: receives what is left out.

    Attributes:
        files: names of the files written so far.
        splits: what was written, by split.
        events: number of events written.
    """

    def __init__(self, folder: Path, vocabularies: Mapping[str, Sequence[str]], source: Source):
        self.files: list[str] = []
        self.splits: dict[str, SplitCount] = {}
        self.events = 0
        self._folder = folder
        self._source = source
        self._stack = ExitStack()
        self._tables: dict[str, Any] = {}
        self._known_tags = frozenset().union(*vocabularies.values())
        self._has_tags = bool(vocabularies)
        if vocabularies:
            (folder / "vocabularies").mkdir()
        for name, tags in vocabularies.items():
            self.files.append(f"vocabularies/{name}.txt")
            (folder / self.files[-1]).write_text("".join(f"{tag}\n" for tag in tags), encoding="utf-8")

    def __enter__(self) -> "FolderWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, clip: PublishedClip) -> None:
        """Write the rows of a clip, or count it as left out."""
        if clip.audio.fault:
            self._source.leave_out(clip.audio.fault, clip.name, clip.splits)
            return
        path = clip.audio.path
        if clip.tags is not None and self._has_tags:
            self._write("tags", ("file_name", "tags"), [(path, TAG_SEPARATOR.join(self._checked_tags(clip)))])
        if clip.fold:
            self._write("folds", ("file_name", "fold"), [(path, clip.fold)])
        events = [(path, *event) for event in clip.events if not self._is_left_out(event, clip.name)]
        if events:
            self._write("events", ("file_name", *Span._fields), events)
            self.events += len(events)
        captions = list(dict.fromkeys(filter(None, (" ".join(text.split()) for text in clip.captions))))
        if not captions:
            self._source.leave_out(_NO_CAPTION, clip.name, clip.splits)
        elif not clip.splits:
            self._source.leave_out(_NO_SPLIT, clip.name)
        for split in clip.splits if captions else ():
            self._write(split, ("file_name", "caption"), [(path, caption) for caption in captions])
            count = self.splits.setdefault(split, SplitCount())
            count.clips += 1
            count.captions += len(captions)

    def _checked_tags(self, clip: PublishedClip) -> list[str]:
        tags = list(dict.fromkeys(clip.tags or ()))
        for tag in tags:
            if tag not in self._known_tags:
                self._source.leave_out(_NO_VOCABULARY, tag)
        return [tag for tag in tags if tag in self._known_tags]

    def _is_left_out(self, event: Span, name: str) -> bool:
        reason = "" if event.phrase.strip() else _NO_PHRASE
        if not 0 <= event.start < event.end < float("inf"):
            reason = _BAD_EVENT
        if reason:
            self._source.leave_out(reason, f"{name}: {event.phrase} ({event.start:g} s to {event.end:g} s)")
        return bool(reason)

    def _write(self, table: str, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
        if table not in self._tables:
            self.files.append(f"{table}.csv")
            file = self._stack.enter_context((self._folder / self.files[-1]).open("w", newline="", encoding="utf-8"))
            self._tables[table] = csv.writer(file, lineterminator="\n")
            self._tables[table].writerow(header)
        self._tables[table].writerows(rows)
