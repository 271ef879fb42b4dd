"""Sets of labeled recordings: ESC-50, UrbanSound8K, FSD50K, FSDnoisy18k, and VGGSound."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from atk.data.published.clips import (
    Contents,
    PublishedClip,
    Source,
    fold_splits,
    label_caption,
    split_name,
    to_number,
)
from atk.data.published.youtube import youtube_names
from atk.data.tables import Table


class _FoldColumns(NamedTuple):
    """The columns of a set with folds: file name, fold, number of the class, name of the class."""

    name: str
    fold: str
    index: str
    label: str


def read_esc50(source: Source) -> Contents:
    """Read ESC-50: `esc50.csv`, five folds."""
    return _read_folds(source, "esc50.csv", _FoldColumns("filename", "fold", "target", "category"), "audio")


def read_urbansound8k(source: Source) -> Contents:
    """Read UrbanSound8K: `UrbanSound8K.csv`, ten folds."""
    columns = _FoldColumns("slice_file_name", "fold", "classID", "class")
    return _read_folds(source, "UrbanSound8K.csv", columns, "fold{fold}")


def _read_folds(source: Source, table: str, columns: _FoldColumns, folder: str) -> Contents:
    path = source.tree.table(table)
    if path is None:
        source.missing(table)
    labels: dict[str, str] = {}
    folds: dict[str, str] = {}
    classes: dict[str, float] = {}
    for line, row in Table.open(path, columns).records():
        name, where = row[columns.name], f"{path}, line {line}"
        labels[name] = row[columns.label].strip()
        folds[name] = f"{to_number(row[columns.fold], where):g}"
        classes[labels[name]] = to_number(row[columns.index], where)
    splits = fold_splits(folds)
    clips = (
        PublishedClip(
            name,
            splits[name],
            source.tree.locate((name,), (folder.format(fold=folds[name]),)),
            label_caption([label]),
            [label],
            fold=folds[name],
        )
        for name, label in labels.items()
    )
    return Contents(clips, {Path(table).stem.lower(): sorted(classes, key=lambda label: classes[label])})


def read_fsd50k(source: Source) -> Contents:
    """Read FSD50K: `dev.csv`, whose column `split` is train or val, and `eval.csv`, which is the test split."""
    tables = source.split_tables({"dev": ("dev.csv",), "test": ("eval.csv",)})
    path = source.tree.table("vocabulary.csv")
    if path is None:
        source.missing("vocabulary.csv")
    rows = Table(path, ["index", "label", "mid"], ",", "utf-8-sig", spaced=False, has_header=False).records()
    vocabulary = [row["label"].strip() for _, row in rows]
    return Contents(_fsd50k_clips(source, tables), {"fsd50k": vocabulary})


def _fsd50k_clips(source: Source, tables: Mapping[str, Path]) -> Iterator[PublishedClip]:
    for role, path in tables.items():
        folder = "FSD50K.eval_audio" if role == "test" else "FSD50K.dev_audio"
        table = Table.open(path, ("fname", "labels") if role == "test" else ("fname", "labels", "split"))
        for line, row in table.records():
            labels = [label.strip() for label in row["labels"].split(",") if label.strip()]
            split = split_name(row.get("split", role), f"{path}, line {line}")
            audio = source.tree.locate((row["fname"].strip(),), (folder,))
            yield PublishedClip(row["fname"], (split,), audio, label_caption(labels), labels)


def read_fsdnoisy18k(source: Source) -> Contents:
    """Read FSDnoisy18k: `train.csv` and `test.csv`, one label per clip."""
    tables = source.split_tables({"train": ("train.csv",), "test": ("test.csv",)})
    rows = [
        (split, row["fname"].strip(), row["label"].strip())
        for split, path in tables.items()
        for _, row in Table.open(path, ("fname", "label")).records()
    ]
    clips = (
        PublishedClip(
            name,
            (split,),
            source.tree.locate((name,), (f"FSDnoisy18k.audio_{split}",)),
            label_caption([label]),
            [label],
        )
        for split, name, label in rows
    )
    return Contents(clips, {"fsdnoisy18k": sorted({label for _, _, label in rows})})


def read_vggsound(source: Source) -> Contents:
    """Read VGGSound: `vggsound.csv`, or else `train.csv` and `test.csv` of its repository."""
    path = source.tree.table("vggsound.csv")
    rows = _vggsound_rows(path) if path is not None else _vggsound_named_rows(source)
    present = {label for _, _, label, _ in rows}
    order = [label for label in _vggsound_labels(source) if label in present]
    vocabulary = [*order, *sorted(present.difference(order))]
    clips = (
        PublishedClip(
            f"{video} at {start:g} s",
            (split,),
            source.tree.locate((f"{video}_{start:06.0f}", *youtube_names(video, start, start + 10)), (split,)),
            label_caption([label]),
            [label],
        )
        for video, start, label, split in rows
    )
    return Contents(clips, {"vggsound": vocabulary})


_VGGSoundRow = tuple[str, float, str, str]  # video, start in seconds, label, split


def _vggsound_rows(path: Path) -> list[_VGGSoundRow]:
    table = Table(path, ["video", "start", "label", "split"], ",", "utf-8-sig", spaced=False, has_header=False)
    return [
        (row["video"], to_number(row["start"], where), row["label"].strip(), split_name(row["split"], where))
        for where, row in ((f"{path}, line {line}", row) for line, row in table.records())
    ]


def _vggsound_named_rows(source: Source) -> list[_VGGSoundRow]:
    tables = source.split_tables({"train": ("train.csv",), "test": ("test.csv",)})
    rows: list[_VGGSoundRow] = []
    for split, path in tables.items():
        table = Table(path, ["name", "label"], ",", "utf-8-sig", spaced=False, has_header=False)
        for line, row in table.records():
            video, _, start = source.tree.without_suffix(row["name"]).rpartition("_")
            rows.append((video, to_number(start, f"{path}, line {line}"), row["label"].strip(), split))
    return rows


def _vggsound_labels(source: Source) -> Sequence[str]:
    """The labels in the order of `stat.csv`, if it is there."""
    path = source.tree.table("stat.csv")
    if path is None:
        return ()
    table = Table(path, ["label", "count", "group"], ",", "utf-8-sig", spaced=False, has_header=False)
    return [row["label"].strip() for _, row in table.records()]
