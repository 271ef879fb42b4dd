"""Settings of unified training: the terms of its loss, how their weights change, and the model."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from atk.models.unified import UnifiedModelConfig
from atk.ops.checks import one_of
from atk.train.aligned import LossConfig
from atk.train.captioning import CaptioningConfig
from atk.train.config import fields_at_least
from atk.train.semisupervised_config import UnlabeledConfig, UnlabeledLossConfig

TERMS = ("global", "aligned", "mix", "unlabeled", "caption")
Schedule = list[tuple[float, float]]
Monitor = Literal["score", "mAP@10", "log_likelihood"]


@dataclass(frozen=True)
class UnifiedLossConfig(LossConfig, UnlabeledLossConfig):
    """Loss: the global and the aligned loss, the two losses that use unlabeled audio, and cross-entropy of captions.

    A schedule is a list of points (fraction of the run, factor of the weight), such as [[0.2, 0], [0.5, 1]]. The factor
    is linear between two points and constant before the first and after the last one; an empty list is a factor of 1.
    A term is not computed in steps in which its factor is 0.

    Args:
        caption_weight: weight of the cross-entropy of captions, of single clips and of what remains of mixtures without
            their references; 0 disables it.
        global_schedule: schedule of `global_weight`.
        aligned_schedule: schedule of `aligned_weight`.
        mix_schedule: schedule of `mix_weight`.
        unlabeled_schedule: schedule of `unlabeled_weight`.
        caption_schedule: schedule of `caption_weight`.
    """

    caption_weight: float = 1.0
    global_schedule: Schedule = field(default_factory=list)
    aligned_schedule: Schedule = field(default_factory=list)
    mix_schedule: Schedule = field(default_factory=list)
    unlabeled_schedule: Schedule = field(default_factory=list)
    caption_schedule: Schedule = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_timed:
            raise ValueError("timed_weight and frame_weight must be 0 in unified training")
        fields_at_least(self, 0, "global_weight", "aligned_weight", "caption_weight")
        points = {0.0, 1.0}
        for term in TERMS:
            name = f"{term}_schedule"
            object.__setattr__(self, name, checked_schedule(name, getattr(self, name)))
            points |= {at for at, _ in getattr(self, name)}
        for at in sorted(points):
            if not self.weights(at):
                raise ValueError(f"the weights of all terms of the loss are 0 at {at:g} of the run")

    @property
    def used(self) -> frozenset[str]:
        """The terms whose weight is not 0 throughout."""
        return frozenset(term for term in TERMS if getattr(self, f"{term}_weight") > 0)

    def weights(self, progress: float) -> dict[str, float]:
        """The terms whose weight is not 0 at a fraction of the run, and their weights."""
        weights = {}
        for term in TERMS:
            weight, schedule = getattr(self, f"{term}_weight"), getattr(self, f"{term}_schedule")
            if schedule:
                weight *= float(np.interp(progress, [at for at, _ in schedule], [factor for _, factor in schedule]))
            if weight > 0:
                weights[term] = weight
        return weights


def checked_schedule(name: str, schedule: Sequence[Sequence[float]]) -> Schedule:
    """A schedule as a list of pairs.

    Raises:
        ValueError: it is not a list of pairs in order, or a value is out of range.
    """
    if any(len(point) != 2 for point in schedule):
        raise ValueError(f"{name} must be a list of points [fraction of the run, factor], got {schedule}")
    points = [(float(at), float(factor)) for at, factor in schedule]
    fractions = [at for at, _ in points]
    if any(not 0 <= at <= 1 for at in fractions) or any(b <= a for a, b in itertools.pairwise(fractions)):
        raise ValueError(f"{name} must have increasing fractions of the run in [0, 1], got {fractions}")
    if wrong := [factor for _, factor in points if not 0 <= factor < float("inf")]:
        raise ValueError(f"{name} must have factors of at least 0, got {wrong[0]:g}")
    return points


@dataclass(frozen=True)
class UnifiedConfig(CaptioningConfig, UnlabeledConfig):
    """One model for retrieval, captioning, and audio difference, from captioned clips, unlabeled audio, and references.

    Args:
        monitor: validation metric that selects the best checkpoint: "mAP@10" of text-to-audio retrieval,
            "log_likelihood" of captions, or "score", the mean of mAP@10 and of the likelihood per token in percent, or
            the one of them that is trained.
        loss: weights of the five terms, and their schedules.
        model: the encoders, the Diff block, and the decoder.
    """

    backend: Literal["auto", "triton", "cpp", "chunked", "reference"] = "auto"
    monitor: Monitor = "score"
    loss: UnifiedLossConfig = field(default_factory=UnifiedLossConfig)
    model: UnifiedModelConfig = field(default_factory=UnifiedModelConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mix.common and self.model.difference != "mask":
            raise ValueError(f"mix.common: needs model.difference 'mask', got {self.model.difference!r}")
        if self.mixgen or self.tag_sampling is not None:
            raise ValueError("mixgen must be 0, and tag_sampling null, in unified training")
        if self.mapper.frames == "encoder":
            raise ValueError("mapper.frames must be 'projected' in unified training, got 'encoder'")
        one_of("monitor", self.monitor, get_args(Monitor))
        needed = {"mAP@10": self.retrieves, "log_likelihood": self.captions, "score": True}
        if not needed[self.monitor]:
            raise ValueError(f"monitor: no term of the loss that {self.monitor} needs has a weight above 0")

    @property
    def retrieves(self) -> bool:
        """Whether a contrastive term is trained."""
        return bool(self.loss.used - {"caption"})

    @property
    def captions(self) -> bool:
        """Whether the captioner is trained."""
        return "caption" in self.loss.used
