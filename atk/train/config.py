"""Configuration of a training run: dataclasses filled from a YAML file and command-line flags."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from atk.data.captions import ON_ERROR, OnError
from atk.data.sampler import SetWeights
from atk.extras import optional_imports
from atk.models.spec_augment import SpecAugmentConfig
from atk.ops.checks import at_least, one_of
from atk.train.checkpoint import write_atomically
from atk.train.loggers import LOGGERS
from atk.train.tune_config import TuneConfig

LR = 5e-4  # from scratch
OptimizerName = Literal["adam", "schedulefree"]
Precision = Literal["auto", "fp32", "bf16"]


def fields_at_least(owner: object, minimum: float, *names: str) -> None:
    """Check that these fields are None or at least `minimum`; raises ValueError."""
    for name in names:
        if (value := getattr(owner, name)) is not None:
            at_least(name, value, minimum)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer: Adam with linear warmup and cosine decay, or schedule-free Adam.

    Args:
        name: "adam", or "schedulefree", which averages the weights over the steps instead of decaying the learning
            rate (Defazio et al. 2024).
        lr: peak learning rate; null: 5e-4, but 5e-5 for towers that start from pretrained weights.
        audio_lr: peak learning rate of the audio encoder; null: `lr`.
        text_lr: peak learning rate of the text encoder, or of the decoder of a captioner; null: `lr`.
        layer_decay: learning rate of a layer of a tower as a fraction of that of the next layer; 1 gives all layers
            that of their tower, 0.75 is common in fine-tuning.
        warmup: fraction of the steps over which the learning rate rises from 0.
        final: learning rate at the end of the cosine decay, as a fraction of the peak; "adam" only.
        weight_decay: decoupled weight decay of all weights but norms, biases, and the temperature; 0 is plain Adam.
        clip_norm: maximum norm of the gradient.
    """

    name: OptimizerName = "adam"
    lr: float | None = None
    audio_lr: float | None = None
    text_lr: float | None = None
    layer_decay: float = 1.0
    warmup: float = 0.1
    final: float = 0.01
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        one_of("name", self.name, get_args(OptimizerName))
        if not self.peak_lr > 0 or not self.clip_norm > 0:
            raise ValueError(f"lr and clip_norm must be above 0, got {self.lr} and {self.clip_norm}")
        for name in ("audio_lr", "text_lr"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}")
        if not 0 <= self.warmup < 1 or not 0 <= self.final <= 1:
            raise ValueError(f"warmup must be in [0, 1) and final in [0, 1], got {self.warmup} and {self.final}")

    @property
    def peak_lr(self) -> float:
        """`lr`, or its default for training from scratch."""
        return LR if self.lr is None else self.lr


@dataclass(frozen=True)
class TrainConfig:
    """Settings that all training methods share.

    Args:
        data: one or several data sets: folders with train.csv, optionally val.csv and test.csv, and the audio files
            that they list; tar shards; and other layouts (see the page on data).
        out: run folder to write.
        epochs: passes over the training clips.
        steps: number of optimizer steps; overrides epochs.
        seed: seed of the weights, the order of the clips, the crops, and dropout.
        device: "auto", "cpu", "cuda", or "cuda:1".
        precision: "fp32", "bf16" (autocast), or "auto": bf16 on GPUs and CPUs that have
            instructions for it.
        backend: implementation of the fused ops; "auto" picks the fastest one that runs here, see `atk doctor`.
        clip_seconds: length of the random crops in training and of the windows in evaluation.
        batch_size: clips in a training batch, summed over all ranks.
        micro_batch: clips per rank that are encoded at a time; null encodes the whole batch at once. The update stays
            that of the whole batch: by gradient caching for contrastive losses, by gradient accumulation for captions.
        workers: processes that read audio for a rank; 0 reads in the main process, null picks 1 on a CPU and up to 8 on
            a GPU. The result of training does not depend on it.
        bucket: batch clips of similar length, which reduces padding.
        data_weights: how often an epoch draws each clip of each data set: with 2, twice; with 0.5, every other epoch;
            null draws every clip once.
        caption_column: name of the captions in shards, metadata files, and Hugging Face data sets, all of which must
            have it if `data` names several; null uses the first that exists of caption, text, and captions.
        on_error: "skip" reports bad files and rows and continues without them, "raise" stops at the first one.
        log_every: steps between rows of metrics.jsonl.
        loggers: where these rows go as well: "tensorboard", "wandb", "mlflow", "trackio". The last three need their
            packages, and work offline unless their environment variables name a server.
        save_every: steps between checkpoints.
        async_save: write checkpoints in the background, from a copy in main memory, while training continues.
        eval_every: steps between validations if there is a split to validate on; 0 validates only at the end.
        patience: end training after so many validations in a row without a better one; null never does.
        ema: decay of an exponential moving average of the weights, such as 0.999, which is then validated and saved in
            their place; it rises from 0.1 over the first steps. 0 averages nothing.
        shard: shard weights and optimizer state over the ranks (FSDP2) instead of replicating them (DDP).
        timeout: seconds that a rank waits for the others, including for the first rank to validate.
        optim: optimizer: Adam with linear warmup and cosine decay, or schedule-free Adam.
        tune: fine-tuning: frozen weights, gradual unfreezing, low-rank adapters.
        spec_augment: masks on the spectrograms of training clips.
    """

    data: str | list[str]
    out: str
    epochs: float = 50
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    backend: str = "auto"
    clip_seconds: float = 9.91
    batch_size: int = 32
    micro_batch: int | None = None
    workers: int | None = None
    bucket: bool = False
    data_weights: list[float] | None = None
    caption_column: str | None = None
    on_error: OnError = "skip"
    log_every: int = 10
    loggers: list[str] = field(default_factory=lambda: ["tensorboard"])
    save_every: int = 200
    async_save: bool = False
    eval_every: int = 200
    patience: int | None = None
    ema: float = 0.0
    shard: bool = False
    timeout: float = 1800.0
    optim: OptimConfig = field(default_factory=OptimConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)

    def __post_init__(self) -> None:
        self._check_data()
        self._check_averages()
        fields_at_least(self, 0.05, "clip_seconds")
        fields_at_least(self, 1, "steps", "batch_size", "micro_batch", "log_every", "save_every", "patience")
        fields_at_least(self, 0, "eval_every", "seed", "workers")
        if self.seed >= 1 << 32:  # random states combine it with the step in 64 bits
            raise ValueError(f"seed must be below {1 << 32}, got {self.seed}")
        for name in ("epochs", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        for name, value in vars(self).items():
            for text in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(text, str) and not _is_unicode(text):  # config.yaml could not hold it
                    raise ValueError(f"{name}: {text!r} is not valid UTF-8; rename the file or folder")
        for name in self.loggers:
            one_of("loggers", name, LOGGERS)
        one_of("precision", self.precision, get_args(Precision))
        one_of("on_error", self.on_error, ON_ERROR)

    def _check_data(self) -> None:
        names = [self.data] if isinstance(self.data, str) else self.data
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"data must be the names of one or several data sets, got {self.data!r}")
        object.__setattr__(self, "data", names[0] if len(names) == 1 else names)
        if self.data_weights is not None:
            SetWeights([1] * len(names), self.data_weights)  # checks them

    def _check_averages(self) -> None:
        """Check what does not go with an optimizer that averages the weights."""
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        for name in ("ema", "shard"):
            if getattr(self, name) and self.optim.name != "adam":
                raise ValueError(f"{name}: needs optim.name 'adam', got {self.optim.name!r}")

    @property
    def passes_over_captions(self) -> bool:
        """Whether an epoch has each clip once per caption."""
        return False

    def total_steps(self, steps_per_epoch: int) -> int:
        """The number of optimizer steps of the run."""
        return self.steps or math.ceil(self.epochs * steps_per_epoch)

    def save(self, path: Path) -> None:
        """Write the complete configuration as YAML; training with it repeats the run."""
        with optional_imports:
            import yaml

        plain = json.loads(json.dumps(asdict(self)))  # lists instead of tuples
        write_atomically(path, yaml.safe_dump(plain, sort_keys=False))
