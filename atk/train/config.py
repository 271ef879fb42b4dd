"""Configuration of a training run: dataclasses that a YAML file and command-line flags fill."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from atk.data.captions import ON_ERROR
from atk.ops.checks import at_least, one_of
from atk.train.checkpoint import write_whole


def fields_at_least(owner: object, minimum: float, *names: str) -> None:
    for name in names:
        if (value := getattr(owner, name)) is not None:
            at_least(name, value, minimum)


@dataclass(frozen=True)
class OptimConfig:
    """Adam with linear warm-up and cosine decay, or the schedule-free Adam.

    Args:
        name: "adam", or "schedulefree": no decay, the weights kept are an average over the steps (Defazio et al. 2024).
        lr: peak learning rate (5e-5 in the thesis, for a pretrained text encoder; higher suits training from scratch).
        warmup: share of the steps in which the rate rises from 0.
        final: share of the peak rate at the last step ("adam").
        weight_decay: decoupled weight decay; 0 is plain Adam.
        clip_norm: gradients are scaled down to this norm.
    """

    name: str = "adam"
    lr: float = 5e-4
    warmup: float = 0.1
    final: float = 0.01
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        one_of("name", self.name, ("adam", "schedulefree"))
        if not self.lr > 0 or not self.clip_norm > 0:
            raise ValueError(f"lr and clip_norm must be above 0, got {self.lr} and {self.clip_norm}")
        if not 0 <= self.warmup < 1 or not 0 <= self.final <= 1:
            raise ValueError(f"warmup must be in [0, 1) and final in [0, 1], got {self.warmup} and {self.final}")


@dataclass(frozen=True)
class TrainConfig:
    """What every training method shares.

    Args:
        data: folder with train.csv, val.csv (optional), test.csv and the audio they name.
        out: run folder to write.
        epochs: passes over train.csv.
        steps: optimiser steps; overrides epochs.
        seed: of weights, order, crops and dropout.
        device: "auto", "cpu", "cuda" or "cuda:1".
        precision: "fp32", "bf16" (autocast), or "auto": bf16 on GPUs that have it.
        backend: of the fused ops, see `atk.backends()`.
        clip_seconds: random crop in training, window in evaluation (9.91 in the thesis).
        batch_size: clips in a training batch, over all ranks; each meets every caption of its batch.
        micro_batch: clips that are encoded at a time; the step stays that of the whole batch (gradient caching). None:
            all at once. For the contrastive methods. Of each rank, where there are several.
        workers: processes that read audio; 0 = in the main process.
        bucket: batch clips of similar length together, so that less is padding.
        on_error: "skip" names and counts bad files and rows and goes on, "raise" stops at the first.
        log_every: steps between rows of metrics.jsonl.
        save_every: steps between checkpoints.
        eval_every: steps between validations, when there is a val.csv; 0 = only at the end.
        shard: ranks keep a part of the weights and of the optimiser's state each (FSDP2), not all (DDP).
        timeout: seconds that ranks wait for one another, for the first to validate too.
    """

    data: str
    out: str
    epochs: float = 50
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    clip_seconds: float = 9.91
    batch_size: int = 32
    micro_batch: int | None = None
    workers: int = 1
    bucket: bool = False
    on_error: str = "skip"
    log_every: int = 10
    save_every: int = 200
    eval_every: int = 200
    shard: bool = False
    timeout: float = 1800.0
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        fields_at_least(self, 0.05, "clip_seconds")
        fields_at_least(self, 1, "steps", "batch_size", "micro_batch", "log_every", "save_every")
        fields_at_least(self, 0, "eval_every", "seed", "workers")
        if self.seed >= 1 << 32:  # the step is its lower half
            raise ValueError(f"seed must be below {1 << 32}, got {self.seed}")
        if self.shard and self.optim.name != "adam":
            raise ValueError(f"shard: needs optim.name 'adam', got {self.optim.name!r}")
        for name in ("epochs", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        one_of("precision", self.precision, ("auto", "fp32", "bf16"))
        one_of("on_error", self.on_error, ON_ERROR)

    def save(self, path: Path) -> None:
        """Write the complete configuration as YAML, enough to repeat the run."""
        write_whole(path, yaml.safe_dump(json.loads(json.dumps(asdict(self))), sort_keys=False))  # no tuples in JSON
