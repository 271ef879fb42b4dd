"""Semi-supervised training (thesis ch. 5): `L_total = L_labeled + L_mix + L_unlabeled` (5.16)."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from atk.data import Batch, Loader, UnlabeledAudio, unlabeled_loader
from atk.distributed.collectives import world_size
from atk.models.clap import AudioEmbedding
from atk.nn import InfoNCELoss
from atk.nn.mappers import MLPMapper, TransformerMapper
from atk.ops.checks import one_of
from atk.ops.info_nce import BACKENDS
from atk.train.config import fields_at_least
from atk.train.contrastive import ContrastiveConfig, ContrastiveTask, train_contrastive
from atk.train.grad_cache import Embeddings

_LISTING = "unlabeled.npz"
_MOST_UNREADABLE = 10  # batches in a row that may be passed over


@dataclass(frozen=True)
class MapperConfig:
    """The audio-to-text mapper.

    Args:
        kind: "mlp" (5.11), one pseudo-token from the global vector, or "transformer" (5.12), from the frames.
        tokens: pseudo-tokens of a clip by the "transformer".
        hidden: hidden width of the "mlp".
        layers: decoder layers of the "transformer".
        heads: attention heads of the "transformer".
        dropout: dropout rate.
        noise: standard deviation of the Gaussian noise on what is mapped (5.13); 0 leaves it out.
    """

    kind: str = "transformer"
    tokens: int = 2
    hidden: int = 512
    layers: int = 2
    heads: int = 8
    dropout: float = 0.1
    noise: float = 1.0

    def __post_init__(self):
        one_of("kind", self.kind, ("mlp", "transformer"))
        fields_at_least(self, 1, "tokens", "hidden", "layers", "heads")
        fields_at_least(self, 0, "noise")


@dataclass(frozen=True)
class SemiSupervisedLossConfig:
    """`L_total = L_labeled + L_mix + L_unlabeled` (5.16).

    Args:
        temperature: tau.
        learnable: learn the temperature, starting there.
        reduction: "sum" of the two directions (3.5) or their "mean".
        labeled_weight: factor of InfoNCE on clips and their captions.
        mix_weight: factor of InfoNCE on mixtures of a clip and an unlabelled one, and captions with its pseudo-tokens
            (5.10); 0 leaves it out.
        unlabeled_weight: factor of InfoNCE on unlabelled clips and the prompt with their pseudo-tokens (5.15); 0
            leaves it out.
    """

    temperature: float = 0.2
    learnable: bool = False
    reduction: str = "sum"
    labeled_weight: float = 1.0
    mix_weight: float = 1.0
    unlabeled_weight: float = 1.0

    def __post_init__(self):
        fields_at_least(self, 0, "labeled_weight", "mix_weight", "unlabeled_weight")
        if self.labeled_weight + self.mix_weight + self.unlabeled_weight == 0:
            raise ValueError("labeled_weight, mix_weight and unlabeled_weight must not all be 0")


@dataclass(frozen=True)
class SemiSupervisedConfig(ContrastiveConfig):
    """Semi-supervised learning from pairs and unlabelled audio (thesis ch. 5).

    Args:
        unlabeled: folders of audio, tar shards or folders of them; empty only where no term uses unlabelled audio.
        prompt: text that the pseudo-tokens of an unlabelled clip follow (5.14).
        mapper: audio to pseudo-tokens.
        loss: the three terms.
    """

    unlabeled: list[str] = field(default_factory=list)
    prompt: str = "A sound of"
    mapper: MapperConfig = field(default_factory=MapperConfig)
    loss: SemiSupervisedLossConfig = field(default_factory=SemiSupervisedLossConfig)

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.unlabeled, str):  # one folder in a YAML file
            object.__setattr__(self, "unlabeled", [self.unlabeled])
        if wrong := [folder for folder in self.unlabeled if not isinstance(folder, str)]:
            raise ValueError(f"unlabeled must be names of folders or tar shards, got {wrong[0]!r}")
        if self.uses_unlabeled and not self.unlabeled:
            raise ValueError(
                "unlabeled must name a folder of audio or tar shards; without any, set loss.mix_weight and "
                "loss.unlabeled_weight to 0"
            )

    @property
    def uses_unlabeled(self) -> bool:
        """Whether a term of the loss needs unlabelled audio."""
        return self.loss.mix_weight > 0 or self.loss.unlabeled_weight > 0


@dataclass
class SemiSupervisedBatch:
    """Captioned clips, and unlabelled ones where the loss uses them."""

    labeled: Batch
    unlabeled: Batch | None

    @property
    def files(self) -> list[str]:
        """What the batch was made of."""
        return self.labeled.files + ([] if self.unlabeled is None else self.unlabeled.files)

    @property
    def sides(self) -> list[int]:
        """Clips on each side that the loss uses; without any on one of them the batch is passed over."""
        return [len(self.labeled)] + ([] if self.unlabeled is None else [len(self.unlabeled)])

    def split(self, size: int) -> "list[SemiSupervisedBatch]":
        """Parts of at most `size` captioned and as many unlabelled clips."""
        labeled = self.labeled.split(size)
        unlabeled = [] if self.unlabeled is None else self.unlabeled.split(size)
        empty = self.labeled.rows(0, 0)
        pairs = itertools.zip_longest(labeled, unlabeled)
        return [SemiSupervisedBatch(empty if one is None else one, other) for one, other in pairs]


class SemiSupervisedTask(ContrastiveTask):
    """Contrastive learning from pairs and unlabelled audio, for `atk.train.trainer.Trainer`."""

    method, backends = "semisupervised", BACKENDS

    def __init__(self, config: SemiSupervisedConfig, device: torch.device, checkpoint: Path | None = None):
        super().__init__(config, device, checkpoint)
        if not config.uses_unlabeled:
            return
        self.pool = UnlabeledAudio.scan(config.unlabeled, Path(config.out) / _LISTING, config.on_error)
        few = len(self.pool) < config.batch_size
        if few and config.shard:
            raise ValueError(
                f"shard: needs at least batch_size {config.batch_size} unlabelled clips, got {len(self.pool)}"
            )
        note = f", fewer than batch_size {config.batch_size}: a batch has no more" if few else ""
        print(f"unlabeled: {len(self.pool)} clips{note}", file=sys.stderr)
        self.report(self.pool.skipped)

    def make_criterion(self) -> nn.Module:
        """InfoNCE, and the mapper that is trained with it."""
        loss = self.config.loss
        info_nce = InfoNCELoss(
            loss.temperature, loss.learnable, loss.reduction, backend=self.backend, gather=self.config.gather
        )
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
        unreadable = 0
        for labeled, unlabeled in zip(super().batches(start_step), self._unlabeled(start_step), strict=True):
            self.report(unlabeled.skipped)
            unreadable = unreadable + 1 if unlabeled.skipped and not unlabeled.files else 0
            if unreadable == _MOST_UNREADABLE:
                name, reason = unlabeled.skipped[0]
                raise ValueError(f"unlabeled: in {unreadable} batches no file could be read; {name}: {reason}")
            unlabeled = unlabeled.to(self.device)
            if self.config.shard and world_size() > 1:  # ranks run the encoders equally often in each part of a batch
                pairs = min(len(labeled), len(unlabeled))
                labeled, unlabeled = labeled.rows(0, pairs), unlabeled.rows(0, pairs)
            yield SemiSupervisedBatch(labeled, unlabeled)

    def silence(self) -> SemiSupervisedBatch:
        """A silent clip on each side that the loss uses."""
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
            **self.loading(start_step),
        )

    def encode(self, batch: SemiSupervisedBatch) -> Embeddings:
        """Global vectors of both sides of each term of the loss."""
        weights, model = self.config.loss, self.model
        labeled, unlabeled, embeddings = batch.labeled, batch.unlabeled, {}
        captions = model.tokenize(labeled.captions, reserve=self.pseudo_tokens) if labeled.files else {}
        if weights.labeled_weight and labeled.files:
            embeddings["labeled audio"] = model.encode_audio(labeled.audio, labeled.lengths).pooled
            embeddings["labeled text"] = model.encode_text(captions).pooled
        if unlabeled is None or not unlabeled.files:
            return embeddings
        audio = model.encode_audio(unlabeled.audio, unlabeled.lengths)
        pseudo = self._pseudo_tokens(audio)
        pairs = min(len(labeled), len(unlabeled))  # files that could not be read are missing on either side
        if weights.mix_weight and pairs:
            mixed = model.encode_audio(*mixture(labeled, unlabeled, pairs))
            text = model.encode_text({name: value[:pairs] for name, value in captions.items()}, pseudo[:pairs])
            embeddings |= {"mix audio": mixed.pooled, "mix text": text.pooled}
        if weights.unlabeled_weight:
            prompt = model.tokenize([self.config.prompt] * len(unlabeled), reserve=self.pseudo_tokens)
            text = model.encode_text(prompt, pseudo)
            embeddings |= {"unlabeled audio": audio.pooled, "unlabeled text": text.pooled}
        return embeddings

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """`L_total` (5.16) of a batch, and its terms (3.5), (5.10), (5.15)."""
        info_nce, terms, total = self.criterion["info_nce"], {}, 0.0
        for name in ("labeled", "mix", "unlabeled"):
            if f"{name} audio" in embeddings:
                terms[name] = info_nce(embeddings[f"{name} audio"], embeddings[f"{name} text"])
                total = total + getattr(self.config.loss, f"{name}_weight") * terms[name]
        return total, terms

    def readings(self) -> dict[str, Tensor]:
        """The inverse of the temperature."""
        return {"logit_scale": self.criterion["info_nce"].logit_scale}

    @property
    def pseudo_tokens(self) -> int:
        """How many a clip gives, `L_un`."""
        return self.criterion["mapper"].tokens if "mapper" in self.criterion else 0

    def _pseudo_tokens(self, audio: AudioEmbedding) -> Tensor:
        """`Xhat_un` (5.8) `[N, L_un, D_T]`."""
        mapper = self.criterion["mapper"]
        return mapper(audio.pooled) if isinstance(mapper, MLPMapper) else mapper(audio.frames, audio.mask)


def mixture(first: Batch, second: Batch, pairs: int) -> tuple[Tensor, Tensor]:
    """`(x_a + x_un) / 2` (5.6) of the first `pairs` clips of each, as long as the longer: waveforms and lengths."""
    length = max(first.audio.shape[1], second.audio.shape[1])
    audio = first.audio.new_zeros(pairs, length)
    for batch in (first, second):
        audio[:, : batch.audio.shape[1]] += batch.audio[:pairs] / 2
    return audio, torch.maximum(first.lengths[:pairs], second.lengths[:pairs])


def train(config: SemiSupervisedConfig, resume: bool = False) -> dict:
    """Train from pairs and unlabelled audio; arguments, result and errors as `atk.train.run.run`."""
    return train_contrastive(SemiSupervisedTask, config, resume)
