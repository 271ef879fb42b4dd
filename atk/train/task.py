"""A method of training as the trainer sees it, and what the methods share that learn from captioned clips."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from atk.data import Batch, TrainBatches, TrainDataset, batches_of, describe_skipped, read_split
from atk.distributed.collectives import world_size
from atk.ops.backend import choose
from atk.train import ranks
from atk.train.config import TrainConfig
from atk.train.grad_cache import CachedTask


class Task(CachedTask, Protocol):
    """One method of training: a loss that is a function of embeddings, which need not be made all at once.

    `encode` and `loss_of` run under autocast, and the latter gives this rank's share of the loss and of its terms; the
    shares add up. `batch.files` names what a batch was made of, `batch.sides` counts it, `batch.split` cuts it.
    """

    method: str
    backend: str  # of the fused op
    model: nn.Module  # with config, save_pretrained and, for resuming, the weights loaded
    criterion: nn.Module  # the loss, whose parameters (a learnt temperature) are trained too
    monitor: str  # the validation metric whose maximum is kept as the best checkpoint
    validation: Any  # None without validation data
    held_out: str | None  # the split that a run ends by evaluating
    steps_per_epoch: int
    skipped: dict[str, str]  # files that could not be used, and why

    def batches(self, start_step: int) -> Iterator[Any]:
        """Batches of step `start_step` and on, a pure function of seed and step."""

    def readings(self) -> dict[str, Tensor]:
        """What else to log, the same on every rank."""

    def validate(self) -> dict[str, float]:
        """Validation metrics; raises ValueError where nothing could be read."""

    def evaluate(self, checkpoint: Path) -> dict:
        """Metrics of a saved model on the held-out split, for the summary."""


class CaptionedTask:
    """Captioned clips of `config.data` in batches, for a `Task` that makes `model` and `dataset` of them.

    Args:
        config: the run.
        device: to train on.

    Raises:
        ValueError, FileNotFoundError, AudioError: as `atk.data.read_split`.
        BackendError: the backend cannot run here.
    """

    backends: tuple[str, ...]  # of the method's op
    model: nn.Module
    dataset: TrainDataset

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.backend = choose(config.backend, device, torch.float32, among=self.backends)
        train = read_split(config.data, "train", config.on_error)
        self.clips, self.skipped = train.clips, dict(train.skipped)
        self.captions = [caption for clip in train.clips for caption in clip.captions]
        order = TrainBatches(len(self.clips), config.batch_size, config.seed)
        self.steps_per_epoch = order.steps_per_epoch
        for note in (describe_skipped(train.skipped), order.note):
            if note:
                print(f"train.csv: {note}", file=sys.stderr)
        self.held_out = next((split for split in ("test", "val") if self.has(split)), None)
        torch.manual_seed(config.seed)

    def has(self, split: str) -> bool:
        """Whether the data folder has a split of that name."""
        return (Path(self.config.data) / f"{split}.csv").is_file()

    def reading(self) -> dict[str, Any]:
        """How a split to validate or to evaluate on is read."""
        names = ("clip_seconds", "batch_size", "workers", "on_error")
        return {"sample_rate": self.model.sample_rate} | {name: getattr(self.config, name) for name in names}

    def loading(self, start_step: int) -> dict[str, Any]:
        """How training batches of any data set are loaded."""
        return {
            "start_step": start_step,
            "workers": self.config.workers,
            "pin_memory": self.device.type == "cuda",
            "on_error": self.config.on_error,
            "rank": ranks.rank(),
            "world_size": world_size(),
        }

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Training batches from a step on; files found bad are named once."""
        config = self.config
        options = {"batch_size": config.batch_size, "bucket": config.bucket, **self.loading(start_step)}
        for batch in batches_of(self.dataset, **options):
            self.report(batch.skipped)
            yield batch.to(self.device)

    def silence(self) -> Any:
        """A batch of one silent clip."""
        return self.dataset.collate([self.dataset.silence()]).to(self.device)

    def report(self, skipped: list[tuple[str, str]]) -> None:
        """Name on stderr, once, the files of a batch that could not be read."""
        for name, reason in skipped:
            if name not in self.skipped:
                self.skipped[name] = reason
                print(f"skipped {name} ({reason})", file=sys.stderr)
