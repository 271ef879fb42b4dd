"""What a data folder contains, in numbers: hours, formats, captions, and duplicates within and across its splits."""

import hashlib
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from atk.data.captions import Clip, Split, read_folder, read_split
from atk.data.check import SPLITS
from atk.data.headers import collecting, map_files
from atk.extras import optional_imports

_WORD = re.compile("[^\\W_]+(?:['\u2019][^\\W_]+)*")  # also with apostrophes
_EDGE_BYTES = 1 << 16  # at both ends of a file, which tell most files of the same size apart
_EXAMPLES = 3
_BINS = 40  # of a histogram


@dataclass(frozen=True)
class SplitStats:
    """The numbers of a split.

    Attributes:
        seconds: length of each usable clip, float64 `[clips]`.
        words: words of each caption, int64 `[captions]`.
        captions_per_clip: captions of each clip, int64 `[clips]`.
        sample_rates: clips by sample rate in Hz, most frequent first.
        channels: clips by channel count, most frequent first.
        formats: clips by suffix, most frequent first.
        vocabulary: distinct words, ignoring case.
        skipped: rows and files that cannot be used.
    """

    seconds: np.ndarray
    words: np.ndarray
    captions_per_clip: np.ndarray
    sample_rates: dict[int, int]
    channels: dict[int, int]
    formats: dict[str, int]
    vocabulary: int
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON, with the smallest, median, mean, and largest value in place of each array."""
        return {
            "clips": len(self.seconds),
            "hours": round(float(self.seconds.sum()) / 3600, 4),
            "seconds": _summary(self.seconds),
            "captions": len(self.words),
            "captions_per_clip": _summary(self.captions_per_clip),
            "words": _summary(self.words),
            "vocabulary": self.vocabulary,
            "sample_rates": self.sample_rates,
            "channels": self.channels,
            "formats": self.formats,
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class Duplicates:
    """What occurs more than once.

    Attributes:
        by: "name" (of the file, without its folder), "content" (of the file, byte by byte), or "caption" (of different
            clips; word by word, ignoring case).
        splits: one split, or two that share something.
        count: within a split, the files or captions beyond the first of each group; else the groups in both splits.
        examples: members of the first groups, joined by " = ".
    """

    by: str
    splits: tuple[str, ...]
    count: int
    examples: list[str]


@dataclass(frozen=True)
class FolderStats:
    """The numbers of each split by its name, the words of all splits, and the duplicates."""

    splits: dict[str, SplitStats]
    vocabulary: int
    duplicates: list[Duplicates] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON."""
        splits = {name: split.to_dict() for name, split in self.splits.items()}
        return {"splits": splits, "vocabulary": self.vocabulary, "duplicates": [vars(one) for one in self.duplicates]}


def folder_stats(folder: str | Path, *, progress: str | None = None) -> FolderStats:
    """Read the splits of a data folder or, without splits, all audio below it as the split "all".

    Files of the same size are compared by their contents: first by their ends, then in full.

    Args:
        folder: data folder, or any folder of audio.
        progress: label of a progress bar; None = no bar.

    Raises:
        FileNotFoundError, ValueError: as for `read_split` and `read_folder`.
    """
    names = [name for name in SPLITS if Path(folder, f"{name}.csv").is_file()]
    stats: dict[str, SplitStats] = {}
    clips: dict[str, list[Clip]] = {}
    words: set[str] = set()
    for name in names or ["all"]:
        with collecting() as headers:
            split = read_split(folder, name) if names else read_folder(folder)
        stats[name] = _split_stats(split, next(iter(headers.tables.values())), words)
        clips[name] = split.clips
    return FolderStats(stats, len(words), list(_all_duplicates(clips, progress)))


def _split_stats(split: Split, headers: np.ndarray, all_words: set[str]) -> SplitStats:
    vocabulary: set[str] = set()
    lengths = []
    for clip in split.clips:
        for caption in clip.captions:
            words = _words(caption)
            lengths.append(len(words))
            vocabulary.update(words)
    all_words |= vocabulary
    return SplitStats(
        seconds=np.array([clip.seconds for clip in split.clips]),
        words=np.array(lengths, np.int64),
        captions_per_clip=np.array([len(clip.captions) for clip in split.clips], np.int64),
        sample_rates=_counts(headers["rate"].tolist()),
        channels=_counts(headers["channels"].tolist()),
        formats=_counts(os.path.splitext(clip.file_name)[1].lower() for clip in split.clips),  # noqa: PTH122 (a string)
        vocabulary=len(vocabulary),
        skipped=len(split.skipped),
    )


def _words(caption: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(caption.casefold()))


def _counts(values: Iterable[Any]) -> dict[Any, int]:
    return dict(Counter(values).most_common())


def _summary(values: np.ndarray) -> dict[str, float] | None:
    """The smallest, median, mean, and largest value; None without values."""
    if not len(values):
        return None
    summary = {"min": values.min(), "median": np.median(values), "mean": values.mean(), "max": values.max()}
    return {name: round(float(value), 3) for name, value in summary.items()}


def _all_duplicates(clips: dict[str, list[Clip]], progress: str | None) -> Iterator[Duplicates]:
    files = [(split, clip) for split, listed in clips.items() for clip in listed]
    names = ((Path(str(clip.path)).name, split, clip.file_name) for split, clip in files)
    yield from _duplicates("name", names)
    hashes = _content_keys([str(clip.path) for _, clip in files], progress)
    contents = ((key, split, clip.file_name) for key, (split, clip) in zip(hashes, files, strict=True) if key)
    yield from _duplicates("content", contents)
    captions = (
        (words, split, text)
        for split, clip in files
        for words, text in {_words(caption): caption for caption in clip.captions}.items()
    )
    yield from _duplicates("caption", captions)


def _duplicates(by: str, members: Iterable[tuple[Hashable, str, str]]) -> Iterator[Duplicates]:
    """The duplicates among (key, split, label) with equal keys."""
    groups: dict[Hashable, list[tuple[str, str]]] = defaultdict(list)
    for key, split, label in members:
        groups[key].append((split, label))
    counts: Counter[tuple[str, ...]] = Counter()
    examples: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group in groups.values():
        labels: dict[str, list[str]] = defaultdict(list)
        for split, label in group:
            labels[split].append(label)
        within = [(split,) for split, listed in labels.items() if len(listed) > 1]
        for splits in (*within, *itertools.combinations(labels, 2)):
            counts[splits] += 1 if len(splits) == 2 else len(labels[splits[0]]) - 1
            if len(examples[splits]) < _EXAMPLES:
                shown = labels[splits[0]][:2] if len(splits) == 1 else [labels[split][0] for split in splits]
                examples[splits].append(" = ".join(dict.fromkeys(shown)))
    for splits, count in counts.items():
        yield Duplicates(by, splits, count, examples[splits])


def _content_keys(paths: Sequence[str], progress: str | None) -> list[Hashable]:
    """A key for each file, the same for equal contents only; None for unreadable files and those without an equal."""
    keys: list[Hashable] = list(map_files(_size, paths))
    for read in (_edges, _whole):
        repeated = {key for key, count in Counter(keys).items() if key is not None and count > 1}
        chosen = [index for index, key in enumerate(keys) if key in repeated]
        digests = map_files(read, [paths[index] for index in chosen])
        kept = dict(zip(chosen, _with_progress(digests, len(chosen), progress), strict=True))
        keys = [(key, kept[index]) if kept.get(index) else None for index, key in enumerate(keys)]
    return keys


def _with_progress(items: Iterable[Any], count: int, label: str | None) -> Iterable[Any]:
    with optional_imports:
        from tqdm import tqdm  # pyrefly: ignore[untyped-import]  # its stubs are a separate package

    return tqdm(items, label, count, unit="file", leave=False, disable=None if label else True)


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (a third of the time)
    except OSError:
        return None


def _edges(path: str) -> bytes | None:
    """Digest of both ends of a file; None if it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a string)
            digest = hashlib.blake2b(file.read(_EDGE_BYTES), digest_size=16)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _EDGE_BYTES))
            digest.update(file.read(_EDGE_BYTES))
    except OSError:
        return None
    return digest.digest()


def _whole(path: str) -> bytes | None:
    """Digest of a file; None if it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a string)
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()


def draw_stats(stats: FolderStats, path: str | Path) -> None:
    """Draw histograms of the lengths of clips and captions of each split.

    Args:
        stats: output of `folder_stats`.
        path: PNG to write.
    """
    with optional_imports:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    panels = [("length of clips (s)", {name: split.seconds for name, split in stats.splits.items()})]
    if any(len(split.words) for split in stats.splits.values()):
        panels.append(("length of captions (words)", {name: split.words for name, split in stats.splits.items()}))
    figure = Figure(figsize=(5 * len(panels), 3.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for index, (label, values) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        edges = _edges_of(np.concatenate(list(values.values())))
        for name, lengths in values.items():
            axes.hist(lengths, edges, histtype="step", label=f"{name} ({len(lengths):,})")
        axes.set_xlabel(label)
        axes.set_ylabel("count")
        axes.legend()
    figure.savefig(path, format="png")


def _edges_of(values: np.ndarray) -> list[float]:
    """Edges of at most 40 bins; integers are in the middle of theirs."""
    if values.dtype.kind != "i":
        return np.histogram_bin_edges(values, _BINS).tolist()
    width = -(-(int(values.max()) - int(values.min()) + 1) // _BINS)
    return np.arange(values.min() - 0.5, values.max() + 0.5 + width, width).tolist()
