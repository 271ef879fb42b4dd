"""What data sets contain, in numbers: hours, formats, captions, and duplicates within and across their splits."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from atk.data.captions import SPLITS, Clip, Split
from atk.data.contents import base_name, content_keys, size_of
from atk.data.headers import map_files
from atk.data.layouts import DataSet, Folder, in_order
from atk.data.sets import Data, open_audio
from atk.extras import optional_imports

_WORD = re.compile("[^\\W_]+(?:['\u2019][^\\W_]+)*")  # also with apostrophes
_EXAMPLES = 3
_BINS = 40  # of a histogram
_LEGEND_ROW = 0.22  # inches


@dataclass(frozen=True)
class SplitStats:
    """The numbers of a split.

    Attributes:
        seconds: length of each usable clip, float64 `[clips]`.
        words: words of each caption, int64 `[captions]`.
        captions_per_clip: captions of each clip, int64 `[clips]`.
        sample_rates: clips by sample rate in Hz, most frequent first.
        channels: clips by channel count, most frequent first.
        formats: clips by suffix, most frequent first; "" where a table does not name the file.
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


class _Labeled(NamedTuple):
    """A clip, with its split and its name for messages."""

    split: str
    name: str
    clip: Clip


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


def data_stats(data: Data, caption_column: str | None = None, *, progress: str | None = None) -> FolderStats:
    """Read all splits of one or several data sets of any layout; without splits, all audio below a folder as "all".

    Of a folder with CSV files, the splits are train, val, and test. If there are several data sets, the names of splits
    and files begin with that of the data set. Audio of the same size is compared by its contents: first by the ends,
    then in full.

    Args:
        data, caption_column: as in `atk.data.open_data`; may also be any folder of audio.
        progress: label of a progress bar; None = no bar.

    Raises:
        FileNotFoundError, ValueError: as for `atk.data.read_data` and `read_folder`.
    """
    sets = {data_set.name: data_set for data_set in open_audio(data, caption_column).sets}
    stats: dict[str, SplitStats] = {}
    clips: list[_Labeled] = []
    words: set[str] = set()
    for data_set in sets.values():
        several = len(sets) > 1
        for name in _splits_of(data_set):
            split = data_set.read(name, "skip")
            label = f"{data_set.name.rstrip('/')}/{name}" if several else name
            stats[label] = _split_stats(split, words)
            files = (data_set.named(clip.file_name) if several else clip.file_name for clip in split.clips)
            clips += map(_Labeled, itertools.repeat(label), files, split.clips)
    return FolderStats(stats, len(words), list(_all_duplicates(clips, progress)))


def folder_stats(folder: str | Path, *, progress: str | None = None) -> FolderStats:
    """`data_stats` of a single data set."""
    return data_stats(folder, progress=progress)


def _splits_of(data_set: DataSet) -> list[str]:
    names = in_order(data_set.splits())
    return [name for name in names if name in SPLITS] if isinstance(data_set, Folder) else names


def _split_stats(split: Split, all_words: set[str]) -> SplitStats:
    vocabulary: set[str] = set()
    lengths = []
    for clip in split.clips:
        for caption in clip.captions:
            words = _words(caption)
            lengths.append(len(words))
            vocabulary.update(words)
    all_words |= vocabulary
    rates: Counter[int] = Counter()
    channels: Counter[int] = Counter()
    for (rate, channel_count), clips in split.signals.items():
        rates[rate] += clips
        channels[channel_count] += clips
    return SplitStats(
        seconds=np.array([clip.seconds for clip in split.clips]),
        words=np.array(lengths, np.int64),
        captions_per_clip=np.array([len(clip.captions) for clip in split.clips], np.int64),
        sample_rates=dict(rates.most_common()),
        channels=dict(channels.most_common()),
        formats=dict(Counter(PurePath(base_name(clip)).suffix.lower() for clip in split.clips).most_common()),
        vocabulary=len(vocabulary),
        skipped=len(split.skipped),
    )


def _words(caption: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(caption.casefold()))


def _summary(values: np.ndarray) -> dict[str, float] | None:
    """The smallest, median, mean, and largest value; None without values."""
    if not len(values):
        return None
    summary = {"min": values.min(), "median": np.median(values), "mean": values.mean(), "max": values.max()}
    return {name: round(float(value), 3) for name, value in summary.items()}


def _all_duplicates(labeled: Sequence[_Labeled], progress: str | None) -> Iterator[Duplicates]:
    clips = [one.clip for one in labeled]
    for by, keys in (
        ("name", map(base_name, clips)),
        ("content", content_keys(clips, list(map_files(size_of, clips)), progress)),
    ):
        members = ((key, split, name) for key, (split, name, _) in zip(keys, labeled, strict=True) if key)
        yield from _duplicates(by, members)
    captions = (
        (words, split, text)
        for split, _, clip in labeled
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
    height = 3.5 + _LEGEND_ROW * len(stats.splits)
    figure = Figure(figsize=(5 * len(panels), height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for index, (quantity, values) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        edges = _edges_of(np.concatenate(list(values.values())))
        for name, lengths in values.items():
            label = _label(name, stats.splits[name], 50 * len(panels)) if index == 0 else None
            axes.hist(lengths, edges, histtype="step", label=label)
        axes.set_xlabel(quantity)
        axes.set_ylabel("count")
    for text in figure.legend(loc="outside lower center").get_texts():
        text.set_parse_math(False)
    figure.savefig(path, format="png")


def _label(name: str, split: SplitStats, letters: int) -> str:
    """A line of the legend; of a name that is too long, the end is shown."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if len(name) > letters:
        name = f"...{name[-letters:]}"
    return f"{name}: {len(split.seconds):,} clips" + (f", {len(split.words):,} captions" if len(split.words) else "")


def _edges_of(values: np.ndarray) -> list[float]:
    """Edges of at most 40 bins; integers are in the middle of theirs."""
    if values.dtype.kind != "i":
        return np.histogram_bin_edges(values, _BINS).tolist()
    width = -(-(int(values.max()) - int(values.min()) + 1) // _BINS)
    return np.arange(values.min() - 0.5, values.max() + 0.5 + width, width).tolist()
