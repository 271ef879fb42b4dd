"""Training by audio difference learning (thesis ch. 4): the caption of `x` from `Diff(x + x_ref, x_ref)` (4.9)."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from atk import parallel
from atk.backend import choose
from atk.caption import CaptionSplit, evaluate_captions, write_captions
from atk.checkpoint import model_folder
from atk.collectives import world_size
from atk.config import DifferenceConfig
from atk.cross_attention import BACKENDS
from atk.data import (
    Clip,
    Loader,
    MixtureBatch,
    MixtureDataset,
    ReferencePool,
    batches_of,
    describe_skipped,
    one_pass,
    read_references,
    read_split,
)
from atk.distributed import total
from atk.embed import evaluating
from atk.grad_cache import Embeddings
from atk.models.captioner import Captioner
from atk.nn import CrossAttentionDifference
from atk.run import report_skipped, run, to_resume


class DifferenceTask:
    """Batches, loss and validation of captioning and difference learning, for `atk.trainer.Trainer`."""

    method, monitor = "difference", "log_likelihood"

    def __init__(self, config: DifferenceConfig, device: torch.device, checkpoint: Path | None = None):
        self.config, self.device = config, device
        self.backend = choose(config.backend, device, torch.float32, among=BACKENDS)
        train = read_split(config.data, "train", config.on_error)
        self.skipped = dict(train.skipped)
        if train.skipped:
            print(f"train.csv: {describe_skipped(train.skipped)}", file=sys.stderr)
        captions = [caption for clip in train.clips for caption in clip.captions]
        torch.manual_seed(config.seed)
        if checkpoint is not None:
            model = Captioner.from_pretrained(checkpoint)
        elif config.init is not None:
            model = Captioner.from_pretrained(model_folder(Path(config.init))).with_difference(
                config.model.difference, config.model.heads
            )
        else:
            model = Captioner.create(config.model, captions)
        self.model, self.criterion = model.to(device), nn.Identity()
        if isinstance(model.difference_block, CrossAttentionDifference):
            model.difference_block.backend = self.backend
        self.dataset = self._dataset(train.clips)
        # Read here too, so that what is wrong with it is told before training, not after.
        if (split := next((name for name in ("test", "val") if self._has(name)), None)) is not None:
            self._held_out(split)
        self.validation = None
        if self._has("val"):
            clips = read_split(config.data, "val", config.on_error).clips
            window = (model.sample_rate, config.clip_seconds, config.seed)
            self.validation = MixtureDataset(clips, *window, mix=config.mix, pool=None)
        loader = self._loader(0)
        self.steps_per_epoch = loader.batches.steps_per_epoch
        if loader.batches.note:
            print(f"train.csv: {loader.batches.note}", file=sys.stderr)

    def _has(self, split: str) -> bool:
        return (Path(self.config.data) / f"{split}.csv").is_file()

    def _dataset(self, clips: list[Clip]) -> MixtureDataset:
        config, pool = self.config, None
        if config.objective == "pairmix" or (config.objective != "plain" and config.mix.references is None):
            pool = ReferencePool(clips, [""] * len(clips), [])
        elif config.objective != "plain":
            pool = read_references(config.mix.references, config.on_error, held_out=config.mix.test_folds)
            if pool.skipped:
                print(f"references: {describe_skipped(pool.skipped)}", file=sys.stderr)
        pairs = config.objective == "pairmix"
        window = (self.model.sample_rate, config.clip_seconds, config.seed)
        return MixtureDataset(clips, *window, mix=config.mix, pool=pool, pairs=pairs)

    def _held_out(self, split: str) -> CaptionSplit:
        config = self.config
        return CaptionSplit(
            config.data,
            split,
            sample_rate=self.model.sample_rate,
            clip_seconds=config.clip_seconds,
            mix=config.mix,
            batch_size=config.batch_size,
            workers=config.workers,
            on_error=config.on_error,
        )

    def _loader(self, start_step: int) -> Loader:
        config = self.config
        return batches_of(
            self.dataset,
            batch_size=config.batch_size,
            start_step=start_step,
            bucket=config.bucket,
            workers=config.workers,
            pin_memory=self.device.type == "cuda",
            on_error=config.on_error,
            rank=parallel.rank(),
            world_size=world_size(),
        )

    def batches(self, start_step: int) -> Iterator[MixtureBatch]:
        """Training batches from a step on; files found bad are named once."""
        for batch in self._loader(start_step):
            report_skipped(batch.skipped, self.skipped)
            yield batch.to(self.device)

    def encode(self, batch: MixtureBatch) -> Embeddings:
        """Cross-entropy of the captions (4.9), or (4.3) for clips without a reference, as a mean over their tokens
        `[1]`, and the number of tokens `[1]`."""
        loss, tokens = self._cross_entropy(batch)
        return {"loss": loss[None], "tokens": torch.tensor([tokens], device=self.device)}

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the tokens of all ranks."""
        tokens = embeddings["tokens"]
        return (embeddings["loss"] * tokens).sum() / total(tokens.sum()), {}

    def silence(self) -> MixtureBatch:
        """A batch of one silent clip."""
        samples = torch.zeros(round(self.model.sample_rate * self.config.clip_seconds))
        item = {"audio": samples, "caption": "", "file": "", "clip": 0, "references": [], "added": ()}
        return self.dataset.collate([item]).to(self.device)

    def readings(self) -> dict[str, Tensor]:
        """Nothing beside the loss."""
        return {}

    def _cross_entropy(self, batch: MixtureBatch) -> tuple[Tensor, int]:
        """The mean over the tokens of the captions, and how many they are."""
        tokens = self.model.tokenize(batch.captions)
        loss = self.model(batch.audio, batch.lengths, tokens, batch.references, batch.reference_lengths)
        return loss, int(tokens["attention_mask"].sum())

    def validate(self) -> dict[str, float] | None:
        """Mean log-likelihood a token of val.csv's captions, one a clip, given the clip alone; None without val.csv."""
        if self.validation is None:
            return None
        total, tokens = 0.0, 0
        with torch.no_grad(), evaluating(self.model):
            for batch in one_pass(self.validation, batch_size=self.config.batch_size, workers=self.config.workers):
                if batch.files:
                    loss, count = self._cross_entropy(batch.to(self.device))
                    total, tokens = total - float(loss) * count, tokens + count
        return {"log_likelihood": total / tokens} if tokens else None

    def evaluate(self, checkpoint: Path, split: str) -> dict:
        """Captioning metrics on a split by the model of a checkpoint; its captions go to `captions_<split>.csv`."""
        model = Captioner.from_pretrained(checkpoint).to(self.device)
        result, captions = evaluate_captions(model, self._held_out(split), self.config.beams, f"evaluate {split}")
        write_captions(Path(self.config.out) / f"captions_{split}.csv", captions)
        return result


def train(config: DifferenceConfig, resume: bool = False) -> dict:
    """Train a captioner by `config.objective`; arguments, result and errors as `atk.run.run`."""
    if config.init is not None:
        start = to_resume(config, resume) or model_folder(Path(config.init))
        given, saved = config.model, Captioner.from_pretrained(start).config
        config = replace(config, model=replace(saved, difference=given.difference, heads=given.heads))
    return run(DifferenceTask, config, resume)
