"""What contrastive methods share: captioned clips, a model with two encoders, retrieval to validate and evaluate it."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atk import parallel
from atk.backend import BACKENDS, choose
from atk.checkpoint import model_folder
from atk.collectives import world_size
from atk.config import ContrastiveConfig
from atk.data.captions import describe_skipped, read_split
from atk.data.dataset import Batch, collate
from atk.data.loader import Loader, train_loader
from atk.evaluate import EvalSplit, evaluate_retrieval
from atk.grad_cache import Embeddings
from atk.models.clap import CLAP
from atk.run import report_skipped, run, to_resume


class ContrastiveTask:
    """Batches and validation of a contrastive method, for `atk.trainer.Trainer`; a method adds criterion and loss."""

    monitor = "mAP@10"
    backends = BACKENDS  # of the method's op

    def __init__(self, config: ContrastiveConfig, device: torch.device, saved: Path | None = None):
        self.config, self.device = config, device
        self.backend = choose(config.backend, device, torch.float32, among=self.backends)
        train = read_split(config.data, "train", config.on_error)
        self.clips, self.skipped = train.clips, dict(train.skipped)
        if train.skipped:
            print(f"train.csv: {describe_skipped(train.skipped)}", file=sys.stderr)
        captions = [caption for clip in train.clips for caption in clip.captions]
        torch.manual_seed(config.seed)
        if saved is None and config.init is not None:
            saved = model_folder(Path(config.init))
        model = CLAP.create(config.model, captions) if saved is None else CLAP.from_pretrained(saved)
        self.model = model.to(device)
        if config.activation_checkpointing:
            for layer in parallel.innermost_layers(self.model):
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if config.compile:
            self.model.audio_encoder.compile()
            self.model.text_encoder.compile()
        self.criterion = self.make_criterion().to(device)
        self.validation = self._held_out("val", side_files=False)
        loader = self._loader(0)
        self.steps_per_epoch = loader.batches.steps_per_epoch
        if loader.batches.note:
            print(f"train.csv: {loader.batches.note}", file=sys.stderr)

    def make_criterion(self) -> nn.Module:
        """The loss and whatever else is trained beside the model."""
        raise NotImplementedError

    def encode(self, batch: Any) -> Embeddings:
        """Embeddings that the loss is a function of."""
        raise NotImplementedError

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's share of the loss of a batch, and of its terms."""
        raise NotImplementedError

    def silence(self) -> Any:
        """A batch of one silent clip."""
        samples = torch.zeros(round(self.model.sample_rate * self.config.clip_seconds))
        return collate([{"audio": samples, "caption": "", "file": "", "clip": 0}]).to(self.device)

    def _loader(self, start_step: int) -> Loader:
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
            rank=parallel.rank(),
            world_size=world_size(),
        )

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Training batches from a step on; files found bad are named once."""
        for batch in self._loader(start_step):
            report_skipped(batch.skipped, self.skipped)
            yield batch.to(self.device)

    def validate(self) -> dict[str, float] | None:
        """Text-to-audio retrieval on val.csv, None where there is none."""
        if self.validation is None:
            return None
        return evaluate_retrieval(self.model, self.validation.embed(self.model))["text_to_audio"]

    def evaluate(self, checkpoint: Path, split: str) -> dict:
        """Retrieval on a split by the model of a checkpoint; twins and alignment where the folder tells."""
        model = CLAP.from_pretrained(checkpoint).to(self.device)
        return evaluate_retrieval(model, self._held_out(split, side_files=True).embed(model, f"evaluate {split}"))

    def _held_out(self, split: str, side_files: bool) -> EvalSplit | None:
        """A split of the run's data, None where the folder has none of that name."""
        config = self.config
        if not (Path(config.data) / f"{split}.csv").is_file():
            return None
        return EvalSplit(
            config.data,
            split,
            sample_rate=self.model.sample_rate,
            clip_seconds=config.clip_seconds,
            batch_size=config.batch_size,
            workers=config.workers,
            on_error=config.on_error,
            side_files=side_files,
        )


def train_contrastive(make_task: type[ContrastiveTask], config: ContrastiveConfig, resume: bool) -> dict:
    """Train by a contrastive method; `config.model` is that of `config.init` where a model is named there."""
    if config.init is not None:
        start = to_resume(config, resume) or model_folder(Path(config.init))
        config = replace(config, model=CLAP.saved_config(start))
    return run(make_task, config, resume)
