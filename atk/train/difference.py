"""Training by audio difference learning (thesis ch. 4): the caption of `x` from `Diff(x + x_ref, x_ref)` (4.9)."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from atk.data import (
    MixConfig,
    MixtureBatch,
    MixtureDataset,
    ReferencePool,
    describe_skipped,
    one_pass,
    read_references,
    read_split,
)
from atk.distributed import total
from atk.eval.captioning import CaptionSplit, evaluate_captions, write_captions
from atk.eval.embed import evaluating
from atk.models.captioner import Captioner, CaptionerConfig
from atk.nn import CrossAttentionDifference
from atk.ops.checks import one_of
from atk.ops.cross_attention import BACKENDS
from atk.train.checkpoint import model_folder
from atk.train.config import TrainConfig, fields_at_least
from atk.train.grad_cache import Embeddings
from atk.train.run import run, to_resume
from atk.train.task import CaptionedTask


@dataclass(frozen=True)
class DifferenceConfig(TrainConfig):
    """Audio difference learning (thesis ch. 4).

    Args:
        objective: "mask" and "subtraction" learn captions from `mix - reference` (4.9); "plain" from the clips alone;
            "pairmix" also from two clips mixed, their captions joined by "and".
        init: run or model folder of a captioner to start from; encoder and decoder are then as they are there.
        clip_seconds: random crop in training; in evaluation longer clips are cut to it.
        beams: width of the beam search that writes captions.
        mix: what is mixed into clips, and what is given to subtract.
        model: encoder, Diff block and decoder; `model.difference` follows from `objective`.
    """

    objective: str = "mask"
    init: str | None = None
    clip_seconds: float = 30.0
    beams: int = 4
    mix: MixConfig = field(default_factory=MixConfig)
    model: CaptionerConfig = field(default_factory=CaptionerConfig)

    def __post_init__(self):
        super().__post_init__()
        one_of("objective", self.objective, ("plain", "pairmix", "subtraction", "mask"))
        if self.micro_batch is not None:
            raise ValueError("micro_batch: captions do not meet one another in the loss; use a smaller batch_size")
        if self.shard:  # how often its layers run depends on the clips of a rank, and sharded ranks keep in step
            raise ValueError("shard: captioners are not sharded")
        fields_at_least(self, 1, "beams")
        block = self.objective if self.objective in ("subtraction", "mask") else "none"
        if self.model.difference not in (CaptionerConfig.difference, block):
            raise ValueError(f"model.difference must be {block!r}, as objective says, got {self.model.difference!r}")
        object.__setattr__(self, "model", replace(self.model, difference=block))


class DifferenceTask(CaptionedTask):
    """Model, loss and validation of captioning and difference learning, for `atk.train.trainer.Trainer`."""

    method, monitor, backends = "difference", "log_likelihood", BACKENDS

    def __init__(self, config: DifferenceConfig, device: torch.device, checkpoint: Path | None = None):
        super().__init__(config, device)
        if checkpoint is not None:
            model = Captioner.from_pretrained(checkpoint)
        elif config.init is not None:
            model = Captioner.from_pretrained(model_folder(Path(config.init))).with_difference(
                config.model.difference, config.model.heads
            )
        else:
            model = Captioner.create(config.model, self.captions)
        self.model, self.criterion = model.to(device), nn.Identity()
        if isinstance(model.difference_block, CrossAttentionDifference):
            model.difference_block.backend = self.backend
        self.dataset = self._dataset()
        self.evaluation = self.validation = None
        if self.held_out:  # read here, so that what is wrong with it is told before training, not after
            self.evaluation = CaptionSplit(config.data, self.held_out, mix=config.mix, **self.reading())
        if self.has("val"):
            clips = read_split(config.data, "val", config.on_error).clips
            self.validation = MixtureDataset(clips, *self._window(), mix=config.mix, pool=None)

    def _window(self) -> tuple[int, float, int]:
        return self.model.sample_rate, self.config.clip_seconds, self.config.seed

    def _dataset(self) -> MixtureDataset:
        config, pool = self.config, None
        if config.objective == "pairmix" or (config.objective != "plain" and config.mix.references is None):
            pool = ReferencePool(self.clips, [""] * len(self.clips), [])
        elif config.objective != "plain":
            pool = read_references(config.mix.references, config.on_error, held_out=config.mix.test_folds)
            if pool.skipped:
                print(f"references: {describe_skipped(pool.skipped)}", file=sys.stderr)
        pairs = config.objective == "pairmix"
        return MixtureDataset(self.clips, *self._window(), mix=config.mix, pool=pool, pairs=pairs)

    def encode(self, batch: MixtureBatch) -> Embeddings:
        """Cross-entropy of the captions (4.9), or (4.3) for clips without a reference, as a mean over their tokens
        `[1]`, and the number of tokens `[1]`."""
        loss, tokens = self._cross_entropy(batch)
        return {"loss": loss[None], "tokens": torch.tensor([tokens], device=self.device)}

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the tokens of all ranks."""
        tokens = embeddings["tokens"]
        return (embeddings["loss"] * tokens).sum() / total(tokens.sum()), {}

    def readings(self) -> dict[str, Tensor]:
        """Nothing beside the loss."""
        return {}

    def _cross_entropy(self, batch: MixtureBatch) -> tuple[Tensor, int]:
        """The mean over the tokens of the captions, and how many they are."""
        tokens = self.model.tokenize(batch.captions)
        loss = self.model(batch.audio, batch.lengths, tokens, batch.references, batch.reference_lengths)
        return loss, int(tokens["attention_mask"].sum())

    def validate(self) -> dict[str, float]:
        """Mean log-likelihood a token of val.csv's captions, one a clip, given the clip alone.

        Raises:
            ValueError: no clip can be decoded; with `on_error="raise"`, a clip cannot (AudioError).
        """
        loss_sum, tokens, config = 0.0, 0, self.config
        options = {"batch_size": config.batch_size, "workers": config.workers, "on_error": config.on_error}
        with torch.no_grad(), evaluating(self.model):
            for batch in one_pass(self.validation, **options):
                if batch.files:
                    loss, count = self._cross_entropy(batch.to(self.device))
                    loss_sum, tokens = loss_sum + float(loss) * count, tokens + count
        if not tokens:
            raise ValueError(f"{config.data}: none of the {len(self.validation)} clips of val.csv can be decoded")
        return {"log_likelihood": -loss_sum / tokens}

    def evaluate(self, checkpoint: Path) -> dict:
        """Captioning metrics on the held-out split by the model of a checkpoint; its captions go to a CSV file."""
        model = Captioner.from_pretrained(checkpoint).to(self.device)
        progress = f"evaluate {self.held_out}"
        result, captions = evaluate_captions(model, self.evaluation, self.config.beams, progress)
        write_captions(Path(self.config.out) / f"captions_{self.held_out}.csv", captions)
        return result


def train(config: DifferenceConfig, resume: bool = False) -> dict:
    """Train a captioner by `config.objective`; arguments, result and errors as `atk.train.run.run`."""
    if config.init is not None:
        start = to_resume(config, resume) or model_folder(Path(config.init))
        given, saved = config.model, Captioner.saved_config(start)
        config = replace(config, model=replace(saved, difference=given.difference, heads=given.heads))
    return run(DifferenceTask, config, resume)
