"""What the contrastive methods share: a model with two encoders, and retrieval to validate and evaluate it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from atk.data import TrainDataset
from atk.data.mixgen import MixGenDataset
from atk.data.texts import TAG_SAMPLINGS, TagSampling
from atk.distributed import GATHERS
from atk.distributed.exchange import GatherMode
from atk.eval.retrieval import EvalSplit, evaluate_retrieval
from atk.models.clap import CLAP, ModelConfig
from atk.models.clap_config import with_layer_numbers
from atk.models.layers import checkpoint_layers
from atk.nn import AlignedContrastiveLoss, InfoNCELoss, SigmoidLoss
from atk.nn.losses import MAX_LOGIT_SCALE, check_reduction
from atk.nn.triplet import NEGATIVES, Negatives
from atk.ops.checks import one_of
from atk.ops.info_nce import REDUCTIONS, Reduction
from atk.train.config import TrainConfig
from atk.train.grad_cache import Embeddings
from atk.train.run import MakeTask, checkpoint_to_resume, run
from atk.train.saved_loss import saved_pair_loss
from atk.train.task import CaptionedTask
from atk.train.tuning import note_once, pretrained_defaults

LossKind = Literal["info_nce", "sigmoid", "triplet"]


class StartingPoint(NamedTuple):
    """Temperature and bias of a loss at the first step."""

    temperature: float
    bias: float


@dataclass(frozen=True)
class PairLossConfig:
    """The loss between clips and captions.

    Args:
        kind: "info_nce" ranks the captions of the batch for every clip and the clips for every caption; "sigmoid",
            SigLIP's loss, judges every pair by itself; "triplet" separates each pair from one negative by a margin.
        temperature: inverse of the factor of the similarities; null: that of the checkpoint that the model starts from
            (with its bias), else 0.2 for "info_nce", 0.1 for "sigmoid".
        learnable: learn the temperature, starting from `temperature`, and the bias; null: with "sigmoid", and if both
            encoders start from one checkpoint.
        bias: what "sigmoid" adds to the logits, at the start if it is learned.
        reduction: "sum" or "mean" of the audio-to-text and the text-to-audio loss; not for "sigmoid".
        margin: of "triplet": how much more similar a pair must be than its negative.
        negatives: of "triplet": "weighted" draws a negative with probability proportional to 1 + its cosine similarity,
            "random" draws any, "semi-hard" takes the most similar one below the positive.
    """

    kind: LossKind = "info_nce"
    temperature: float | None = None
    learnable: bool | None = None
    bias: float = -10.0
    reduction: Reduction = "sum"
    margin: float = 0.4
    negatives: Negatives = "weighted"

    def __post_init__(self) -> None:
        one_of("kind", self.kind, get_args(LossKind))
        one_of("negatives", self.negatives, NEGATIVES)
        if not self.margin > 0:
            raise ValueError(f"margin must be above 0, got {self.margin}")
        if self.kind == "triplet" and (self.temperature is not None or self.learnable):
            raise ValueError(
                "temperature and learnable must be null for the triplet loss, which has no temperature, got "
                f"{self.temperature} and {self.learnable}"
            )
        one_of("reduction", self.reduction, REDUCTIONS)
        check_reduction(self.kind, self.reduction)

    def starting_from(self, logit_scale: float | None, logit_bias: float | None) -> "StartingPoint":
        """Where temperature and bias start: as configured, else as in a checkpoint, if it has any, else by default."""
        if self.temperature is not None:
            return StartingPoint(self.temperature, self.bias)
        if logit_scale is None or (logit_bias is None) == (self.kind == "sigmoid"):  # that of another loss
            return StartingPoint(0.1 if self.kind == "sigmoid" else 0.2, self.bias)
        if logit_bias is None:
            return StartingPoint(1 / min(logit_scale, MAX_LOGIT_SCALE), self.bias)
        return StartingPoint(1 / logit_scale, logit_bias)

    @property
    def aligns_frames(self) -> bool:
        """Whether frames and tokens are aligned in addition to the global vectors."""
        return False

    @property
    def learns(self) -> bool:
        """`learnable`, or its default."""
        return self.kind == "sigmoid" if self.learnable is None else self.learnable


@dataclass(frozen=True)
class ContrastiveConfig(TrainConfig):
    """Settings that the contrastive methods share.

    Args:
        init: run folder or model folder to start from; the settings under `model` are then taken from it.
        activation_checkpointing: keep only the inputs of the encoder layers and recompute the rest in the backward,
            which saves memory at the cost of a second forward.
        compile: run `torch.compile` on the encoders; the first steps then take minutes.
        gather: how captions are exchanged between ranks: "all" gathers them at once, "ring" passes them around, which
            takes less memory.
        loss: loss between clips and captions.
        tag_sampling: captions list tags with commas, and every time a clip is drawn, its caption is a draw from them:
            "stochastic", a random number of them in random order; "one" tag; or "shuffle", all of them in random order.
            null: captions as they are.
        mixgen: fraction of the training clips that are averaged with another one, with both captions joined by "and".
        model: audio encoder, text encoder, and shared space.
    """

    init: str | None = None
    loss: PairLossConfig = field(default_factory=PairLossConfig)
    activation_checkpointing: bool = False
    compile: bool = False
    gather: GatherMode = "all"
    tag_sampling: TagSampling | None = None
    mixgen: float = 0.0
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, as the loss contrasts pairs, got {self.batch_size}")
        one_of("gather", self.gather, GATHERS)
        if self.loss.kind == "triplet" and self.gather != "all":
            raise ValueError(f"gather must be 'all' for the triplet loss, got {self.gather!r}")
        if self.tag_sampling is not None:
            one_of("tag_sampling", self.tag_sampling, TAG_SAMPLINGS)
        if not 0 <= self.mixgen <= 1:
            raise ValueError(f"mixgen must be in [0, 1], got {self.mixgen}")


ConfigT = TypeVar("ConfigT", bound=ContrastiveConfig)
CriterionT = TypeVar("CriterionT", bound=nn.Module)


class ContrastiveTask(CaptionedTask[ConfigT, CLAP], Generic[ConfigT, CriterionT]):
    """Model and validation of a contrastive method; subclasses define the criterion, `encode`, and `loss_of`.

    Args:
        config: the run.
        device: device to train on.
        checkpoint: saved model to resume from; None starts a new run.

    Raises:
        ValueError, FileNotFoundError, AudioError, BackendError: as for `CaptionedTask`, or the model cannot be loaded.
    """

    monitor = "mAP@10"
    op = "max_mean_similarity"
    method: str
    learned: tuple[float | None, float | None] = (None, None)  # logit scale and bias of the checkpoint to start from

    def __init__(self, config: ConfigT, device: torch.device, checkpoint: Path | None = None):
        super().__init__(config, device)
        if len(self.clips) < 2:
            raise ValueError(f"data: train.csv must list at least 2 usable clips to contrast, got {len(self.clips)}")
        if checkpoint is None and config.init is not None:
            checkpoint = Path(config.init)
        model = self.load_model(checkpoint)
        self.model = model.to(device)
        self.learned = (model.logit_scale, None)
        if config.init is not None and model.logit_scale is None:
            self.learned = saved_pair_loss(Path(config.init))
        if note := model.describe_cut(config.clip_seconds):
            print(note, file=sys.stderr)
        if config.shard and not getattr(model.audio_encoder, "masks_padding", True):
            raise ValueError("shard: this audio encoder encodes clips of different lengths one length at a time")
        if config.activation_checkpointing:
            checkpoint_layers(self.model)
        if config.compile:
            self.model.audio_encoder.compile()
            self.model.text_encoder.compile()
        self.criterion: CriterionT = self.make_criterion().to(device)
        self.dataset = self.make_dataset()
        self.validation = self._split("val", side_files=False) if self.has("val") else None
        # Read the held-out split now, so that errors in it show up before training and not after it.
        self.evaluation = self._split(self.held_out, side_files=True) if self.held_out else None

    def load_model(self, checkpoint: Path | None) -> CLAP:
        """The saved model to start from, or a new one."""
        return CLAP.create(self.config.model, self.captions) if checkpoint is None else CLAP.from_pretrained(checkpoint)

    @property
    def starting_point(self) -> StartingPoint:
        """Temperature and bias at the first step."""
        return self.config.loss.starting_from(*self.learned)

    def make_criterion(self) -> CriterionT:
        """The loss, and whatever else is trained along with the model."""
        raise NotImplementedError

    def make_dataset(self) -> TrainDataset:
        """The captioned clips to train on."""
        config = self.config
        options: Any = (self.clips, self.model.sample_rate, config.clip_seconds, config.seed)
        if config.mixgen:
            return MixGenDataset(*options, rate=config.mixgen, tag_sampling=config.tag_sampling)
        return TrainDataset(*options, tag_sampling=config.tag_sampling)

    def encode(self, batch: Any) -> Embeddings:
        """The embeddings that `loss_of` takes."""
        raise NotImplementedError

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and its named terms."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Text-to-audio retrieval metrics on the validation split; errors as in `EvalSplit.embed`."""
        assert self.validation is not None
        return evaluate_retrieval(self.model, self.validation.embed(self.model))["text_to_audio"]

    def evaluate(self, checkpoint: Path) -> dict[str, Any]:
        """Retrieval metrics of a saved model on the held-out split; also twins and alignment if the folder has them."""
        assert self.evaluation is not None
        model = CLAP.from_pretrained(checkpoint).to(self.device)
        return evaluate_retrieval(model, self.evaluation.embed(model, f"evaluate {self.held_out}"))

    def _split(self, name: str, side_files: bool) -> EvalSplit:
        return EvalSplit(self.data, name, side_files=side_files, **self.reading_options())


def readings_of(loss: AlignedContrastiveLoss | InfoNCELoss | SigmoidLoss) -> dict[str, Tensor]:
    """What a loss has learned so far, for the log."""
    scale = {"logit_scale": loss.logit_scale}
    return scale | {"logit_bias": loss.logit_bias} if loss.loss == "sigmoid" else scale


def train_contrastive(
    make_task: MakeTask[ConfigT],
    config: ConfigT,
    resume: bool,
    saved_config: Callable[[str | Path], ModelConfig] = CLAP.saved_config,
) -> dict[str, Any] | None:
    """Train by a contrastive method; with `config.init`, `saved_config` of it replaces `config.model`."""
    last = checkpoint_to_resume(config, resume)
    model = config.model if config.init is None else saved_config(last or config.init)
    config = replace(config, model=with_layer_numbers(model, low=config.loss.aligns_frames))
    if last is None:
        config = _safe_defaults(config)
    return run(make_task, config, resume)


def _safe_defaults(config: ConfigT) -> ConfigT:
    """The configuration of a new run, with settings that suit the pretrained weights it starts from."""
    model = config.model
    published = model.clap.pretrained is not None and not model.clap.random_init
    whole = config.init is not None or published or model.msclap.enabled
    config = pretrained_defaults(
        config, whole or model.audio.pretrained is not None, whole or model.text.pretrained is not None
    )
    if whole and config.loss.learnable is None and config.loss.kind != "triplet":
        note = " of the checkpoint" if config.loss.temperature is None else ""
        note_once(f"pretrained weights: the temperature{note} is learned, unless loss.learnable is false")
        config = replace(config, loss=replace(config.loss, learnable=True))
    return config
