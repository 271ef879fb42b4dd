"""Mixtures of clips with recordings that are to be ignored: `x_plus = x + x_ref` (4.6), and their references."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atk.data.audio import AudioError, load_audio
from atk.data.captions import Clip
from atk.data.dataset import Batch, TrainDataset, collate, random_stream
from atk.data.references import ReferencePool
from atk.ops.checks import one_of

CONDITIONS = ("same/same", "same/diff", "diff/diff", "multi/same", "multi/diff")
_QUIET, _SILENT = 1e-4, 1e-7  # powers at -40 and -70 dB of full scale; the dither of 16 bits lies below -90 dB
_WINDOWS = 4  # of a recording that are tried before it counts as quiet
_SHORTEST_SHIFT = 0.05  # share of the clip between the two places of a recording at another time


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
        added: names of the recordings mixed into each clip; none where nothing was, or only silence was found.
    """

    references: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    reference_lengths: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    inputs: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    added: list[tuple[str, ...]] = field(default_factory=list)


class _Placed(NamedTuple):
    """A recording in a track as long as the clip, `[S]`, and where it starts there, in samples (negative: before)."""

    track: Tensor
    start: float


class MixtureDataset(TrainDataset):
    """`dataset[index, epoch]`: a clip, mixed with recordings of a pool and given with references, or left alone.

    All draws are a function of (seed, epoch, index) alone. Windows of a recording that are nearly silent are drawn
    again; a recording with nothing above -70 dB of full scale is not mixed in.

    Args:
        clips, sample_rate, clip_seconds, seed: as in `TrainDataset`.
        mix: how to mix.
        pool: recordings to mix in; None leaves every clip alone.
        pairs: PairMix instead: mix with another clip, join the captions with "and", give no reference.
        evaluate: take every clip from its start, mix every one that can be, and keep the clips before mixing.
        avoid: for each clip, classes that are not mixed into it.

    Raises:
        ValueError: nothing of the pool can be mixed into a clip (in evaluation: into any), or the condition needs
            classes that the pool has not.
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
        if pool is not None and (evaluate or mix.rate > 0):
            self._check_choices()

    def _check_choices(self) -> None:
        alone = [clip.file_name for index, clip in enumerate(self.clips) if not self.pool.has_choice(*self._of(index))]
        if alone and (not self.evaluate or len(alone) == len(self.clips)):
            raise ValueError(f"references: none of {len(self.pool.clips)} can be mixed into {alone[0]}")

    def _of(self, index: int) -> tuple[Clip, Collection[str], int]:
        """What limits the choice of recordings for a clip, as `ReferencePool.choices` takes it."""
        least = 2 if self.mix.condition == "diff/diff" else 1
        return self.clips[index], self.avoid[index] if self.avoid else frozenset(), least

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

    def silence(self) -> dict[str, Any]:
        """As of `TrainDataset`, without a reference."""
        return super().silence() | {"references": [], "added": ()}

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
        number = self.pool.draw(random, 1, *self._of(item["clip"]))[0]
        other = self._recording(number, item["audio"], random)
        if other is None:
            return item
        captions = self.pool.clips[number].captions
        audio = item["audio"] + other.track * snr_gain(item["audio"], other.track, snr_db)
        caption = f"{item['caption']} and {captions[random.integers(len(captions))]}"
        return item | {"audio": audio / _overload(audio), "caption": caption}

    def _mixture(self, item: dict[str, Any], random: np.random.Generator, snr_db: float) -> dict[str, Any]:
        several, shifted = self.mix.condition.startswith("multi"), self.mix.condition.endswith("diff")
        count = int(random.integers(2, self.mix.sources + 1)) if several else 1
        index, clip = item["clip"], item["audio"]
        sounds = {n: self._recording(n, clip, random) for n in self.pool.draw(random, count, *self._of(index))}
        sounds = {n: sound for n, sound in sounds.items() if sound is not None}
        if shifted:
            others = {n: self._reference(n, sound, random, self.clips[index]) for n, sound in sounds.items()}
            sounds = {n: sound for n, sound in sounds.items() if others[n] is not None}
        if not sounds:
            return item
        tracks = torch.stack([sound.track for sound in sounds.values()])
        tracks *= snr_gain(clip, tracks.sum(0), snr_db)
        audio, references = clip + tracks.sum(0), list(tracks)
        if shifted:
            references = [others[n] * snr_gain(track, others[n], 0.0) for n, track in zip(sounds, tracks, strict=True)]
        loudest = _overload(audio)
        mixed = {
            "audio": audio / loudest,
            "references": [reference / loudest for reference in references],
            "added": tuple(self.pool.clips[number].file_name for number in sounds),
        }
        if self.evaluate:
            mixed["input"] = clip / loudest
        return item | mixed

    def _recording(self, number: int, clip: Tensor, random: np.random.Generator) -> _Placed | None:
        """Recording `number` of the pool somewhere in a track as long as `clip`; None where it is silent."""
        recording = self.pool.clips[number]
        seconds = len(clip) / self.sample_rate
        beyond = max(0.0, recording.seconds - seconds)
        loudest, start, audio = _SILENT, 0.0, None
        for _ in range(_WINDOWS if beyond else 1):
            first = random.random() * beyond
            window = self._window(recording, first, seconds)[: len(clip)]
            if _power(window) > loudest:
                loudest, start, audio = _power(window), first, window
            if loudest > _QUIET:
                break
        if audio is None:
            return None
        before = int(random.integers(len(clip) - len(audio) + 1))
        return _Placed(F.pad(audio, (before, len(clip) - len(audio) - before)), before - start * self.sample_rate)

    def _window(self, recording: Clip, start: float, seconds: float) -> Tensor:
        try:
            return load_audio(recording.path, self.sample_rate, start, seconds)
        except AudioError as error:
            raise AudioError(recording.file_name, error.reason) from None

    def _reference(self, number: int, sound: _Placed, random: np.random.Generator, clip: Clip) -> Tensor | None:
        """The recording at another time, or another one of its class; None where that is silent."""
        if self.mix.condition == "diff/diff":
            other = self._recording(self.pool.another(random, number, clip), sound.track, random)
            return None if other is None else other.track
        other = self._recording(number, sound.track, random)
        samples = len(sound.track)
        shortest = math.ceil(_SHORTEST_SHIFT * samples)
        if other is not None and abs(other.start - sound.start) >= shortest:
            return other.track
        # A recording as long as the clip has one place in it: its end goes before its start.
        return sound.track.roll(int(random.integers(shortest, max(shortest, samples - shortest) + 1)))


def snr_gain(clip: Tensor, added: Tensor, snr_db: float) -> float:
    """Factor for `added` `[S]` that puts the power of `clip` `[S]` `snr_db` dB above its own.

    Powers are means over the samples that are not exactly zero, so that silence around a sound does not count. 1 where
    one of the two is silent.
    """
    powers = [_power(x) for x in (clip, added)]
    return (powers[0] / powers[1] * 10 ** (-snr_db / 10)) ** 0.5 if min(powers) > 0 else 1.0


def _power(audio: Tensor) -> float:
    return float(audio.square().sum()) / max(1, int(audio.count_nonzero()))


def _overload(audio: Tensor) -> float:
    """What to divide by so that no sample lies beyond full scale."""
    return max(1.0, float(audio.abs().max()))
