"""Mixtures of clips with recordings that are to be ignored: `x_plus = x + x_ref` (4.6), and their references."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atk.checks import one_of
from atk.data.audio import AudioError, load_audio
from atk.data.captions import Clip
from atk.data.dataset import Batch, TrainDataset, collate, random_stream
from atk.data.references import ReferencePool

CONDITIONS = ("same/same", "same/diff", "diff/diff", "multi/same", "multi/diff")


@dataclass(frozen=True)
class MixConfig:
    """What is mixed into a clip, and what the model is given to subtract.

    Args:
        references: folder of recordings (ESC-50's layout, captioned, or any audio); None: other clips of train.csv.
        condition: source/time of the reference: "same/same" the added sound itself; "same/diff" the same recording at
            another time; "diff/diff" another recording of its class; "multi/same", "multi/diff" several added sounds.
        rate: share of the training clips that are mixed; the others are captioned alone.
        snr_db: power of the clip over that of all added sound, in dB, (lowest, highest).
        sources: most sounds that are added in the "multi" conditions; two at least.
        test_folds: folds of ESC-50's layout kept for evaluation.
    """

    references: str | None = None
    condition: str = "same/same"
    rate: float = 0.5
    snr_db: tuple[float, float] = (0.0, 10.0)
    sources: int = 3
    test_folds: tuple[int, ...] = (5,)

    def __post_init__(self):
        for name in ("snr_db", "test_folds"):  # lists, as read from YAML
            object.__setattr__(self, name, tuple(getattr(self, name)))
        one_of("condition", self.condition, CONDITIONS)
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must be in 0 .. 1, got {self.rate}")
        if len(self.snr_db) != 2 or not -60 <= self.snr_db[0] <= self.snr_db[1] <= 60:
            raise ValueError(f"snr_db must be (lowest, highest) within -60 .. 60 dB, got {self.snr_db}")
        if self.sources < 2:
            raise ValueError(f"sources must be at least 2, got {self.sources}")


@dataclass
class MixtureBatch(Batch):
    """A batch whose `audio` may be mixtures.

    Attributes:
        references: waveforms to subtract `[N, R, S_ref]`, float32, zero-padded; R is 0 where no clip has any.
        reference_lengths: valid samples of each `[N, R]`, int64; 0 where a clip has fewer than R.
        inputs: the clips before anything was added `[N, S]`, or `[N, 0]` in training.
        added: names of the recordings mixed into each clip.
    """

    references: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    reference_lengths: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    inputs: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    added: list[tuple[str, ...]] = field(default_factory=list)


class MixtureDataset(TrainDataset):
    """`dataset[index, epoch]`: a clip, mixed with recordings of a pool and given with references, or left alone.

    All draws are a function of (seed, epoch, index) alone.

    Args:
        clips, sample_rate, clip_seconds, seed: as in `TrainDataset`.
        mix: how to mix.
        pool: recordings to mix in; None leaves every clip alone.
        pairs: PairMix instead: mix with another clip, join the captions with "and", give no reference.
        evaluate: take every clip from its start, mix every one, and keep the clips before mixing.
        avoid: for each clip, classes that are not mixed into it.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sample_rate: int,
        clip_seconds: float,
        seed: int = 0,
        *,
        mix: MixConfig,
        pool: ReferencePool | None,
        pairs: bool = False,
        evaluate: bool = False,
        avoid: Sequence[Collection[str]] | None = None,
    ):
        super().__init__(clips, sample_rate, clip_seconds, seed)
        self.mix, self.pool, self.pairs, self.evaluate, self.avoid = mix, pool, pairs, evaluate, avoid
        if pool is not None and mix.condition == "diff/diff":
            pool.check_classes()

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """`TrainDataset`'s item with "references" and "added", and "input" in evaluation; raises AudioError."""
        index, epoch = key
        item = self._item(index, 0.0, self.clip_seconds, "") if self.evaluate else super().__getitem__(key)
        item |= {"references": [], "added": ()}
        if self.evaluate:
            item["input"] = item["audio"]
        random = random_stream(3, self.seed, epoch, index)
        if self.pool is None or random.random() >= (1.0 if self.evaluate else self.mix.rate):
            return item
        snr_db = random.uniform(*self.mix.snr_db)
        return self._pair(item, random, snr_db) if self.pairs else self._mixture(item, random, snr_db)

    def collate(self, items: Sequence[dict[str, Any] | AudioError]) -> MixtureBatch:
        """Pad the items to one batch; the errors among them go to `skipped`."""
        batch = collate(items)
        good = [item for item in items if not isinstance(item, AudioError)]
        most = max((len(item["references"]) for item in good), default=0)
        longest = max((len(track) for item in good for track in item["references"]), default=0)
        references = torch.zeros(len(good), most, longest)
        lengths = torch.zeros(len(good), most, dtype=torch.int64)
        inputs = torch.zeros(len(good), batch.audio.shape[1] if self.evaluate else 0)
        for row, item in enumerate(good):
            for number, track in enumerate(item["references"]):
                references[row, number, : len(track)] = track
                lengths[row, number] = len(track)
            if self.evaluate:
                inputs[row, : len(item["input"])] = item["input"]
        added = [item["added"] for item in good]
        mixed = {"references": references, "reference_lengths": lengths, "inputs": inputs, "added": added}
        return MixtureBatch(**vars(batch), **mixed)

    def _pair(self, item: dict[str, Any], random: np.random.Generator, snr_db: float) -> dict[str, Any]:
        number = self.pool.draw(random, 1, self.clips[item["clip"]])[0]
        other = self._recording(number, item["audio"], random)
        captions = self.pool.clips[number].captions
        audio = item["audio"] + other * snr_gain(item["audio"], other, snr_db)
        caption = f"{item['caption']} and {captions[random.integers(len(captions))]}"
        return item | {"audio": audio / _overload(audio), "caption": caption}

    def _mixture(self, item: dict[str, Any], random: np.random.Generator, snr_db: float) -> dict[str, Any]:
        several, shifted = self.mix.condition.startswith("multi"), self.mix.condition.endswith("diff")
        count = int(random.integers(2, self.mix.sources + 1)) if several else 1
        clip = item["audio"]
        avoid = self.avoid[item["clip"]] if self.avoid else frozenset()
        numbers = self.pool.draw(random, count, self.clips[item["clip"]], avoid)
        tracks = torch.stack([self._recording(number, clip, random) for number in numbers])
        tracks *= snr_gain(clip, tracks.sum(0), snr_db)
        audio = clip + tracks.sum(0)
        references = list(tracks)
        if shifted:
            references = [self._reference(number, track, random) for number, track in zip(numbers, tracks, strict=True)]
        loudest = _overload(audio)
        mixed = {
            "audio": audio / loudest,
            "references": [reference / loudest for reference in references],
            "added": tuple(self.pool.clips[number].file_name for number in numbers),
        }
        if self.evaluate:
            mixed["input"] = clip / loudest
        return item | mixed

    def _recording(self, number: int, clip: Tensor, random: np.random.Generator) -> Tensor:
        """Recording `number` of the pool somewhere in a track as long as `clip`."""
        recording = self.pool.clips[number]
        seconds = len(clip) / self.sample_rate
        start = random.random() * max(0.0, recording.seconds - seconds)
        try:
            audio = load_audio(recording.path, self.sample_rate, start, seconds)[: len(clip)]
        except AudioError as error:
            raise AudioError(recording.file_name, error.reason) from None
        before = int(random.integers(len(clip) - len(audio) + 1))
        return F.pad(audio, (before, len(clip) - len(audio) - before))

    def _reference(self, number: int, track: Tensor, random: np.random.Generator) -> Tensor:
        """The recording at another time, or another one of its class, as loud as `track`."""
        if self.mix.condition == "diff/diff":
            number = self.pool.another(random, number)
        other = self._recording(number, track, random)
        return other * snr_gain(track, other, 0.0)


def snr_gain(clip: Tensor, added: Tensor, snr_db: float) -> float:
    """Factor for `added` `[S]` that puts the power of `clip` `[S]` `snr_db` dB above its own.

    Powers are means over the samples that are not exactly zero, so that silence around a sound does not count. 1 where
    one of the two is silent.
    """
    powers = [float(x.square().sum()) / max(1, int(x.count_nonzero())) for x in (clip, added)]
    return (powers[0] / powers[1] * 10 ** (-snr_db / 10)) ** 0.5 if min(powers) > 0 else 1.0


def _overload(audio: Tensor) -> float:
    """What to divide by so that no sample lies beyond full scale."""
    return max(1.0, float(audio.abs().max()))
