"""Settings of training with unlabeled audio: the mapper, the terms of the loss, and semi-supervised runs."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from atk.ops.checks import one_of
from atk.train.config import fields_at_least
from atk.train.contrastive import ContrastiveConfig, PairLossConfig

MapperKind = Literal["mlp", "transformer"]
MapperFrames = Literal["encoder", "projected"]


@dataclass(frozen=True)
class MapperConfig:
    """Mapper from audio to pseudo-tokens, which stand for words in the input of the text encoder.

    Args:
        kind: "mlp" maps the global vector of a clip to one pseudo-token, "transformer" maps its frames to several.
        tokens: number of pseudo-tokens per clip; "transformer" only.
        frames: "encoder": those of the audio encoder, in its width; "projected": those in the shared space. null:
            "encoder" in a new run; runs of versions that had only "projected" stay with that. "transformer" only.
        hidden: width of the hidden layer; "mlp" only.
        layers: number of decoder layers; "transformer" only.
        heads: number of attention heads; "transformer" only.
        dropout: dropout rate.
        noise: standard deviation of the Gaussian noise that is added to the input; 0 adds none.
    """

    kind: MapperKind = "transformer"
    tokens: int = 2
    hidden: int = 512
    layers: int = 2
    heads: int = 8
    dropout: float = 0.1
    noise: float = 1.0
    frames: MapperFrames | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, get_args(MapperKind))
        if self.frames is not None:
            one_of("frames", self.frames, get_args(MapperFrames))
        fields_at_least(self, 1, "tokens", "hidden", "layers", "heads")
        fields_at_least(self, 0, "noise")


@dataclass(frozen=True)
class UnlabeledLossConfig(PairLossConfig):
    """Weights of the terms that use unlabeled audio.

    Args:
        mix_weight: weight of the loss between mixtures of a captioned and an unlabeled clip, and captions with the
            pseudo-tokens of the unlabeled clip; 0 disables it.
        unlabeled_weight: weight of the loss between unlabeled clips and the prompt with their pseudo-tokens; 0
            disables it.
    """

    mix_weight: float = 1.0
    unlabeled_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "triplet":
            raise ValueError("kind must be 'info_nce' or 'sigmoid' to learn from unlabeled audio, got 'triplet'")
        fields_at_least(self, 0, "mix_weight", "unlabeled_weight")


@dataclass(frozen=True)
class SemiSupervisedLossConfig(UnlabeledLossConfig):
    """Loss: InfoNCE or the sigmoid loss on captioned clips, on mixtures, and on unlabeled clips.

    Args:
        labeled_weight: weight of the loss between clips and their captions.
    """

    labeled_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields_at_least(self, 0, "labeled_weight")
        if self.labeled_weight + self.mix_weight + self.unlabeled_weight == 0:
            raise ValueError("labeled_weight, mix_weight and unlabeled_weight must not all be 0")


@dataclass(frozen=True)
class UnlabeledConfig(ContrastiveConfig):
    """Settings of the methods that also learn from unlabeled audio.

    Args:
        unlabeled: folders of audio, tar shards, or folders of tar shards; may be empty if no loss term uses unlabeled
            audio.
        prompt: text that precedes the pseudo-tokens of an unlabeled clip.
        mapper: audio to pseudo-tokens.
    """

    unlabeled: list[str] = field(default_factory=list)
    prompt: str = "A sound of"
    mapper: MapperConfig = field(default_factory=MapperConfig)
    loss: UnlabeledLossConfig = field(default_factory=UnlabeledLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.unlabeled, str):  # a single folder in a YAML file
            object.__setattr__(self, "unlabeled", [self.unlabeled])
        if wrong := [folder for folder in self.unlabeled if not isinstance(folder, str)]:
            raise ValueError(f"unlabeled must be names of folders or tar shards, got {wrong[0]!r}")
        if self.uses_unlabeled and not self.unlabeled:
            raise ValueError(
                "unlabeled must name a folder of audio or tar shards; to train without any, set loss.mix_weight and "
                "loss.unlabeled_weight to 0"
            )
        if self.uses_unlabeled and self.model.text.vectors is not None:
            raise ValueError(
                "model.text.vectors must be null, as word vectors take no pseudo-tokens of unlabeled audio"
            )

    @property
    def uses_unlabeled(self) -> bool:
        """Whether a term of the loss needs unlabeled audio."""
        return self.loss.mix_weight > 0 or self.loss.unlabeled_weight > 0


@dataclass(frozen=True)
class SemiSupervisedConfig(UnlabeledConfig):
    """Contrastive learning from captioned clips and unlabeled audio.

    Args:
        loss: weights of the three terms.
    """

    backend: Literal["auto", "triton", "chunked", "reference"] = "auto"
    loss: SemiSupervisedLossConfig = field(default_factory=SemiSupervisedLossConfig)
