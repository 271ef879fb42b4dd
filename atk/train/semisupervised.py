"""Semi-supervised training (thesis ch. 5): `L_total = L_labeled + L_mix + L_unlabeled` (5.16)."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from atk.data import Loader, UnlabeledAudio, unlabeled_loader
from atk.distributed.collectives import world_size
from atk.models.clap import AudioEmbedding
from atk.nn import InfoNCELoss, SigmoidLoss
from atk.nn.mappers import MLPMapper, TransformerMapper
from atk.train.contrastive import ContrastiveTask, readings_of, train_contrastive
from atk.train.grad_cache import Embeddings
from atk.train.run import checkpoint_to_resume
from atk.train.semisupervised_batch import SemiSupervisedBatch, mixture
from atk.train.semisupervised_config import SemiSupervisedConfig, UnlabeledConfig
from atk.train.semisupervised_criterion import SemiSupervisedCriterion

_LISTING = "unlabeled.npz"
_MAX_UNREADABLE_BATCHES = 10  # in a row

ConfigT = TypeVar("ConfigT", bound=UnlabeledConfig)


class UnlabeledTask(ContrastiveTask[ConfigT, SemiSupervisedCriterion], Generic[ConfigT]):
    """Batches of captioned and of unlabeled clips, and the terms of a loss that use the latter.

    Args:
        config: the run.
        device: device to train on.
        checkpoint: saved model to resume from; None starts a new run.

    Raises:
        ValueError, FileNotFoundError, AudioError: as for `ContrastiveTask` and `UnlabeledAudio.scan`.
    """

    def __init__(self, config: ConfigT, device: torch.device, checkpoint: Path | None = None):
        super().__init__(config, device, checkpoint)
        self.prepare()  # errors come before the listing is written
        if not config.uses_unlabeled:
            return
        self.pool = UnlabeledAudio.scan(config.unlabeled, Path(config.out) / _LISTING, config.on_error)
        is_small = len(self.pool) < config.batch_size
        if is_small and config.shard:
            raise ValueError(
                f"shard: needs at least batch_size {config.batch_size} unlabeled clips, got {len(self.pool)}"
            )
        note = f", fewer than batch_size {config.batch_size}: batches hold only that many" if is_small else ""
        print(f"unlabeled: {len(self.pool)} clips{note}", file=sys.stderr)
        self.report(self.pool.skipped)

    def prepare(self) -> None:
        """Read and set up what a method needs besides captioned and unlabeled clips."""

    def make_mapper(self) -> MLPMapper | TransformerMapper:
        """A new mapper, as configured."""
        config = self.config.mapper
        dim, token_width = self.model.dim, self.model.token_width
        if config.kind == "mlp":
            return MLPMapper(dim, token_width, config.hidden, config.dropout, config.noise)
        if config.frames == "encoder":
            dim = self.model.audio_encoder.width
        return TransformerMapper(
            dim, token_width, config.tokens, config.layers, config.heads, config.dropout, config.noise
        )

    def batches(self, start_step: int) -> Iterator[SemiSupervisedBatch]:
        """Training batches from a step on, with equally many captioned and unlabeled clips."""
        if not self.config.uses_unlabeled:
            yield from (SemiSupervisedBatch(batch, None) for batch in super().batches(start_step))
            return
        unreadable = 0
        for labeled, unlabeled in zip(super().batches(start_step), self._unlabeled(start_step), strict=True):
            self.report(unlabeled.skipped)
            unreadable = unreadable + 1 if unlabeled.skipped and not unlabeled.files else 0
            if unreadable == _MAX_UNREADABLE_BATCHES:
                name, reason = unlabeled.skipped[0]
                raise ValueError(f"unlabeled: no file of {unreadable} batches in a row is readable; {name}: {reason}")
            batch = SemiSupervisedBatch(labeled, unlabeled.to(self.device))
            # Sharded ranks must run the encoders equally often.
            yield batch.pairs() if self.config.shard and world_size() > 1 else batch

    def silence(self) -> SemiSupervisedBatch:
        """A silent clip of each data set that the loss uses."""
        silence = super().silence()
        return SemiSupervisedBatch(silence, silence if self.config.uses_unlabeled else None)

    def _unlabeled(self, start_step: int) -> Loader:
        config = self.config
        return unlabeled_loader(
            self.pool,
            sample_rate=self.model.sample_rate,
            clip_seconds=config.clip_seconds,
            batch_size=min(config.batch_size, len(self.clips), len(self.pool)),
            seed=config.seed,
            **self.loading_options(start_step),
        )

    def unlabeled_terms(
        self,
        captions: dict[str, Tensor],
        unlabeled: AudioEmbedding,
        mixed: Callable[[], Tensor] | None,
        unlabeled_alone: bool,
    ) -> Embeddings:
        """Global vectors `[N, D]` of the audio and of the text of the terms that use unlabeled audio.

        Args:
            captions: tokenized captions of the captioned clips, with space for pseudo-tokens.
            unlabeled: the unlabeled clips.
            mixed: returns the global vectors of the mixtures of the first captioned and unlabeled clips; None leaves
                out `L_mix`.
            unlabeled_alone: whether `L_unlabeled` is needed.
        """
        embeddings = {}
        pseudo_tokens = self.criterion.map_audio(unlabeled)
        if mixed is not None:
            audio = embeddings["mix audio"] = mixed()
            first_captions = {name: value[: len(audio)] for name, value in captions.items()}
            embeddings["mix text"] = self.model.encode_text(first_captions, pseudo_tokens[: len(audio)]).pooled
        if unlabeled_alone:
            prompt = self.model.tokenize([self.config.prompt] * len(pseudo_tokens), self.criterion.pseudo_tokens)
            embeddings["unlabeled audio"] = unlabeled.pooled
            embeddings["unlabeled text"] = self.model.encode_text(prompt, pseudo_tokens).pooled
        return embeddings


class SemiSupervisedTask(UnlabeledTask[SemiSupervisedConfig]):
    """Contrastive learning from captioned clips and unlabeled audio, for `atk.train.trainer.Trainer`."""

    method = "semisupervised"
    op = "info_nce"

    def make_criterion(self) -> SemiSupervisedCriterion:
        """The configured loss, and the mapper that is trained along with it."""
        loss = self.config.loss
        start = self.starting_point
        options: dict[str, Any] = {"backend": self.config.backend, "gather": self.config.gather}
        if loss.kind == "sigmoid":
            criterion = SigmoidLoss(start.temperature, start.bias, loss.learns, **options)
        else:
            criterion = InfoNCELoss(start.temperature, loss.learns, loss.reduction, **options)
        return SemiSupervisedCriterion(criterion, self.make_mapper() if self.config.uses_unlabeled else None)

    def encode(self, batch: SemiSupervisedBatch) -> Embeddings:
        """Global vectors `[N, D]` of the audio and of the text of each term of the loss."""
        weights = self.config.loss
        model = self.model
        labeled, unlabeled = batch.labeled, batch.unlabeled
        embeddings = {}
        captions = model.tokenize(labeled.captions, self.criterion.pseudo_tokens) if labeled.files else {}
        if weights.labeled_weight and labeled.files:
            embeddings["labeled audio"] = model.encode_audio(labeled.audio, labeled.lengths).pooled
            embeddings["labeled text"] = model.encode_text(captions).pooled
        if unlabeled is None or not unlabeled.files:
            return embeddings
        project_frames = self.config.mapper.frames != "encoder"
        audio = model.encode_audio(unlabeled.audio, unlabeled.lengths, project_frames)
        pairs = min(len(labeled), len(unlabeled))  # either batch may lack unreadable files

        def mixed() -> Tensor:
            return model.encode_audio(*mixture(labeled, unlabeled, pairs)).pooled

        has_mix = bool(weights.mix_weight and pairs)
        return embeddings | self.unlabeled_terms(
            captions, audio, mixed if has_mix else None, weights.unlabeled_weight > 0
        )

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """`L_total` (5.16) of a batch, and its terms (3.5), (5.10), (5.15)."""
        terms = {}
        loss = torch.zeros(())
        for name in ("labeled", "mix", "unlabeled"):
            if f"{name} audio" in embeddings:
                terms[name] = self.criterion.pair_loss(embeddings[f"{name} audio"], embeddings[f"{name} text"])
                loss = loss + getattr(self.config.loss, f"{name}_weight") * terms[name]
        return loss, terms

    def readings(self) -> dict[str, Tensor]:
        """The inverse of the temperature, and the bias of the sigmoid loss."""
        return readings_of(self.criterion.pair_loss)


def train(config: SemiSupervisedConfig, resume: bool = False) -> dict[str, Any] | None:
    """Train from captioned clips and unlabeled audio; arguments, result, and errors: see `atk.train.run.run`."""
    if config.mapper.frames is None:
        frames = "encoder" if checkpoint_to_resume(config, resume) is None else "projected"
        config = replace(config, mapper=replace(config.mapper, frames=frames))
    return train_contrastive(SemiSupervisedTask, config, resume)
