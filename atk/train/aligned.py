"""Training by aligned contrastive learning (thesis ch. 3): `L_total = L_global + L_align` (3.7)."""

from dataclasses import dataclass, field

from torch import Tensor

from atk.data.dataset import Batch
from atk.nn import AlignedContrastiveLoss
from atk.train.contrastive import ContrastiveConfig, ContrastiveTask, train_contrastive
from atk.train.grad_cache import Embeddings


@dataclass(frozen=True)
class LossConfig:
    """`L_total = L_global + L_align` (3.7).

    Args:
        temperature: tau (0.2 in the thesis).
        learnable: learn the temperature, starting there.
        reduction: "sum" of the two directions (3.5) or their "mean".
        global_weight: factor of InfoNCE on global cosine; 0 leaves it out.
        aligned_weight: factor of InfoNCE on max-mean similarity; 0 leaves it out.
        direction: "audio" (frames look for tokens), "text" or "both".
        skip_below: leave pairs of a smaller softmax weight out of the aligned loss's backward; see
            `atk.aligned_info_nce`. 0 leaves none out.
    """

    temperature: float = 0.2
    learnable: bool = False
    reduction: str = "sum"
    global_weight: float = 1.0
    aligned_weight: float = 1.0
    direction: str = "audio"
    skip_below: float = 0.0


@dataclass(frozen=True)
class AlignedConfig(ContrastiveConfig):
    """Aligned contrastive learning (thesis ch. 3).

    Args:
        loss: global and aligned InfoNCE.
    """

    loss: LossConfig = field(default_factory=LossConfig)


class AlignedTask(ContrastiveTask):
    """Aligned contrastive learning, for `atk.train.trainer.Trainer`."""

    method = "aligned"

    def make_criterion(self) -> AlignedContrastiveLoss:
        """The loss that the configuration asks for."""
        loss = self.config.loss
        return AlignedContrastiveLoss(
            loss.temperature,
            loss.learnable,
            loss.reduction,
            global_weight=loss.global_weight,
            aligned_weight=loss.aligned_weight,
            direction=loss.direction,
            skip_below=loss.skip_below,
            backend=self.config.backend,
            gather=self.config.gather,
        )

    def encode(self, batch: Batch) -> Embeddings:
        """Global vectors; frames, tokens and their masks where the loss uses them."""
        audio = self.model.encode_audio(batch.audio, batch.lengths)
        text = self.model.encode_text(self.model.tokenize(batch.captions))
        embeddings = {"audio": audio.pooled, "text": text.pooled}
        if self.config.loss.aligned_weight:
            aligned = {"frames": audio.frames, "tokens": text.tokens, "frame_mask": audio.mask, "token_mask": text.mask}
            embeddings |= aligned
        return embeddings

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """`L_total` of a batch, and its terms."""
        terms = self.criterion.terms(**embeddings)
        return self.criterion.total(terms), terms

    def readings(self) -> dict[str, Tensor]:
        """The inverse of the temperature."""
        return {"logit_scale": self.criterion.logit_scale}


def train(config: AlignedConfig, resume: bool = False) -> dict:
    """Train by aligned contrastive learning; arguments, result and errors as `atk.train.run.run`."""
    return train_contrastive(AlignedTask, config, resume)
