"""Aligned contrastive learning (thesis ch. 3): `L_total = L_global + L_align` (3.7)."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from atk.data.dataset import Batch
from atk.models.clap import AudioEmbedding, TextEmbedding
from atk.nn import AlignedContrastiveLoss
from atk.ops.checks import one_of
from atk.ops.max_mean import DIRECTIONS, Direction
from atk.train.contrastive import ContrastiveConfig, ContrastiveTask, PairLossConfig, readings_of, train_contrastive
from atk.train.grad_cache import Embeddings


@dataclass(frozen=True)
class LossConfig(PairLossConfig):
    """Loss: InfoNCE or the sigmoid loss between clips and captions, plus the same between their frames and tokens.

    Args:
        global_weight: weight of the loss on the cosine of the global vectors; 0 disables it.
        aligned_weight: weight of the loss on the max-mean similarity of frames and tokens; 0 disables it.
        direction: "audio" matches every frame with its best token, "text" every token with its best frame; "both" takes
            the mean of the two max-mean similarities.
        skip_below: the backward of the aligned loss skips pairs whose weight in the gradient is below this value, which
            makes it faster; 0 skips none and is exact.
    """

    global_weight: float = 1.0
    aligned_weight: float = 1.0
    direction: Direction = "audio"
    skip_below: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("direction", self.direction, DIRECTIONS)


@dataclass(frozen=True)
class AlignedConfig(ContrastiveConfig):
    """Aligned contrastive learning.

    Args:
        loss: global and aligned loss.
    """

    backend: Literal["auto", "triton", "cpp", "chunked", "reference"] = "auto"
    loss: LossConfig = field(default_factory=LossConfig)


class AlignedTask(ContrastiveTask[AlignedConfig, AlignedContrastiveLoss]):
    """Aligned contrastive learning, for `atk.train.trainer.Trainer`."""

    method = "aligned"

    def make_criterion(self) -> AlignedContrastiveLoss:
        """The configured loss."""
        loss = self.config.loss
        start = self.starting_point
        return AlignedContrastiveLoss(
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

    def encode(self, batch: Batch) -> Embeddings:
        """Global vectors `[N, D]`; also frames, tokens, and their masks if the loss uses them."""
        audio = self.model.encode_audio(batch.audio, batch.lengths)
        text = self.model.encode_text(self.model.tokenize(batch.captions))
        return pair_embeddings(audio, text, self.config.loss.aligned_weight > 0)

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """`L_total` of a batch, and its terms."""
        terms = self.criterion.terms(**embeddings)
        return self.criterion.total(terms), terms

    def readings(self) -> dict[str, Tensor]:
        """The inverse of the temperature, and the bias of the sigmoid loss."""
        return readings_of(self.criterion)


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
