"""Training crops and evaluation windows of clips, and batches of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from atk.data.audio import AudioError, load_audio
from atk.data.captions import Clip
from atk.data.texts import TAG_SAMPLINGS, TagSampling, sample_tags
from atk.data.timed_texts import TimedSource, TimedTexts, timed_texts
from atk.ops.checks import one_of

_SHORTEST_WINDOW = 0.1  # the last window of a clip must fill at least this fraction of a window

_BatchT = TypeVar("_BatchT", bound="Batch")


def random_stream(purpose: int, *key: int) -> np.random.Generator:
    """Create a random generator that depends only on `purpose` and `key`, which are integers of at least 0."""
    # The seed includes the key length: seeds are zero-padded, so (1, 2) and (1, 2, 0) would give the same stream.
    return np.random.default_rng([purpose, len(key), *key])


class _Clips(Dataset[dict[str, Any]]):
    """Base class of both datasets. A bad file raises AudioError when read alone; in a batch, the error replaces it."""

    def __init__(self, clips: Sequence[Clip], sample_rate: int):
        if not clips:
            raise ValueError("clips must hold at least one clip, got none")
        self.clips = list(clips)
        self.sample_rate = sample_rate
        self._notes: list[tuple[str, str]] = []  # (file name, note) since the last batch

    def collate(self, items: Sequence[dict[str, Any] | AudioError]) -> "Batch":
        """Combine items into a batch."""
        notes, self._notes = self._notes, []
        return collate(items, notes)

    def __getitems__(self, indices: Sequence[Any]) -> list[dict[str, Any] | AudioError]:
        """Load the items of a batch; an item that cannot be read is replaced by its error."""
        return [self._item_or_error(index) for index in indices]

    def _item_or_error(self, index: Any) -> dict[str, Any] | AudioError:
        try:
            return self[index]
        except AudioError as error:
            return error

    def _item(self, index: int, start: float, seconds: float | None, caption: str) -> dict[str, Any]:
        clip = self.clips[index]
        audio = self._window(clip, start, seconds)
        return {"audio": audio, "caption": caption, "file": clip.file_name, "clip": index}

    def _window(self, clip: Clip, start: float, seconds: float | None) -> Tensor:
        notes: list[str] = []
        try:
            return load_audio(clip.path, self.sample_rate, start, seconds, notes)
        except AudioError as error:
            raise AudioError(clip.file_name, error.reason) from None
        finally:
            self._notes += [(clip.file_name, note) for note in notes]


class TrainDataset(_Clips):
    """Training dataset: `dataset[clip, epoch]` is a random crop of a clip with one of its captions, drawn at random.

    Both draws are a function of (seed, epoch, clip) alone; they depend neither on the worker nor on interruptions.

    Args:
        clips: clips from `read_split` or `read_folder`; clips without captions get the caption "".
        sample_rate: sample rate of the waveforms, in Hz.
        clip_seconds: longest crop; shorter clips are used whole.
        seed: seed of crops and captions, at least 0.
        tag_sampling: captions list tags with commas, of which each item draws some, as `sample_tags` does; None leaves
            captions as they are.
        timed: adds the timed captions of each crop; None: none.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sample_rate: int,
        clip_seconds: float,
        seed: int = 0,
        *,
        tag_sampling: TagSampling | None = None,
        timed: TimedSource | None = None,
    ):
        super().__init__(clips, sample_rate)
        if tag_sampling is not None:
            one_of("tag_sampling", tag_sampling, TAG_SAMPLINGS)
        self.clip_seconds = clip_seconds
        self.seed = seed
        self.tag_sampling = tag_sampling
        self.timed = timed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """Load `{"audio": float32 [samples], "caption": str, "file": str, "clip": int}`; raises AudioError.

        With timed captions, also `"timed"`, the `TimedTexts` of the crop.
        """
        row, epoch = index
        clip = self.clips[row]
        random = random_stream(1, self.seed, epoch, row)
        start = random.random() * max(0.0, clip.seconds - self.clip_seconds)
        caption = clip.captions[random.integers(len(clip.captions))] if clip.captions else ""
        if self.tag_sampling is not None:
            caption = sample_tags(caption, self.tag_sampling, random_stream(10, self.seed, epoch, row))
        item = self._item(row, start, self.clip_seconds, caption)
        if self.timed is not None:
            random = random_stream(12, self.seed, epoch, row)
            seconds = len(item["audio"]) / self.sample_rate
            captions = self.timed.captions.get(clip.file_name, ())
            item["timed"] = timed_texts(captions, start, seconds, self.timed.limit, random)
        return item

    def silence(self) -> dict[str, Any]:
        """A silent placeholder item."""
        samples = torch.zeros(round(self.sample_rate * self.clip_seconds))
        return {"audio": samples, "caption": "", "file": "", "clip": 0}


class EvalDataset(_Clips):
    """Evaluation dataset: `dataset[i]` is window i of all clips in order. Windows of a clip are consecutive.

    The last window of a clip is the remainder; it is dropped if it is shorter than a tenth of a window and not the
    only one. Windows bound the memory of a batch that contains hours-long files. Windows overlap with `chunks`, where
    window k of K starts at `k / K` of the time that the clip exceeds a window by, and with `stride`, where window k
    starts at `k * stride` and no remainder is dropped.

    Args:
        clips: clips from `read_split` or `read_folder`.
        sample_rate: sample rate of the waveforms, in Hz.
        clip_seconds: length of a window; None uses each whole clip as one window.
        chunks: number of windows of each clip that is longer than one; None = consecutive windows.
        stride: time from one window to the next, in seconds; None = consecutive windows.

    Attributes:
        ends: running total of windows, int64 `[clips]`; clip c ends with window `ends[c] - 1`.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sample_rate: int,
        clip_seconds: float | None,
        chunks: int | None = None,
        stride: float | None = None,
    ):
        super().__init__(clips, sample_rate)
        if clip_seconds is not None and not clip_seconds > 0:
            raise ValueError(f"clip_seconds must be above 0, got {clip_seconds}")
        if chunks is not None and (chunks < 1 or clip_seconds is None):
            raise ValueError(f"chunks must be at least 1 and needs clip_seconds, got {chunks} and {clip_seconds}")
        if stride is not None and (chunks is not None or clip_seconds is None or not 0 < stride <= clip_seconds):
            raise ValueError(f"stride must be in (0, clip_seconds], without chunks, got {stride} and {clip_seconds}")
        self.clip_seconds = clip_seconds
        self.chunks = chunks
        self.stride = stride
        counts = np.array([self._count(clip.seconds) for clip in self.clips], dtype=np.int64)
        self.ends = np.cumsum(counts)

    def _count(self, seconds: float) -> int:
        if self.clip_seconds is None:
            return 1
        if self.chunks is not None:
            return self.chunks if seconds > self.clip_seconds else 1
        if self.stride is not None:
            return 1 + max(0, math.ceil((seconds - self.clip_seconds) / self.stride))
        full, rest = divmod(seconds, self.clip_seconds)
        return max(1, int(full) + (rest >= _SHORTEST_WINDOW * self.clip_seconds))

    def start(self, clip: int, window: int) -> float:
        """Start of a window of a clip, in seconds."""
        if self.clip_seconds is None:
            return 0.0
        if self.chunks is None:
            return window * (self.stride or self.clip_seconds)
        return window * max(0.0, self.clips[clip].seconds - self.clip_seconds) / self.chunks

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load `{"audio": float32 [samples], "caption": "", "file": str, "clip": int}`; raises AudioError."""
        if not 0 <= index < len(self):
            raise IndexError(f"window must be in 0..{len(self) - 1}, got {index}")
        row = int(np.searchsorted(self.ends, index, side="right"))
        window = index - (int(self.ends[row - 1]) if row else 0)  # within its clip
        return self._item(row, self.start(row, window), self.clip_seconds, "")

    def windows(self, clip: int) -> int:
        """Number of windows of a clip."""
        return int(self.ends[clip] - (self.ends[clip - 1] if clip else 0))


@dataclass
class Batch:
    """N clips or windows, zero-padded to the longest. N is 0 if every file of the batch was skipped.

    Attributes:
        audio: waveforms `[N, S]`, float32.
        lengths: valid samples of each waveform `[N]`, int64.
        captions: caption of each clip in training, "" in evaluation.
        files: file name of each clip.
        clips: index of each clip in the split `[N]`, int64.
        skipped: (file name, reason) of each file that could not be decoded.
        notes: (file name, note) of each file whose audio was changed (see `load_audio`).
        timed: timed captions of each clip in training, if the dataset adds them; else empty.
    """

    audio: Tensor
    lengths: Tensor
    captions: list[str]
    files: list[str]
    clips: Tensor
    skipped: list[tuple[str, str]]
    notes: list[tuple[str, str]] = field(default_factory=list)
    timed: list[TimedTexts] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def sizes(self) -> list[int]:
        """The number of clips, as a list of one."""
        return [len(self)]

    def to(self: _BatchT, device: torch.device | str) -> _BatchT:
        """Copy the batch to `device`. From pinned memory, a copy to a GPU overlaps with computation."""
        to_gpu = torch.device(device).type == "cuda"  # a copy back to the CPU must finish before it is read
        return self._map(lambda tensor: tensor.to(device, non_blocking=to_gpu))

    def rows(self: _BatchT, first: int, last: int) -> _BatchT:
        """Slice clips `first` to `last - 1`, padded to the longest; `skipped` and `notes` go with the first clip."""
        values = {field.name: getattr(self, field.name)[first:last] for field in fields(self)}
        values["audio"] = values["audio"][:, : max(values["lengths"].tolist(), default=0)]
        values |= {"skipped": [], "notes": []} if first else {"skipped": self.skipped, "notes": self.notes}
        return type(self)(**values)

    def split(self: _BatchT, size: int) -> list[_BatchT]:
        """Split the batch into parts of at most `size` clips, in order."""
        return [self.rows(first, first + size) for first in range(0, len(self), size)]

    def pin_memory(self: _BatchT) -> _BatchT:
        """Copy the batch to page-locked memory; called by the loader."""
        return self._map(Tensor.pin_memory)

    def _map(self: _BatchT, function: Callable[[Tensor], Tensor]) -> _BatchT:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: function(v) if isinstance(v, Tensor) else v for name, v in values.items()})


def collate(items: Sequence[dict[str, Any] | AudioError], notes: Sequence[tuple[str, str]] = ()) -> Batch:
    """Pad dataset items to a batch; errors among the items go to `Batch.skipped`, and `notes` to `Batch.notes`."""
    good = [item for item in items if not isinstance(item, AudioError)]
    lengths = torch.tensor([len(item["audio"]) for item in good], dtype=torch.int64)
    audio = torch.zeros(len(good), max(lengths.tolist(), default=0))
    for row, item in zip(audio, good, strict=True):
        row[: len(item["audio"])] = item["audio"]
    return Batch(
        audio=audio,
        lengths=lengths,
        captions=[item["caption"] for item in good],
        files=[item["file"] for item in good],
        clips=torch.tensor([item["clip"] for item in good], dtype=torch.int64),
        skipped=[(item.file, item.reason) for item in items if isinstance(item, AudioError)],
        notes=list(notes),
        timed=[item["timed"] for item in good if "timed" in item],
    )
