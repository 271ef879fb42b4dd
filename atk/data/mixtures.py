"""Mixtures of clips with reference recordings, `x_plus = x + x_ref` (thesis 4.6), and the references to subtract."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atk.data.audio import AudioError
from atk.data.captions import Clip
from atk.data.dataset import Batch, TrainDataset, random_stream
from atk.data.levels import overload, power, snr_gain
from atk.data.references import ReferencePool
from atk.ops.checks import one_of

Condition = Literal["same/same", "same/diff", "diff/diff", "multi/same", "multi/diff"]
CONDITIONS = get_args(Condition)
_QUIET = 1e-4  # power at -40 dB relative to full scale
_SILENT = 1e-7  # power at -70 dB relative to full scale; 16-bit dither is below -90 dB
_WINDOWS = 4  # windows of a recording to try before it counts as quiet
_SHORTEST_SHIFT = 0.05  # smallest time shift of a reference, as a fraction of the clip

_T = TypeVar("_T")


@dataclass(frozen=True)
class MixConfig:
    """What is mixed into a clip, and which reference the model subtracts.

    Args:
        references: folder of recordings (ESC-50 layout, captioned, or any audio); null uses other clips of train.csv.
        condition: source/time of the reference: "same/same" is the added sound itself, "same/diff" the same recording
            at another time, and "diff/diff" another recording of its class. "multi/same" and "multi/diff" add several
            sounds.
        rate: fraction of the training clips that are mixed; the others are captioned as they are.
        common: fraction of the mixed training clips for which the model learns what two clips have in common: the clip
            is mixed with one sound in the input and with another one in the reference; for a mask only.
        snr_db: power of the clip relative to all added sound, in dB, as (lowest, highest); null adds the recordings as
            they are (4.6), without any change of level.
        sources: maximum number of added sounds in the "multi" conditions; at least 2.
        test_folds: folds of the ESC-50 layout that are held out for evaluation.
    """

    references: str | None = None
    condition: Condition = "same/same"
    rate: float = 0.5
    snr_db: tuple[float, float] | None = (0.0, 10.0)
    sources: int = 3
    test_folds: tuple[int, ...] = (5,)
    common: float = 0.0

    def __post_init__(self):
        for name in ("snr_db", "test_folds"):  # YAML gives lists
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        one_of("condition", self.condition, CONDITIONS)
        for name in ("rate", "common"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        levels = self.snr_db
        if levels is not None and (len(levels) != 2 or not -60 <= levels[0] <= levels[1] <= 60):
            raise ValueError(f"snr_db must be (lowest, highest) within [-60, 60] dB, got {levels}")
        if self.sources < 2:
            raise ValueError(f"sources must be at least 2, got {self.sources}")


@dataclass
class MixtureBatch(Batch):
    """Batch whose `audio` may contain mixtures.

    Attributes:
        references: waveforms to subtract `[N, R, S_ref]`, float32, zero-padded; R is 0 if no clip has a reference.
        reference_lengths: valid samples of each reference `[N, R]`, int64; 0 where a clip has fewer than R references.
        inputs: clips before mixing `[N, S]`, float32; `[N, 0]` unless the dataset keeps them.
        added: names of the recordings mixed into each clip; empty if nothing was mixed in.
        common: whether the caption describes what clip and reference have in common `[N]`, boolean.
    """

    references: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    reference_lengths: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    inputs: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    added: list[tuple[str, ...]] = field(default_factory=list)
    common: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def unmixed(self) -> Batch:
        """The batch with the clips before mixing."""
        values = {field.name: getattr(self, field.name) for field in fields(Batch)}
        return Batch(**values | {"audio": self.inputs[:, : self.audio.shape[1]]})


class _Placed(NamedTuple):
    """A recording padded to the clip's length `[S]`, and its start in samples; negative if before the clip."""

    track: Tensor
    start: float


class MixtureDataset(TrainDataset):
    """Mixture dataset: `dataset[clip, epoch]` is a clip, unchanged or mixed with recordings, and its references.

    All draws are a function of (seed, epoch, clip) alone. Nearly silent windows of a recording are redrawn, and a
    recording with nothing above -70 dB relative to full scale is not mixed in.

    Args:
        clips, sample_rate, clip_seconds, seed: as in `TrainDataset`.
        mix: mixing settings.
        pool: recordings to mix in; None leaves every clip unchanged.
        pairs: use PairMix instead: mix with another clip, join the captions with "and", and give no reference.
        evaluate: start every clip at 0, mix every clip for which the pool has a recording, and keep each original at
            its level in the mixture.
        keep_inputs: keep each original as it was read.
        avoid: for each clip, the classes that are not mixed into it.

    Raises:
        ValueError: the pool has no recording for some clip (in evaluation: for any clip), or has no classes although
            the condition needs them.
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
        keep_inputs: bool = False,
        avoid: Sequence[Collection[str]] | None = None,
    ):
        super().__init__(clips, sample_rate, clip_seconds, seed)
        self.mix = mix
        self.pool = pool
        self.pairs = pairs
        self.evaluate = evaluate
        self.keep_inputs = evaluate or keep_inputs
        self.avoid = avoid
        if pool is not None and mix.condition == "diff/diff":
            pool.check_classes()
        if pool is not None and (evaluate or mix.rate > 0):
            self._check_choices(pool)

    def _check_choices(self, pool: ReferencePool) -> None:
        unmixable = [clip.file_name for row, clip in enumerate(self.clips) if not pool.has_choice(*self._limits(row))]
        if unmixable and (not self.evaluate or len(unmixable) == len(self.clips)):
            raise ValueError(f"references: none of {len(pool.clips)} can be mixed into {unmixable[0]}")

    def _limits(self, row: int) -> tuple[Clip, Collection[str], int]:
        """Arguments `clip`, `avoid`, and `least` of `ReferencePool.choices` for a clip."""
        least = 2 if self.mix.condition == "diff/diff" else 1
        return self.clips[row], self.avoid[row] if self.avoid else frozenset(), least

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """Load the item of `TrainDataset` plus "references", "added", and "input"; raises AudioError."""
        row, epoch = index
        item = self._item(row, 0.0, self.clip_seconds, "") if self.evaluate else super().__getitem__(index)
        item |= {"references": [], "added": (), "input": item["audio"]}
        random = random_stream(3, self.seed, epoch, row)
        if self.pool is None or random.random() >= (1.0 if self.evaluate else self.mix.rate):
            return item
        snr_db = None if self.mix.snr_db is None else random.uniform(*self.mix.snr_db)
        mix = self._pair if self.pairs else self._mixture
        if self.mix.common > 0 and not self.evaluate and random.random() < self.mix.common:
            mix = self._common
        return mix(self.pool, item, random, snr_db)

    def silence(self) -> dict[str, Any]:
        """A silent placeholder item without references."""
        item = super().silence()
        return item | {"references": [], "added": (), "input": item["audio"]}

    def collate(self, items: Sequence[dict[str, Any] | AudioError]) -> MixtureBatch:
        """Pad items to a batch; errors among the items go to `skipped`."""
        batch = super().collate(items)
        good = [item for item in items if not isinstance(item, AudioError)]
        count = max((len(item["references"]) for item in good), default=0)
        longest = max((len(track) for item in good for track in item["references"]), default=0)
        references = torch.zeros(len(good), count, longest)
        lengths = torch.zeros(len(good), count, dtype=torch.int64)
        inputs = torch.zeros(len(good), batch.audio.shape[1] if self.keep_inputs else 0)
        for row, item in enumerate(good):
            for column, track in enumerate(item["references"]):
                references[row, column, : len(track)] = track
                lengths[row, column] = len(track)
            if self.keep_inputs:
                inputs[row, : len(item["input"])] = item["input"]
        return MixtureBatch(
            **vars(batch),
            references=references,
            reference_lengths=lengths,
            inputs=inputs,
            added=[item["added"] for item in good],
            common=torch.tensor([item.get("common", False) for item in good], dtype=torch.bool),
        )

    def _pair(
        self, pool: ReferencePool, item: dict[str, Any], random: np.random.Generator, snr_db: float | None
    ) -> dict[str, Any]:
        recording = pool.clips[pool.draw(random, 1, *self._limits(item["clip"]))[0]]
        placed = self._place(recording, item["audio"], random)
        if placed is None:
            return item
        audio = item["audio"] + placed.track * snr_gain(item["audio"], placed.track, snr_db)
        caption = f"{item['caption']} and {recording.captions[random.integers(len(recording.captions))]}"
        return item | {"audio": audio / overload(audio, snr_db), "caption": caption, "added": (recording.file_name,)}

    def _mixture(
        self, pool: ReferencePool, item: dict[str, Any], random: np.random.Generator, snr_db: float | None
    ) -> dict[str, Any]:
        clip = item["audio"]
        count = int(random.integers(2, self.mix.sources + 1)) if self.mix.condition.startswith("multi") else 1
        drawn = pool.draw(random, count, *self._limits(item["clip"]))
        sounds = _present({index: self._place(pool.clips[index], clip, random) for index in drawn})
        shifted: dict[int, Tensor] = {}
        if self.mix.condition.endswith("diff"):
            source = self.clips[item["clip"]]
            shifted = _present({n: self._reference(pool, n, sound, random, source) for n, sound in sounds.items()})
            sounds = {index: sounds[index] for index in shifted}
        if not sounds:
            return item
        tracks = torch.stack([sound.track for sound in sounds.values()])
        tracks *= snr_gain(clip, tracks.sum(0), snr_db)
        audio = clip + tracks.sum(0)
        references = list(tracks)
        if shifted:
            references = [
                reference * snr_gain(track, reference, None if snr_db is None else 0.0)
                for reference, track in zip(shifted.values(), tracks, strict=True)
            ]
        loudest = overload(audio, snr_db)
        mixed = {
            "audio": audio / loudest,
            "references": [reference / loudest for reference in references],
            "added": tuple(pool.clips[index].file_name for index in sounds),
        }
        if self.evaluate:
            mixed["input"] = clip / loudest
        return item | mixed

    def _common(
        self, pool: ReferencePool, item: dict[str, Any], random: np.random.Generator, snr_db: float | None
    ) -> dict[str, Any]:
        """The clip mixed with one recording, and as the reference the clip mixed with another one."""
        clip = item["audio"]
        drawn = pool.draw(random, 2, *self._limits(item["clip"]))
        sounds = _present({index: self._place(pool.clips[index], clip, random) for index in drawn})
        if len(sounds) < 2:
            return item
        first, second = (clip + x.track * snr_gain(clip, x.track, snr_db) for x in sounds.values())
        return item | {
            "audio": first / overload(first, snr_db),
            "references": [second / overload(second, snr_db)],
            "added": (pool.clips[next(iter(sounds))].file_name,),
            "common": True,
        }

    def _place(self, recording: Clip, clip: Tensor, random: np.random.Generator) -> _Placed | None:
        """Place a recording at random in a track as long as `clip`; None if the recording is silent."""
        seconds = len(clip) / self.sample_rate
        excess = max(0.0, recording.seconds - seconds)
        loudest = _SILENT
        start = 0.0
        audio = None
        for _ in range(_WINDOWS if excess else 1):
            first = random.random() * excess
            window = self._window(recording, first, seconds)[: len(clip)]
            if power(window) > loudest:
                loudest, start, audio = power(window), first, window
            if loudest > _QUIET:
                break
        if audio is None:
            return None
        before = int(random.integers(len(clip) - len(audio) + 1))
        return _Placed(F.pad(audio, (before, len(clip) - len(audio) - before)), before - start * self.sample_rate)

    def _reference(
        self, pool: ReferencePool, index: int, sound: _Placed, random: np.random.Generator, clip: Clip
    ) -> Tensor | None:
        """Recording `index` at another time, or another recording of its class; None if the latter is silent."""
        if self.mix.condition == "diff/diff":
            placed = self._place(pool.clips[pool.another(random, index, clip)], sound.track, random)
            return None if placed is None else placed.track
        placed = self._place(pool.clips[index], sound.track, random)
        samples = len(sound.track)
        shortest = math.ceil(_SHORTEST_SHIFT * samples)
        if placed is not None and abs(placed.start - sound.start) >= shortest:
            return placed.track
        # A recording as long as the clip fits in only one place, so it is rotated instead.
        return sound.track.roll(int(random.integers(shortest, max(shortest, samples - shortest) + 1)))


def _present(values: dict[int, _T | None]) -> dict[int, _T]:
    """`values` without None."""
    return {index: value for index, value in values.items() if value is not None}
