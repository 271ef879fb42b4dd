"""Music: MusicCaps, Song Describer, GTZAN, and MagnaTagATune."""

import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np

from atk.data.published.clips import Contents, PublishedClip, Source, label_caption, read_text, to_number
from atk.data.published.pickles import read_pickle
from atk.data.published.youtube import youtube_names
from atk.data.tables import Table

_GTZAN_NAME = re.compile(r"([a-z]+)\.\d{5}")
_LISTS = {"train": "train", "val": "valid", "test": "test"}  # what the lists of a split are called
_WON, _LEE = ".npy", "_list_pub.cP"  # ends of their lists
MTAT_TABLES = ("annotations_final.csv", *(f"{name}{end}" for end in (_WON, _LEE) for name in _LISTS.values()))
_MTAT_DAMAGED = ("35644", "55753", "57881")
_MTAT_FOLDERS = {**dict.fromkeys("0123456789ab", "train"), "c": "val", **dict.fromkeys("def", "test")}


def read_musiccaps(source: Source) -> Contents:
    """Read MusicCaps: `musiccaps-public.csv`; clips of AudioSet's evaluation split are the test split."""
    path = source.tree.table("musiccaps-public.csv")
    if path is None:
        source.missing("musiccaps-public.csv")
    return Contents(_musiccaps_clips(source, path))


def _musiccaps_clips(source: Source, path: Path) -> Iterator[PublishedClip]:
    for line, row in Table.open(path, ("ytid", "start_s", "end_s", "caption", "is_audioset_eval")).records():
        video, where = row["ytid"].strip(), f"{path}, line {line}"
        start, end = to_number(row["start_s"], where), to_number(row["end_s"], where)
        split = "test" if row["is_audioset_eval"].strip().lower() == "true" else "train"
        names = (*youtube_names(video, start, end), f"[{video}]-[{start:g}-{end:g}]")
        yield PublishedClip(f"{video} at {start:g} s", (split,), source.tree.locate(names), [row["caption"]])


def read_songdescriber(source: Source) -> Contents:
    """Read the Song Describer Dataset: `song_describer.csv`; the files are excerpts named `<track_id>.2min.mp3`."""
    path = source.tree.table("song_describer.csv")
    if path is None:
        source.missing("song_describer.csv")
    captions: dict[str, list[str]] = {}
    for _, row in Table.open(path, ("caption", "path")).records():
        captions.setdefault(row["path"].strip(), []).append(row["caption"])

    def clips() -> Iterator[PublishedClip]:
        for name, texts in captions.items():
            stem = source.tree.without_suffix(name)
            audio = source.tree.locate((f"{stem}.2min", stem), name.split("/")[:-1])
            yield PublishedClip(name, ("test",), audio, texts)

    return Contents(clips())


def read_gtzan(source: Source) -> Contents:
    """Read GTZAN with the fault-filtered splits: `train_filtered.txt` and so on, or else those of torchaudio."""
    names = {split: source.tree.table(f"{file}_filtered.txt") for split, file in _LISTS.items()}
    if all(names.values()):
        lists = {split: read_text(path).split() for split, path in names.items() if path}
    else:
        lists = _torchaudio_lists()
        source.notes.append("the splits are those of torchaudio, as no train_filtered.txt and so on are there")
    splits = {source.tree.without_suffix(name): split for split, listed in lists.items() for name in listed}
    genres = sorted({name.partition(".")[0] for name in splits})
    others = sorted(name for name in source.tree if name not in splits and _gtzan_genre(name) in genres)
    clips = (
        PublishedClip(
            name,
            (splits[name], "all") if name in splits else ("all",),
            source.tree.locate((name,), (_gtzan_genre(name),)),
            label_caption([_gtzan_genre(name)]),
            [_gtzan_genre(name)],
        )
        for name in (*splits, *others)
    )
    return Contents(clips, {"gtzan": genres})


def _gtzan_genre(name: str) -> str:
    match = _GTZAN_NAME.fullmatch(name)
    return match[1] if match else ""


def _torchaudio_lists() -> dict[str, Sequence[str]]:
    import atk._torchaudio  # noqa: F401  # makes torchaudio importable where its compiled part is not

    gtzan = importlib.import_module("torchaudio.datasets.gtzan")
    return {split: getattr(gtzan, f"filtered_{name}") for split, name in _LISTS.items()}


def read_magnatagatune(source: Source) -> Contents:
    """Read MagnaTagATune: `annotations_final.csv`.

    Folders 0 to b are the training split, c the validation split, and d to f the test split. The lists `train.npy`,
    `valid.npy`, and `test.npy` of Won et al. become `won_train.csv` and so on, and `train_list_pub.cP` and so on of Lee
    et al. `lee_train.csv` and so on.
    """
    path = source.tree.table("annotations_final.csv")
    if path is None:
        source.missing("annotations_final.csv")
    table = Table.open(path, ("clip_id", "mp3_path"))
    vocabulary = [name for name in table.header if name not in ("clip_id", "mp3_path")]
    counts: Counter[str] = Counter()
    for _, row in table.records():
        counts.update(_mtat_tags(row, vocabulary))
    frequent = {tag for tag, _ in counts.most_common(50)}
    vocabularies = {"magnatagatune": vocabulary, "magnatagatune_top50": [tag for tag in vocabulary if tag in frequent]}
    lists = (_won_splits(source), _lee_splits(source))
    return Contents(_mtat_clips(source, table, vocabulary, lists), vocabularies)


def _mtat_tags(row: Mapping[str, str], vocabulary: Sequence[str]) -> list[str]:
    return [tag for tag in vocabulary if row[tag].strip() == "1"]


def _mtat_clips(
    source: Source, table: Table, vocabulary: Sequence[str], lists: Sequence[Mapping[str, str]]
) -> Iterator[PublishedClip]:
    for _, row in table.records():
        name = row["mp3_path"].strip()
        folder = name.partition("/")[0]
        splits = [_MTAT_FOLDERS[folder]] if folder in _MTAT_FOLDERS else []
        stem = name.rpartition(".")[0]
        splits += [split_of[stem] for split_of in lists if stem in split_of]
        if row["clip_id"].strip() in _MTAT_DAMAGED:
            source.leave_out("known to be damaged", name, splits)
            continue
        tags = _mtat_tags(row, vocabulary)
        audio = source.tree.locate((name,), (folder,))
        yield PublishedClip(name, tuple(splits), audio, label_caption(tags), tags, fold=folder)


def _won_splits(source: Source) -> dict[str, str]:
    """The split of each file, without its suffix, in the lists of Won et al.: an index, a tab, and the path."""
    splits = {}
    for split, file in _LISTS.items():
        path = source.tree.table(f"{file}{_WON}")
        if path is None:
            continue
        try:
            lines = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError, TokenError, MemoryError) as error:
            raise ValueError(f"{path}: not a list of text ({error})") from None
        names = (str(line).rpartition("\t")[2].strip() for line in lines.ravel())
        splits.update({name.rpartition(".")[0]: f"won_{split}" for name in names})
    return splits


def _lee_splits(source: Source) -> dict[str, str]:
    """The split of each file, without its suffix, in the lists of Lee et al.: paths, which may end in `.npy`."""
    splits = {}
    for split, file in _LISTS.items():
        path = source.tree.table(f"{file}{_LEE}")
        names = [] if path is None else read_pickle(path, list, "list of text")
        splits.update({str(name).rpartition(".")[0]: f"lee_{split}" for name in names})
    return splits
