"""Aligned contrastive learning (thesis ch. 3): `L_total = L_global + L_align` (3.7)."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from atk.data.dataset import Batch
from atk.models.clap import AudioEmbedding, TextEmbedding
from atk.nn import AlignedContrastiveLoss, TripletLoss
from atk.nn.timed import TimedLoss
from atk.ops.checks import at_least, one_of
from atk.ops.max_mean import DIRECTIONS, Direction
from atk.train.contrastive import ContrastiveConfig, ContrastiveTask, PairLossConfig, readings_of, train_contrastive
from atk.train.grad_cache import Embeddings
from atk.train.timed import timed_embeddings, timed_source, timed_tokens


@dataclass(frozen=True)
class LossConfig(PairLossConfig):
    """Loss: InfoNCE or the sigmoid loss between clips and captions, plus the same between their frames and tokens. The
    triplet loss is between clips and captions only.

    Args:
        global_weight: weight of the loss on the cosine of the global vectors; 0 disables it.
        aligned_weight: weight of the loss on the max-mean similarity of frames and tokens; 0 disables it.
        direction: "audio" matches every frame with its best token, "text" every token with its best frame; "both" takes
            the mean of the two max-mean similarities.
        skip_below: the backward of the aligned loss skips pairs whose weight in the gradient is below this value, which
            makes it faster; 0 skips none and is exact.
        timed_weight: weight of the aligned loss between timed captions (events.csv) and the frames inside their spans.
        frame_weight: weight of the sigmoid loss of every frame and every timed caption of the batch.
        frame_temperature: at the start, inverse of the factor of a frame's similarity to a text, which is learned.
        frame_bias: at the start, what is added to that product, which is also learned.
        timed_captions: most timed captions of a clip in one step; of more, some are drawn at random.
    """

    global_weight: float = 1.0
    aligned_weight: float = 1.0
    direction: Direction = "audio"
    skip_below: float = 0.0
    timed_weight: float = 0.0
    frame_weight: float = 0.0
    frame_temperature: float = 0.1
    frame_bias: float = -5.0
    timed_captions: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("direction", self.direction, DIRECTIONS)
        at_least("timed_weight", self.timed_weight, 0)
        at_least("frame_weight", self.frame_weight, 0)
        at_least("timed_captions", self.timed_captions, 1)
        if not self.frame_temperature > 0:
            raise ValueError(f"frame_temperature must be above 0, got {self.frame_temperature}")
        if self.kind == "triplet":
            self._check_triplet()

    def _check_triplet(self) -> None:
        if self.aligned_weight or not self.global_weight:
            raise ValueError(
                "aligned_weight must be 0, and global_weight above 0, for the triplet loss, which compares global "
                f"vectors only, got {self.aligned_weight} and {self.global_weight}"
            )
        if self.is_timed:
            raise ValueError("timed_weight and frame_weight must be 0 for the triplet loss")

    @property
    def aligns_frames(self) -> bool:
        """Whether frames and tokens are aligned in addition to the global vectors."""
        return self.global_weight > 0 and (self.aligned_weight > 0 or self.is_timed)

    @property
    def is_timed(self) -> bool:
        """Whether timed captions are used."""
        return self.timed_weight > 0 or self.frame_weight > 0


@dataclass(frozen=True)
class AlignedConfig(ContrastiveConfig):
    """Aligned contrastive learning.

    Args:
        loss: global and aligned loss.
    """

    backend: Literal["auto", "triton", "cpp", "chunked", "reference"] = "auto"
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixgen and self.loss.is_timed:
            raise ValueError("mixgen must be 0 with timed captions, which describe single clips")


class AlignedTask(ContrastiveTask[AlignedConfig, AlignedContrastiveLoss | TripletLoss]):
    """Aligned contrastive learning, for `atk.train.trainer.Trainer`."""

    method = "aligned"
    timed: TimedLoss | None = None  # a part of the criterion

    def __init__(self, config: AlignedConfig, device: torch.device, checkpoint: Path | None = None):
        super().__init__(config, device, checkpoint)
        if config.loss.is_timed:
            self.dataset.timed = timed_source(self.data, self.clips, config.loss.timed_captions)

    def make_criterion(self) -> AlignedContrastiveLoss | TripletLoss:
        """The configured loss."""
        loss = self.config.loss
        if loss.kind == "triplet":
            return TripletLoss(loss.margin, loss.negatives, loss.reduction, gather=self.config.gather)
        start = self.starting_point
        criterion = AlignedContrastiveLoss(
            start.temperature,
            loss.learns,
            loss.reduction,
            global_weight=loss.global_weight,
            aligned_weight=loss.aligned_weight,
            direction=loss.direction,
            skip_below=loss.skip_below,
            backend=self.config.backend,
            gather=self.config.gather,
            loss=loss.kind,
            bias=start.bias,
        )
        if loss.is_timed:
            self.timed = TimedLoss(
                timed_weight=loss.timed_weight,
                frame_weight=loss.frame_weight,
                temperature=loss.frame_temperature,
                bias=loss.frame_bias,
                backend=self.config.backend,
                gather=self.config.gather,
            )
            criterion.add_module("timed", self.timed)
        return criterion

    def encode(self, batch: Batch) -> Embeddings:
        """Global vectors `[N, D]`; also the frames, tokens, timed captions, and fingerprints that the loss uses."""
        audio = self.model.encode_audio(batch.audio, batch.lengths)
        texts = [caption.text for timed in batch.timed for caption in timed.captions] if self.timed else []
        text = self.model.encode_text(self.model.tokenize([*batch.captions, *texts]))
        count = len(batch.captions)
        captions = TextEmbedding(text.pooled[:count], text.tokens[:count], text.mask[:count], text.offsets)
        embeddings = pair_embeddings(audio, captions, self.config.loss.aligned_weight > 0)
        if self.timed:
            embeddings |= {"frames": audio.frames, "frame_mask": audio.mask}
            embeddings |= timed_embeddings(text.tokens[count:], text.mask[count:], batch, self.model.frame_seconds)
        if self.config.loss.kind == "triplet":
            fingerprints = torch.tensor([_fingerprint(caption) for caption in batch.captions], dtype=torch.int64)
            embeddings["captions"] = fingerprints.to(self.device)
        return embeddings

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """`L_total` of a batch, and its terms."""
        if isinstance(self.criterion, TripletLoss):
            return self.config.loss.global_weight * (loss := self.criterion(**embeddings)), {"triplet": loss}
        pairs = dict(embeddings)
        texts = timed_tokens(pairs) if self.timed else None
        frames, mask = embeddings.get("frames"), embeddings.get("frame_mask")
        terms = self.criterion.terms(**pairs)
        loss = self.criterion.total(terms)
        if self.timed is None or texts is None or frames is None or mask is None:
            return loss, terms
        scale = self.criterion.logit_scale
        bias = self.criterion.logit_bias if self.criterion.loss == "sigmoid" else None
        more = self.timed(frames, mask, texts, scale, bias, self.criterion.reduction)
        return loss + self.timed.total(more), terms | more

    def readings(self) -> dict[str, Tensor]:
        """The inverse of the temperature, and the bias of the sigmoid loss; also those of the loss of frames."""
        if isinstance(self.criterion, TripletLoss):
            return {}
        return readings_of(self.criterion) | (self.timed.readings() if self.timed else {})


def _fingerprint(caption: str) -> int:
    """An integer of 48 bits, equal for equal captions."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=6).digest(), "big")


def pair_embeddings(audio: AudioEmbedding, text: TextEmbedding, aligned: bool) -> Embeddings:
    """What `AlignedContrastiveLoss.terms` takes; frames, tokens, and their masks only if `aligned`."""
    embeddings = {"audio": audio.pooled, "text": text.pooled}
    if aligned:
        embeddings |= {
            "frames": audio.frames,
            "tokens": text.tokens,
            "frame_mask": audio.mask,
            "token_mask": text.mask,
        }
    return embeddings


def train(config: AlignedConfig, resume: bool = False) -> dict[str, Any] | None:
    """Train by aligned contrastive learning; arguments, result, and errors: see `atk.train.run.run`."""
    return train_contrastive(AlignedTask, config, resume)
