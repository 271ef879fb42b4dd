"""Training by aligned contrastive learning (thesis ch. 3): `L_total = L_global + L_align` (3.7)."""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from atk.backend import choose
from atk.config import AlignedConfig
from atk.data.captions import describe_skipped, read_split
from atk.data.dataset import Batch
from atk.data.loader import train_loader
from atk.evaluate import EvalSplit, evaluate_retrieval
from atk.models.clap import CLAP
from atk.nn import AlignedContrastiveLoss
from atk.run import report_skipped, run


class AlignedTask:
    """Batches, loss and validation of aligned contrastive learning, for `atk.trainer.Trainer`."""

    method, monitor = "aligned", "mAP@10"

    def __init__(self, config: AlignedConfig, device: torch.device, checkpoint: Path | None = None):
        self.config, self.device = config, device
        self.backend = choose(config.backend, device, torch.float32)
        train = read_split(config.data, "train", config.on_error)
        self.clips, self.skipped = train.clips, dict(train.skipped)
        if train.skipped:
            print(f"train.csv: {describe_skipped(train.skipped)}", file=sys.stderr)
        captions = [caption for clip in train.clips for caption in clip.captions]
        torch.manual_seed(config.seed)
        model = CLAP.create(config.model, captions) if checkpoint is None else CLAP.from_pretrained(checkpoint)
        loss = AlignedContrastiveLoss(
            config.loss.temperature,
            config.loss.learnable,
            config.loss.reduction,
            global_weight=config.loss.global_weight,
            aligned_weight=config.loss.aligned_weight,
            direction=config.loss.direction,
            skip_below=config.loss.skip_below,
            backend=config.backend,
        )
        self.model, self.criterion = model.to(device), loss.to(device)
        self.validation = eval_split(config, "val", side_files=False)
        loader = self._loader(0)
        self.steps_per_epoch = loader.batches.steps_per_epoch
        if loader.batches.note:
            print(f"train.csv: {loader.batches.note}", file=sys.stderr)

    def _loader(self, start_step: int):
        config = self.config
        return train_loader(
            self.clips,
            sample_rate=self.model.sample_rate,
            clip_seconds=config.clip_seconds,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start_step,
            bucket=config.bucket,
            workers=config.workers,
            pin_memory=self.device.type == "cuda",
            on_error=config.on_error,
        )

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Training batches from a step on; files found bad are named once."""
        for batch in self._loader(start_step):
            report_skipped(batch.skipped, self.skipped)
            yield batch.to(self.device)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """`L_total` of a batch, and its terms."""
        audio, text = self.model(batch.audio, batch.lengths, self.model.tokenize(batch.captions))
        terms = self.criterion.terms(audio.pooled, text.pooled, audio.frames, text.tokens, audio.mask, text.mask)
        parts = terms | {"logit_scale": self.criterion.logit_scale}
        return self.criterion.total(terms), parts

    def validate(self) -> dict[str, float] | None:
        """Text-to-audio retrieval on val.csv, None where there is none."""
        if self.validation is None:
            return None
        return evaluate_retrieval(self.model, self.validation.embed(self.model))["text_to_audio"]

    def evaluate(self, checkpoint: Path, split: str) -> dict:
        """Retrieval on a split by the model of a checkpoint; twins and alignment where the folder tells."""
        model = CLAP.from_pretrained(checkpoint).to(self.device)
        return evaluate_retrieval(
            model, eval_split(self.config, split, side_files=True).embed(model, f"evaluate {split}")
        )


def eval_split(config: AlignedConfig, split: str, side_files: bool) -> EvalSplit | None:
    """A split of the run's data, None where the folder has none of that name."""
    if not (Path(config.data) / f"{split}.csv").is_file():
        return None
    return EvalSplit(
        config.data,
        split,
        sample_rate=config.model.audio.sample_rate,
        clip_seconds=config.clip_seconds,
        batch_size=config.batch_size,
        workers=config.workers,
        on_error=config.on_error,
        side_files=side_files,
    )


def train(config: AlignedConfig, resume: bool = False) -> dict:
    """Train by aligned contrastive learning; arguments, result and errors as `atk.run.run`."""
    return run(AlignedTask, config, resume)
