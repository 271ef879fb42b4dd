"""Configuration of a training run: dataclasses that a YAML file and command-line flags fill."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import yaml

from atk.checkpoint import write_whole
from atk.checks import at_least, one_of
from atk.data.captions import ON_ERROR
from atk.data.mixtures import MixConfig
from atk.distributed import GATHERS
from atk.models.captioner import CaptionerConfig
from atk.models.clap import ModelConfig


def _at_least(owner: object, minimum: float, *names: str) -> None:
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
class LossConfig:
    """`L_total = L_global + L_align` (3.7).

    Args:
        temperature: tau (0.2 in the thesis).
        learnable: learn the temperature, starting there.
        reduction: "sum" of the two directions (3.5) or their "mean".
        global_weight: factor of InfoNCE on global cosine; 0 leaves it out.
        aligned_weight: factor of InfoNCE on max-mean similarity; 0 leaves it out.
        direction: "audio" (frames look for tokens), "text" or "both".
        skip_below: leave pairs of a smaller softmax weight out of the aligned loss's backward; see
            `atk.aligned_info_nce`. 0 leaves none out.
    """

    temperature: float = 0.2
    learnable: bool = False
    reduction: str = "sum"
    global_weight: float = 1.0
    aligned_weight: float = 1.0
    direction: str = "audio"
    skip_below: float = 0.0


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
        _at_least(self, 0.05, "clip_seconds")
        _at_least(self, 1, "steps", "batch_size", "micro_batch", "log_every", "save_every")
        _at_least(self, 0, "eval_every", "seed", "workers")
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


@dataclass(frozen=True)
class AlignedConfig(ContrastiveConfig):
    """Aligned contrastive learning (thesis ch. 3).

    Args:
        loss: global and aligned InfoNCE.
    """

    loss: LossConfig = field(default_factory=LossConfig)


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
        _at_least(self, 1, "beams")
        block = self.objective if self.objective in ("subtraction", "mask") else "none"
        if self.model.difference not in (CaptionerConfig.difference, block):
            raise ValueError(f"model.difference must be {block!r}, as objective says, got {self.model.difference!r}")
        object.__setattr__(self, "model", replace(self.model, difference=block))


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
        _at_least(self, 1, "tokens", "hidden", "layers", "heads")
        _at_least(self, 0, "noise")


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
        _at_least(self, 0, "labeled_weight", "mix_weight", "unlabeled_weight")
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
