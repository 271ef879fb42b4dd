"""Clips as training crops or evaluation windows, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from atk.data.audio import AudioError, load_audio
from atk.data.captions import Clip

_SHORTEST_WINDOW = 0.1  # share of a window that the last one of a clip must fill


def random_stream(purpose: int, *key: int) -> np.random.Generator:
    """Random numbers that depend on nothing but `purpose` and `key`, whole numbers from 0."""
    # The length of the key is part of it: seeds are zero-padded, so (1, 2) and (1, 2, 0) would give one stream.
    return np.random.default_rng([purpose, len(key), *key])


class _Clips(Dataset):
    """What both data sets share. A file found bad raises AudioError alone, and stands as one in a batch."""

    def __init__(self, clips: Sequence[Clip], sample_rate: int):
        if not clips:
            raise ValueError("clips must hold at least one clip, got none")
        self.clips, self.sample_rate = list(clips), sample_rate

    def __getitem__(self, key: Any) -> dict[str, Any]:
        raise NotImplementedError

    def collate(self, items: Sequence[dict[str, Any] | AudioError]) -> "Batch":
        """The batch of these items."""
        return collate(items)

    def __getitems__(self, keys: Sequence[Any]) -> list[dict[str, Any] | AudioError]:
        """The items of a batch, with the error of each that cannot be read in its place."""
        return [self._item_or_error(key) for key in keys]

    def _item_or_error(self, key: Any) -> dict[str, Any] | AudioError:
        try:
            return self[key]
        except AudioError as error:
            return error

    def _item(self, index: int, start: float, seconds: float | None, caption: str) -> dict[str, Any]:
        clip = self.clips[index]
        try:
            audio = load_audio(clip.path, self.sample_rate, start, seconds)
        except AudioError as error:
            raise AudioError(clip.file_name, error.reason) from None
        return {"audio": audio, "caption": caption, "file": clip.file_name, "clip": index}


class TrainDataset(_Clips):
    """`dataset[index, epoch]`: a random crop of one clip and one of its captions, drawn at random.

    Both draws are a function of (seed, epoch, index) alone, whatever the worker and whenever a run was resumed.

    Args:
        clips: the clips of `read_split`, or of `read_folder` (their caption is "").
        sample_rate: of the waveforms, in Hz.
        clip_seconds: longest crop; shorter clips are taken whole.
        seed: of crops and captions, at least 0.
    """

    def __init__(self, clips: Sequence[Clip], sample_rate: int, clip_seconds: float, seed: int = 0):
        super().__init__(clips, sample_rate)
        self.clip_seconds, self.seed = clip_seconds, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The item `{"audio": float32 [samples], "caption": str, "file": str, "clip": int}`; raises AudioError."""
        index, epoch = key
        clip = self.clips[index]
        random = random_stream(1, self.seed, epoch, index)
        start = random.random() * max(0.0, clip.seconds - self.clip_seconds)
        caption = clip.captions[random.integers(len(clip.captions))] if clip.captions else ""
        return self._item(index, start, self.clip_seconds, caption)

    def silence(self) -> dict[str, Any]:
        """An item of silence, which is no clip."""
        samples = torch.zeros(round(self.sample_rate * self.clip_seconds))
        return {"audio": samples, "caption": "", "file": "", "clip": 0}


class EvalDataset(_Clips):
    """`dataset[i]`: window i of all clips, in order. The windows of a clip are adjacent and cover it.

    The last window of a clip is its remainder, left out below a tenth of a window unless it is the only one. Windows
    keep the memory of a batch bounded for hours-long files.

    Args:
        clips: the clips of `read_split` or `read_folder`.
        sample_rate: of the waveforms, in Hz.
        clip_seconds: length of a window; None takes every clip whole, as one window.
    """

    def __init__(self, clips: Sequence[Clip], sample_rate: int, clip_seconds: float | None):
        super().__init__(clips, sample_rate)
        if clip_seconds is not None and not clip_seconds > 0:
            raise ValueError(f"clip_seconds must be above 0, got {clip_seconds}")
        self.clip_seconds = clip_seconds
        counts = np.array([self._count(clip.seconds) for clip in self.clips], dtype=np.int64)
        self.ends = np.cumsum(counts)  # window `ends[c] - 1` is the last one of clip c

    def _count(self, seconds: float) -> int:
        if self.clip_seconds is None:
            return 1
        whole, rest = divmod(seconds, self.clip_seconds)
        return max(1, int(whole) + (rest >= _SHORTEST_WINDOW * self.clip_seconds))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, window: int) -> dict[str, Any]:
        """The item `{"audio": float32 [samples], "caption": "", "file": str, "clip": int}`; raises AudioError."""
        if not 0 <= window < len(self):
            raise IndexError(f"window must be in 0..{len(self) - 1}, got {window}")
        index = int(np.searchsorted(self.ends, window, side="right"))
        number = window - (int(self.ends[index - 1]) if index else 0)
        return self._item(index, number * (self.clip_seconds or 0.0), self.clip_seconds, "")


@dataclass
class Batch:
    """N clips or windows, zero-padded to the longest. N is 0 where every file of a batch was skipped.

    Attributes:
        audio: waveforms `[N, S]`, float32.
        lengths: valid samples of each `[N]`, int64.
        captions: the caption drawn for each in training, "" in evaluation.
        files: their file names.
        clips: their numbers in the split `[N]`, int64.
        skipped: (file name, reason) of those left out because they could not be decoded.
    """

    audio: Tensor
    lengths: Tensor
    captions: list[str]
    files: list[str]
    clips: Tensor
    skipped: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def sides(self) -> list[int]:
        """Clips, as a list of one."""
        return [len(self)]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; a copy to a GPU overlaps with computation where memory is pinned."""
        overlap = torch.device(device).type == "cuda"  # the way back must be waited for
        return self._map(lambda tensor: tensor.to(device, non_blocking=overlap))

    def rows(self, first: int, last: int) -> "Batch":
        """Clips `first` up to `last`, padded to the longest of them; what was skipped stays with clip 0."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        own = {name: value[first:last] for name, value in own.items()}
        own["audio"] = own["audio"][:, : max(own["lengths"].tolist(), default=0)]
        return type(self)(**own | {"skipped": [] if first else self.skipped})

    def split(self, size: int) -> "list[Batch]":
        """Parts of at most `size` clips, in order."""
        return [self.rows(first, first + size) for first in range(0, len(self), size)]

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the loader calls it."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: function(v) if isinstance(v, Tensor) else v for name, v in values.items()})


def collate(items: Sequence[dict[str, Any] | AudioError]) -> Batch:
    """Pad the items of a data set to one batch; the errors among them go to `Batch.skipped`."""
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
    )
