"""AudioSet and its temporally strong labels."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from atk.data.published.clips import (
    Contents,
    PublishedClip,
    Source,
    Span,
    label_caption,
    label_text,
    read_json,
    to_number,
)
from atk.data.published.youtube import youtube_names
from atk.data.tables import Table

_SEGMENTS: dict[str, tuple[str, ...]] = {
    "balanced_train_segments.csv": ("train", "balanced"),
    "unbalanced_train_segments.csv": ("train",),
    "eval_segments.csv": ("test",),
}
_SEGMENT_COLUMNS = ["video", "start", "end", "labels"]
_NAMES = ("mid_to_display_name.tsv", "class_labels_indices.csv", "ontology.json")
_STRONG = {"train": ("audioset_train_strong.tsv",), "test": ("audioset_eval_strong.tsv",)}
_SECONDS = 10
TABLES = (*_SEGMENTS, *_NAMES[1:])
STRONG_TABLES = ("audioset_train_strong.tsv", "audioset_eval_strong.tsv", *_NAMES)


def read_audioset(source: Source) -> Contents:
    """Read AudioSet's segment lists. The balanced training segments are also in `balanced.csv`."""
    tables = {splits: source.tree.table(name) for name, splits in _SEGMENTS.items()}
    names = _label_names(source, _NAMES[1:])
    if not any(tables.values()):
        source.missing(*_SEGMENTS)
    source.notes += [f"no {name}" for name, splits in _SEGMENTS.items() if tables[splits] is None]
    return Contents(_clips(source, tables, names), {"audioset": list(dict.fromkeys(names.values()))})


def _clips(
    source: Source, tables: Mapping[tuple[str, ...], Path | None], names: Mapping[str, str]
) -> Iterator[PublishedClip]:
    for splits, path in tables.items():
        for video, start, end, labels in _segments(path) if path is not None else ():
            audio = source.tree.locate(youtube_names(video, start, end))
            tags = [names.get(label, label) for label in labels]  # those without a name are counted, but not used
            caption = label_caption(names[label] for label in labels if label in names)
            yield PublishedClip(f"{video} at {start:g} s", splits, audio, caption, tags)


def _segments(path: Path) -> Iterator[tuple[str, float, float, list[str]]]:
    """Video, start, end, and labels; the table begins with comments instead of a header."""
    table = Table(path, _SEGMENT_COLUMNS, ",", "utf-8-sig", spaced=True, has_header=False)
    for line, row in table.records():
        if not row["video"].startswith("#"):
            where = f"{path}, line {line}"
            labels = [label.strip() for label in row["labels"].split(",") if label.strip()]
            yield row["video"], to_number(row["start"], where), to_number(row["end"], where), labels


def _label_names(source: Source, tables: Sequence[str]) -> dict[str, str]:
    """Names of labels by identifier, from the first of the tables that exists; raises ValueError if none does."""
    path = source.tree.table(*tables)
    if path is None:
        source.missing(*tables)
    if path.suffix == ".json":
        content = read_json(path)
        try:
            return {str(entry["id"]): str(entry["name"]) for entry in content}
        except (TypeError, KeyError):
            raise ValueError(f"{path}: not a list of objects with id and name") from None
    if path.suffix == ".tsv":
        table = Table(path, ["mid", "display_name"], "\t", "utf-8-sig", spaced=False, has_header=False)
    else:
        table = Table.open(path, ("mid", "display_name"))
    return {row["mid"].strip(): row["display_name"].strip() for _, row in table.records()}


def read_audioset_strong(source: Source) -> Contents:
    """Read the strong labels: `audioset_train_strong.tsv` and `audioset_eval_strong.tsv`."""
    tables = source.split_tables(_STRONG)
    names = _label_names(source, _NAMES)
    return Contents(_strong_clips(source, tables, names), {"audioset_strong": list(dict.fromkeys(names.values()))})


def _strong_clips(source: Source, tables: Mapping[str, Path], names: Mapping[str, str]) -> Iterator[PublishedClip]:
    for split, path in tables.items():
        segments: dict[str, list[tuple[float, float, str]]] = {}
        columns = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
        for line, row in Table.open(path, columns).records():
            where = f"{path}, line {line}"
            times = to_number(row["start_time_seconds"], where), to_number(row["end_time_seconds"], where)
            segments.setdefault(row["segment_id"].strip(), []).append((*times, row["label"].strip()))
        for segment, rows in segments.items():
            video, _, milliseconds = segment.rpartition("_")  # identifiers of videos may contain underscores
            start = to_number(milliseconds, f"{path}, segment {segment}") / 1000
            audio = source.tree.locate((segment, *youtube_names(video, start, start + _SECONDS)))
            spans = [
                Span(names[label], label_text(names[label]), onset, offset)
                for onset, offset, label in sorted(rows)
                if label in names
            ]
            tags = [names.get(label, label) for _, _, label in rows]
            yield PublishedClip(segment, (split,), audio, label_caption(span.event for span in spans), tags, spans)
