"""Semi-supervised training (thesis ch. 5): `L_total = L_labeled + L_mix + L_unlabeled` (5.16)."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from atk.config import SemiSupervisedConfig
from atk.contrastive import ContrastiveTask, train_contrastive
from atk.data import Batch, UnlabeledAudio, unlabeled_loader
from atk.info_nce import BACKENDS
from atk.mappers import MLPMapper, TransformerMapper
from atk.models.clap import AudioEmbedding
from atk.nn import InfoNCELoss
from atk.run import report_skipped

_LISTING = "unlabeled.npz"


@dataclass
class SemiSupervisedBatch:
    """Captioned clips, and unlabelled ones where the loss uses them."""

    labeled: Batch
    unlabeled: Batch | None

    @property
    def files(self) -> list[str]:
        """What the batch was made of; nothing where no captioned clip could be read."""
        if self.unlabeled is None or not self.labeled.files:
            return self.labeled.files
        return self.labeled.files + self.unlabeled.files


class SemiSupervisedTask(ContrastiveTask):
    """Contrastive learning from pairs and unlabelled audio, for `atk.trainer.Trainer`."""

    method, backends = "semisupervised", BACKENDS

    def __init__(self, config: SemiSupervisedConfig, device: torch.device, checkpoint: Path | None = None):
        super().__init__(config, device, checkpoint)
        if not config.uses_unlabeled:
            return
        self.pool = UnlabeledAudio.scan(config.unlabeled, Path(config.out) / _LISTING, config.on_error)
        print(f"unlabeled: {len(self.pool)} clips", file=sys.stderr)
        report_skipped(self.pool.skipped, self.skipped)

    def make_criterion(self) -> nn.Module:
        """InfoNCE, and the mapper that is trained with it."""
        loss = self.config.loss
        info_nce = InfoNCELoss(loss.temperature, loss.learnable, loss.reduction, backend=self.backend)
        criterion = nn.ModuleDict({"info_nce": info_nce})
        if self.config.uses_unlabeled:
            criterion["mapper"] = self._mapper()
        return criterion

    def _mapper(self) -> MLPMapper | TransformerMapper:
        config, widths = self.config.mapper, (self.model.dim, self.model.token_width)
        if config.kind == "mlp":
            return MLPMapper(*widths, config.hidden, config.dropout, config.noise)
        return TransformerMapper(*widths, config.tokens, config.layers, config.heads, config.dropout, config.noise)

    def batches(self, start_step: int) -> Iterator[SemiSupervisedBatch]:
        """Training batches from a step on, as many unlabelled clips in each as captioned ones."""
        if not self.config.uses_unlabeled:
            yield from (SemiSupervisedBatch(batch, None) for batch in super().batches(start_step))
            return
        for labeled, unlabeled in zip(super().batches(start_step), self._unlabeled(start_step), strict=True):
            report_skipped(unlabeled.skipped, self.skipped)
            if not unlabeled.files:
                name, reason = unlabeled.skipped[0]
                raise ValueError(f"unlabeled: of all files tried for a batch none can be read; {name}: {reason}")
            yield SemiSupervisedBatch(labeled, unlabeled.to(self.device))

    def _unlabeled(self, start_step: int) -> Iterator[Batch]:
        config = self.config
        return iter(
            unlabeled_loader(
                self.pool,
                sample_rate=self.model.sample_rate,
                clip_seconds=config.clip_seconds,
                batch_size=min(config.batch_size, len(self.clips)),
                seed=config.seed,
                start_step=start_step,
                workers=config.workers,
                pin_memory=self.device.type == "cuda",
                on_error=config.on_error,
            )
        )

    def loss(self, batch: SemiSupervisedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """`L_total` (5.16) of a batch, and its terms."""
        config, info_nce = self.config, self.criterion["info_nce"]
        labeled, unlabeled = batch.labeled, batch.unlabeled
        captions = self.model.tokenize(labeled.captions, reserve=self.pseudo_tokens)
        weights, terms = {"labeled": config.loss.labeled_weight}, {}
        if config.loss.labeled_weight:
            audio = self.model.encode_audio(labeled.audio, labeled.lengths).pooled
            terms["labeled"] = info_nce(audio, self.model.encode_text(captions).pooled)
        if unlabeled is not None:
            audio = self.model.encode_audio(unlabeled.audio, unlabeled.lengths)
            pseudo = self._pseudo_tokens(audio)
            if config.loss.mix_weight:
                weights["mix"] = config.loss.mix_weight
                terms["mix"] = self._mix(labeled, captions, unlabeled, pseudo)
            if config.loss.unlabeled_weight:
                weights["unlabeled"] = config.loss.unlabeled_weight
                prompt = self.model.tokenize([config.prompt] * len(unlabeled), reserve=self.pseudo_tokens)
                terms["unlabeled"] = info_nce(audio.pooled, self.model.encode_text(prompt, pseudo).pooled)
        total = sum(weights[name] * value for name, value in terms.items())
        return total, terms | {"logit_scale": info_nce.logit_scale}

    @property
    def pseudo_tokens(self) -> int:
        """How many a clip gives, `L_un`."""
        return self.criterion["mapper"].tokens if "mapper" in self.criterion else 0

    def _pseudo_tokens(self, audio: AudioEmbedding) -> Tensor:
        """`Xhat_un` (5.8) `[N, L_un, D_T]`."""
        mapper = self.criterion["mapper"]
        return mapper(audio.pooled) if isinstance(mapper, MLPMapper) else mapper(audio.frames, audio.mask)

    def _mix(self, labeled: Batch, captions: dict[str, Tensor], unlabeled: Batch, pseudo: Tensor) -> Tensor:
        """`L_mix` (5.10): mixtures against captions that go on with the pseudo-tokens of what was mixed in."""
        pairs = min(len(labeled), len(unlabeled))  # files that could not be read are missing on either side
        audio, lengths = mixture(labeled, unlabeled, pairs)
        captions = {name: value[:pairs] for name, value in captions.items()}
        text = self.model.encode_text(captions, pseudo[:pairs])
        return self.criterion["info_nce"](self.model.encode_audio(audio, lengths).pooled, text.pooled)


def mixture(first: Batch, second: Batch, pairs: int) -> tuple[Tensor, Tensor]:
    """`(x_a + x_un) / 2` (5.6) of the first `pairs` clips of each, as long as the longer: waveforms and lengths."""
    length = max(first.audio.shape[1], second.audio.shape[1])
    audio = first.audio.new_zeros(pairs, length)
    for batch in (first, second):
        audio[:, : batch.audio.shape[1]] += batch.audio[:pairs] / 2
    return audio, torch.maximum(first.lengths[:pairs], second.lengths[:pairs])


def train(config: SemiSupervisedConfig, resume: bool = False) -> dict:
    """Train from pairs and unlabelled audio; arguments, result and errors as `atk.run.run`."""
    return train_contrastive(SemiSupervisedTask, config, resume)
