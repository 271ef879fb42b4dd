"""Audio difference learning (thesis ch. 4): the caption of `x` from `Diff(x + x_ref, x_ref)` (4.9)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from atk.data import MixtureBatch, MixtureDataset, ReferencePool
from atk.distributed import total
from atk.eval.captioning import CaptionSplit
from atk.models.captioner import Captioner
from atk.models.captioner_config import CaptionerConfig, Difference
from atk.nn import CrossAttentionDifference
from atk.ops.checks import one_of
from atk.train.captioning import (
    CaptioningConfig,
    cross_entropy,
    evaluate_captioning,
    log_likelihood,
    reference_pool,
    share_of_tokens,
)
from atk.train.grad_cache import Embeddings
from atk.train.run import checkpoint_to_resume, run
from atk.train.task import CaptionedTask
from atk.train.tuning import pretrained_defaults

Objective = Literal["mask", "subtraction", "plain", "pairmix"]
_BLOCKS: dict[Objective, Difference] = {
    "mask": "mask",
    "subtraction": "subtraction",
    "plain": "none",
    "pairmix": "none",
}


@dataclass(frozen=True)
class DifferenceConfig(CaptioningConfig):
    """Captioning and audio difference learning.

    Args:
        objective: "plain" learns captions from the clips alone. "mask" and "subtraction" mix a reference into the clip
            and learn its caption from what remains after the reference is removed, by a mask from cross-attention or
            by subtraction. "pairmix" also learns from mixtures of two clips, whose captions are joined by "and".
        init: run folder or model folder of a captioner to start from; encoder and decoder settings are then taken from
            it.
        clip_seconds: length of the random crops in training; in evaluation, longer clips are cut to it.
        model: encoder, Diff block, and decoder; `model.difference` follows from `objective`.
    """

    objective: Objective = "mask"
    init: str | None = None
    backend: Literal["auto", "triton", "sdpa", "reference"] = "auto"
    clip_seconds: float = 30.0
    model: CaptionerConfig = field(default_factory=CaptionerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("objective", self.objective, get_args(Objective))
        if self.shard:  # the number of layer calls depends on the clips of a rank, but sharded ranks must agree on it
            raise ValueError("shard: captioners cannot be sharded")
        if self.mix.common and self.objective != "mask":
            raise ValueError(f"mix.common: needs objective 'mask', got {self.objective!r}")
        block = _BLOCKS[self.objective]
        if self.model.difference not in (CaptionerConfig.difference, block):
            raise ValueError(
                f"model.difference must be {block!r} for objective {self.objective!r}, got {self.model.difference!r}"
            )
        object.__setattr__(self, "model", replace(self.model, difference=block))


class DifferenceTask(CaptionedTask[DifferenceConfig, Captioner]):
    """Model, loss, and validation of captioning and difference learning, for `atk.train.trainer.Trainer`.

    Args:
        config: the run.
        device: device to train on.
        checkpoint: saved captioner to resume from; None starts a new run.

    Raises:
        ValueError, FileNotFoundError, AudioError, BackendError: as for `CaptionedTask`, `CaptionSplit`, and
            `MixtureDataset`, or the model cannot be loaded.
    """

    method = "difference"
    monitor = "log_likelihood"
    op = "cross_attention_difference"

    def __init__(self, config: DifferenceConfig, device: torch.device, checkpoint: Path | None = None):
        super().__init__(config, device)
        self.model = self._load_model(checkpoint).to(device)
        self.criterion = nn.Identity()
        if isinstance(self.model.difference_block, CrossAttentionDifference):
            self.model.difference_block.backend = self.config.backend
        self.dataset = self._dataset()
        self.evaluation: CaptionSplit | None = None
        self.validation: MixtureDataset | None = None
        if self.held_out:  # read now, so that errors in it show up before training and not after it
            self.model.decoder.check_generation(config.generation)
            self.evaluation = CaptionSplit(self.data, self.held_out, mix=config.mix, **self.reading_options())
        if self.has("val"):
            clips = self.data.read("val", config.on_error).clips
            self.validation = MixtureDataset(
                clips, self.model.sample_rate, config.clip_seconds, config.seed, mix=config.mix, pool=None
            )

    def _load_model(self, checkpoint: Path | None) -> Captioner:
        config = self.config
        if checkpoint is not None:
            return Captioner.from_pretrained(checkpoint)
        if config.init is not None:
            model = Captioner.from_pretrained(config.init)
            block = config.model
            return model.with_difference(block.difference, block.heads, block.trim_references)
        return Captioner.create(config.model, self.captions)

    def _dataset(self) -> MixtureDataset:
        config = self.config
        return MixtureDataset(
            self.clips,
            self.model.sample_rate,
            config.clip_seconds,
            config.seed,
            mix=config.mix,
            pool=self._pool(),
            pairs=config.objective == "pairmix",
        )

    def _pool(self) -> ReferencePool | None:
        """The recordings to mix into the clips."""
        config = self.config
        if config.objective == "plain":
            return None
        mix = replace(config.mix, references=None) if config.objective == "pairmix" else config.mix
        return reference_pool(mix, self.recordings, config.on_error)

    def encode(self, batch: MixtureBatch) -> Embeddings:
        """Cross-entropy of the captions: (4.9), or (4.3) for clips without a reference.

        Returns:
            "loss": mean over the tokens of the captions `[1]`; "tokens": the number of tokens `[1]`.
        """
        loss, tokens = cross_entropy(self.model, batch)
        return {"loss": loss[None], "tokens": torch.tensor([tokens], device=self.device)}

    def shares(self, parts: Sequence[MixtureBatch | None]) -> list[Tensor]:
        """The share of each part of a batch in its loss: of its tokens in those of all parts on all ranks."""
        counts = [0 if part is None else self._tokens(part.captions) for part in parts]
        tokens = torch.tensor(counts, dtype=torch.float32, device=self.device)
        return list(tokens / total(tokens.sum()))

    def _tokens(self, captions: list[str]) -> int:
        return int(self.model.tokenize(captions)["attention_mask"].sum())

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's share of the mean over the tokens of all ranks; no further terms."""
        return share_of_tokens(embeddings["loss"], embeddings["tokens"]), {}

    def readings(self) -> dict[str, Tensor]:
        """No values besides the loss."""
        return {}

    def validate(self) -> dict[str, float]:
        """Mean log-likelihood per token of one caption for each validation clip, given the clip alone.

        Raises:
            ValueError: no clip can be decoded.
            AudioError: with `on_error="raise"`, a clip cannot be decoded.
        """
        assert self.validation is not None
        name = self.data.first_with("val").name
        return {"log_likelihood": log_likelihood(self.model, self.validation, name=name, **self.pass_options())}

    def evaluate(self, checkpoint: Path) -> dict[str, Any]:
        """Captioning metrics of a saved model on the held-out split; the captions are written to a CSV file."""
        assert self.evaluation is not None
        model = Captioner.from_pretrained(checkpoint).to(self.device)
        return evaluate_captioning(model, self.evaluation, self.held_out, self.config)


def train(config: DifferenceConfig, resume: bool = False) -> dict[str, Any] | None:
    """Train a captioner by `config.objective`; arguments, result, and errors: see `atk.train.run.run`."""
    last = checkpoint_to_resume(config, resume)
    if last is not None:  # runs that were started before this setting go on without it
        trims = Captioner.saved_config(last).trim_references
        config = replace(config, model=replace(config.model, trim_references=trims))
    if config.init is not None:
        saved = Captioner.saved_config(last or config.init)
        block = config.model
        model = replace(saved, difference=block.difference, heads=block.heads, trim_references=block.trim_references)
        config = replace(config, model=model)
    if last is None:
        start = config.init is not None
        model = config.model
        config = pretrained_defaults(
            config, start or model.audio.pretrained is not None, start or model.decoder.pretrained is not None
        )
    return run(DifferenceTask, config, resume)
