"""Semi-supervised training (thesis ch. 5): `L_total = L_labeled + L_mix + L_unlabeled` (5.16)."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

import torch
from torch import Tensor

from atk.data import Loader, UnlabeledAudio, unlabeled_loader
from atk.distributed.collectives import world_size
from atk.models.clap import AudioEmbedding
from atk.nn import InfoNCELoss, SigmoidLoss
from atk.nn.mappers import MLPMapper, TransformerMapper
from atk.ops.checks import one_of
from atk.train.config import fields_at_least
from atk.train.contrastive import ContrastiveConfig, ContrastiveTask, PairLossConfig, readings_of, train_contrastive
from atk.train.grad_cache import Embeddings
from atk.train.run import checkpoint_to_resume
from atk.train.semisupervised_batch import SemiSupervisedBatch, mixture
from atk.train.semisupervised_criterion import SemiSupervisedCriterion

MapperKind = Literal["mlp", "transformer"]
MapperFrames = Literal["encoder", "projected"]
_LISTING = "unlabeled.npz"
_MAX_UNREADABLE_BATCHES = 10  # in a row


@dataclass(frozen=True)
class MapperConfig:
    """Mapper from audio to pseudo-tokens, which stand for words in the input of the text encoder.

    Args:
        kind: "mlp" maps the global vector of a clip to one pseudo-token, "transformer" maps its frames to several.
        tokens: number of pseudo-tokens per clip; "transformer" only.
        frames: "encoder": those of the audio encoder, in its width, as in the thesis; "projected": those in the shared
            space. null: "encoder" in a new run; runs of versions that had only "projected" stay with that.
            "transformer" only.
        hidden: width of the hidden layer; "mlp" only.
        layers: number of decoder layers; "transformer" only.
        heads: number of attention heads; "transformer" only.
        dropout: dropout rate.
        noise: standard deviation of the Gaussian noise that is added to the input; 0 adds none.
    """

    kind: MapperKind = "transformer"
    tokens: int = 2
    hidden: int = 512
    layers: int = 2
    heads: int = 8
    dropout: float = 0.1
    noise: float = 1.0
    frames: MapperFrames | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, get_args(MapperKind))
        if self.frames is not None:
            one_of("frames", self.frames, get_args(MapperFrames))
        fields_at_least(self, 1, "tokens", "hidden", "layers", "heads")
        fields_at_least(self, 0, "noise")


@dataclass(frozen=True)
class UnlabeledLossConfig(PairLossConfig):
    """Weights of the terms that use unlabeled audio.

    Args:
        mix_weight: weight of the loss between mixtures of a captioned and an unlabeled clip, and captions with the
            pseudo-tokens of the unlabeled clip; 0 disables it.
        unlabeled_weight: weight of the loss between unlabeled clips and the prompt with their pseudo-tokens; 0
            disables it.
    """

    mix_weight: float = 1.0
    unlabeled_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "triplet":
            raise ValueError("kind must be 'info_nce' or 'sigmoid' to learn from unlabeled audio, got 'triplet'")
        fields_at_least(self, 0, "mix_weight", "unlabeled_weight")


@dataclass(frozen=True)
class SemiSupervisedLossConfig(UnlabeledLossConfig):
    """Loss: InfoNCE or the sigmoid loss on captioned clips, on mixtures, and on unlabeled clips.

    Args:
        labeled_weight: weight of the loss between clips and their captions.
    """

    labeled_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields_at_least(self, 0, "labeled_weight")
        if self.labeled_weight + self.mix_weight + self.unlabeled_weight == 0:
            raise ValueError("labeled_weight, mix_weight and unlabeled_weight must not all be 0")


@dataclass(frozen=True)
class UnlabeledConfig(ContrastiveConfig):
    """Settings of the methods that also learn from unlabeled audio.

    Args:
        unlabeled: folders of audio, tar shards, or folders of tar shards; may be empty if no loss term uses unlabeled
            audio.
        prompt: text that precedes the pseudo-tokens of an unlabeled clip.
        mapper: audio to pseudo-tokens.
    """

    unlabeled: list[str] = field(default_factory=list)
    prompt: str = "A sound of"
    mapper: MapperConfig = field(default_factory=MapperConfig)
    loss: UnlabeledLossConfig = field(default_factory=UnlabeledLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.unlabeled, str):  # a single folder in a YAML file
            object.__setattr__(self, "unlabeled", [self.unlabeled])
        if wrong := [folder for folder in self.unlabeled if not isinstance(folder, str)]:
            raise ValueError(f"unlabeled must be names of folders or tar shards, got {wrong[0]!r}")
        if self.uses_unlabeled and not self.unlabeled:
            raise ValueError(
                "unlabeled must name a folder of audio or tar shards; to train without any, set loss.mix_weight and "
                "loss.unlabeled_weight to 0"
            )
        if self.uses_unlabeled and self.model.text.vectors is not None:
            raise ValueError(
                "model.text.vectors must be null, as word vectors take no pseudo-tokens of unlabeled audio"
            )

    @property
    def uses_unlabeled(self) -> bool:
        """Whether a term of the loss needs unlabeled audio."""
        return self.loss.mix_weight > 0 or self.loss.unlabeled_weight > 0


@dataclass(frozen=True)
class SemiSupervisedConfig(UnlabeledConfig):
    """Contrastive learning from captioned clips and unlabeled audio.

    Args:
        loss: weights of the three terms.
    """

    backend: Literal["auto", "triton", "chunked", "reference"] = "auto"
    loss: SemiSupervisedLossConfig = field(default_factory=SemiSupervisedLossConfig)


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
