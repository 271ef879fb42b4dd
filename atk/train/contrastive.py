"""What contrastive methods share: captioned clips, a model with two encoders, retrieval to validate and evaluate it."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from atk.data import TrainDataset
from atk.distributed import GATHERS
from atk.eval.retrieval import EvalSplit, evaluate_retrieval
from atk.models.clap import CLAP, ModelConfig
from atk.models.layers import checkpoint_layers
from atk.ops.backend import BACKENDS
from atk.ops.checks import one_of
from atk.train.checkpoint import model_folder
from atk.train.config import TrainConfig
from atk.train.run import run, to_resume
from atk.train.task import CaptionedTask


@dataclass(frozen=True)
class ContrastiveConfig(TrainConfig):
    """What the contrastive methods share.

    Args:
        init: run or model folder of a model to start from; `model` is then as it is there.
        activation_checkpointing: keep only what goes into each layer of the encoders, and compute the rest again in the
            backward: less memory for one more forward.
        compile: run `torch.compile` on the encoders; it takes minutes at the start.
        gather: how captions travel where there are several ranks: "all" at once, or round a "ring", for less memory.
        model: audio encoder, text encoder and the space they share.
    """

    init: str | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    gather: str = "all"
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self):
        super().__post_init__()
        one_of("gather", self.gather, GATHERS)


class ContrastiveTask(CaptionedTask):
    """Model and validation of a contrastive method; a method adds the criterion, `encode` and `loss_of`."""

    monitor = "mAP@10"
    backends = BACKENDS

    def __init__(self, config: ContrastiveConfig, device: torch.device, saved: Path | None = None):
        super().__init__(config, device)
        if saved is None and config.init is not None:
            saved = model_folder(Path(config.init))
        model = CLAP.create(config.model, self.captions) if saved is None else CLAP.from_pretrained(saved)
        self.model = model.to(device)
        if note := model.describe_cut(config.clip_seconds):
            print(note, file=sys.stderr)
        if config.activation_checkpointing:
            checkpoint_layers(self.model)
        if config.compile:
            self.model.audio_encoder.compile()
            self.model.text_encoder.compile()
        self.criterion = self.make_criterion().to(device)
        self.dataset = TrainDataset(self.clips, model.sample_rate, config.clip_seconds, config.seed)
        self.validation = self._split("val", side_files=False) if self.has("val") else None
        # Read here too, so that what is wrong with it is told before training, not after.
        self.evaluation = self._split(self.held_out, side_files=True) if self.held_out else None

    def make_criterion(self) -> nn.Module:
        """The loss and whatever else is trained beside the model."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Text-to-audio retrieval on val.csv; errors as `EvalSplit.embed`."""
        return evaluate_retrieval(self.model, self.validation.embed(self.model))["text_to_audio"]

    def evaluate(self, checkpoint: Path) -> dict:
        """Retrieval on the held-out split by the model of a checkpoint; twins and alignment where the folder tells."""
        model = CLAP.from_pretrained(checkpoint).to(self.device)
        return evaluate_retrieval(model, self.evaluation.embed(model, f"evaluate {self.held_out}"))

    def _split(self, name: str, side_files: bool) -> EvalSplit:
        return EvalSplit(self.config.data, name, side_files=side_files, **self.reading())


def train_contrastive(make_task: type[ContrastiveTask], config: ContrastiveConfig, resume: bool) -> dict:
    """Train by a contrastive method; `config.model` is that of `config.init` where a model is named there."""
    if config.init is not None:
        start = to_resume(config, resume) or model_folder(Path(config.init))
        config = replace(config, model=CLAP.saved_config(start))
    return run(make_task, config, resume)
