"""DESED: recordings of homes with strong, weak, or no labels."""

from dataclasses import dataclass, field
from pathlib import Path

from atk.data.published.clips import Contents, PublishedClip, Source, Span, label_caption, label_text, to_number
from atk.data.published.tree import Located
from atk.data.tables import Table


@dataclass
class _Recording:
    """What the tables of DESED say about a recording; `labels` is None if it is not annotated."""

    name: str
    audio: Located
    splits: dict[str, None] = field(default_factory=dict)
    labels: dict[str, None] | None = None
    events: dict[Span, None] = field(default_factory=dict)


def read_desed(source: Source) -> Contents:
    """Read DESED: every table below the folder `metadata`, with strong, weak, or no labels.

    Tables below a folder whose name contains `validation` are the validation split, those below `eval` the test split,
    and all others the training split. Recordings without any event are in tags.csv only.
    """
    recordings: dict[str, _Recording] = {}
    for path in source.tree.tables_like("*.tsv"):
        _read_desed_table(source, path, recordings)
    if not recordings:
        source.missing("table (.tsv) with a column filename")
    labels = sorted({label for recording in recordings.values() for label in recording.labels or ()})
    return Contents(map(_clip, recordings.values()), {"desed": labels})


def _clip(recording: _Recording) -> PublishedClip:
    events = sorted(recording.events, key=lambda span: span.start)
    caption = label_caption([*(span.event for span in events), *(recording.labels or ())])
    tags = None if recording.labels is None else list(recording.labels)
    return PublishedClip(recording.name, tuple(recording.splits), recording.audio, caption, tags, events)


def _read_desed_table(source: Source, path: Path, recordings: dict[str, _Recording]) -> None:
    table = Table.open(path, (), like=("filename", "onset", "offset", "event_label", "event_labels"))
    if "filename" not in table.header or "duration" in table.header:
        return
    if "onset" in table.header:
        table = Table.open(path, ("filename", "onset", "offset", "event_label"))
    parts = [*map(str.lower, source.tree.folders_of(path)), path.stem.lower()]
    parts = parts[parts.index("metadata") + 1 :] if "metadata" in parts else parts
    split = "val" if any("validation" in part for part in parts) else "test" if "eval" in parts else "train"
    for line, row in table.records():
        name = row["filename"].strip()
        audio = source.tree.locate((name,), parts)
        recording = recordings.setdefault(audio.path or name, _Recording(name, audio))
        recording.splits[split] = None
        labels = row.get("event_labels", row.get("event_label"))
        if labels is None:
            continue
        names = [label.strip() for label in labels.split(",") if label.strip()]
        recording.labels = {**(recording.labels or {}), **dict.fromkeys(names)}
        for label in names if "onset" in row else ():
            where = f"{path}, line {line}"
            times = to_number(row["onset"], where), to_number(row["offset"], where)
            recording.events[Span(label, label_text(label), *times)] = None
