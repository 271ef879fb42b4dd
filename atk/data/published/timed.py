"""Sets with captions of moments: TACOS and CASTELLA."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atk.data.published.clips import (
    Contents,
    PublishedClip,
    Source,
    Span,
    label_caption,
    read_json,
    read_text,
    to_number,
)
from atk.data.published.youtube import youtube_names
from atk.data.tables import Table

_TACOS_SPLITS = {"train": ("development_split.csv",), "test": ("test_split.csv",)}
TACOS_TABLES = ("annotations_strong.csv", "annotations_weak.csv", "development_split.csv", "test_split.csv")
_CASTELLA_FILES = {split: (f"{split}.json",) for split in ("train", "val", "test")}
_CASTELLA_LINES = {split: (f"castella_{split}_release.jsonl",) for split in ("train", "val", "test")}
CASTELLA_TABLES = ("train.json", "val.json", "test.json", "castella_*_release.jsonl")


def read_tacos(source: Source) -> Contents:
    """Read TACOS: the weak captions are the captions, the strong ones the events.

    A clip without a weak caption has its strong ones, in the order of time, joined by commas.
    """
    strong = source.tree.table("annotations_strong.csv")
    weak = source.tree.table("annotations_weak.csv")
    if strong is None and weak is None:
        source.missing("annotations_strong.csv", "annotations_weak.csv")
    captions: dict[str, list[str]] = {}
    if weak is not None:
        table = Table.open(weak, ("filename",), like=("text", "caption"))
        column = "text" if "text" in table.header else "caption"
        for _, row in Table.open(weak, ("filename", column)).records():
            captions.setdefault(row["filename"].strip(), []).append(row[column])
    events: dict[str, list[Span]] = {}
    for line, row in Table.open(strong, ("filename", "text", "onset", "offset")).records() if strong else ():
        text, where = row["text"].strip(), f"{strong}, line {line}"
        span = Span(text, text, to_number(row["onset"], where), to_number(row["offset"], where))
        events.setdefault(row["filename"].strip(), []).append(span)
    splits: dict[str, str] = {}
    for split, path in source.split_tables(_TACOS_SPLITS).items():
        splits.update({row["filename"].strip(): split for _, row in Table.open(path, ("filename",)).records()})

    def clips() -> Iterator[PublishedClip]:
        for name in dict.fromkeys([*splits, *captions, *events]):
            spans = sorted(events.get(name, ()), key=lambda span: span.start)
            texts = captions.get(name) or label_caption(span.phrase for span in spans)
            roles = (splits[name],) if name in splits else ()
            yield PublishedClip(name, roles, source.tree.locate((name,)), texts, events=spans)

    return Contents(clips())


def read_castella(source: Source) -> Contents:
    """Read CASTELLA in its own form, in English if both languages are there, or in that of lighthouse.

    Each timestamp of a moment is an event named `<yid>_<n>`, where n counts the moments from 1, as lighthouse does. In
    the form of lighthouse, which has no captions of whole clips, the queries are the captions.
    """
    folder = "en" if source.tree.table("train.json", "val.json", "test.json", folder="en") else ""
    if source.tree.tables_like("*.json"):
        return Contents(_castella_clips(source, source.split_tables(_CASTELLA_FILES, folder)))
    return Contents(_castella_queries(source, source.split_tables(_CASTELLA_LINES)))


def _castella_clips(source: Source, tables: Mapping[str, Path]) -> Iterator[PublishedClip]:
    for split, path in tables.items():
        items = read_json(path)
        if not isinstance(items, list):
            raise ValueError(f"{path}: not a list of clips")
        for index, item in enumerate(items):
            try:
                video, caption = str(item["yid"]), str(item["global_caption"] or "")
                moments = [(str(moment["local_caption"] or ""), moment["timestamps"]) for moment in item["moments"]]
                spans = [
                    span
                    for position, (text, windows) in enumerate(moments, 1)
                    for span in _windows(f"{video}_{position}", text, windows)
                ]
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path}: item {index} must have yid, global_caption, and moments") from None
            audio = source.tree.locate(youtube_names(video))
            yield PublishedClip(video, (split,), audio, [caption], events=spans)


def _windows(name: str, text: str, windows: Sequence[Sequence[Any]]) -> list[Span]:
    """The events of a moment; timestamps are not in the order of time in the files."""
    return sorted(Span(name, " ".join(text.split()), float(start), float(end)) for start, end in windows)


def _castella_queries(source: Source, tables: Mapping[str, Path]) -> Iterator[PublishedClip]:
    for split, path in tables.items():
        captions: dict[str, list[str]] = {}
        events: dict[str, list[Span]] = {}
        for line, text in enumerate(read_text(path).split("\n"), 1):
            if not text.strip():
                continue
            try:
                item = json.loads(text)
                video, query = str(item["vid"]), str(item["query"])
                spans = _windows(str(item["qid"]), query, item.get("relevant_windows", ()))
            except (KeyError, TypeError, ValueError, AttributeError):
                raise ValueError(f"{path}, line {line}: not a query with qid, vid, and query") from None
            captions.setdefault(video, []).append(query)
            events.setdefault(video, []).extend(spans)
        for video, texts in captions.items():
            yield PublishedClip(video, (split,), source.tree.locate(youtube_names(video)), texts, events=events[video])
