"""Training by aligned contrastive learning (thesis ch. 3): `L_total = L_global + L_align` (3.7)."""

from torch import Tensor

from atk.config import AlignedConfig
from atk.contrastive import ContrastiveTask, train_contrastive
from atk.data.dataset import Batch
from atk.grad_cache import Embeddings
from atk.nn import AlignedContrastiveLoss


class AlignedTask(ContrastiveTask):
    """Aligned contrastive learning, for `atk.trainer.Trainer`."""

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
    """Train by aligned contrastive learning; arguments, result and errors as `atk.run.run`."""
    return train_contrastive(AlignedTask, config, resume)
