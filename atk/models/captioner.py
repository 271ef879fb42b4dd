"""A captioner that describes a clip, or what the clip contains that its reference clips do not (thesis ch. 4)."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from atk.models.caption_model import DIFFERENCES, CaptionModel, Difference, create_difference_block
from atk.models.cnn14 import FRAME_STRIDE, Cnn14, Cnn14Config
from atk.models.decoder import CaptionDecoder, DecoderConfig
from atk.models.saved import find_model, load_weights, naming_file, save_model
from atk.ops.checks import one_of

_DECODER = "decoder"


@dataclass(frozen=True)
class CaptionerConfig:
    """Audio encoder, Diff block, and decoder of a captioner.

    Args:
        difference: Diff block that removes the references from a clip: "mask" masks the clip's features by
            cross-attention to the references, "subtraction" subtracts their features frame by frame, and "none" builds
            a captioner without references.
        heads: number of attention heads of the mask.
        audio: audio encoder.
        decoder: caption decoder.
    """

    difference: Difference = "mask"
    heads: int = 4
    audio: Cnn14Config = field(default_factory=Cnn14Config)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        one_of("difference", self.difference, DIFFERENCES)
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, got {self.heads}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CaptionerConfig":
        """Restore a configuration from the output of `dataclasses.asdict`."""
        fields: dict[str, Any] = dict(values)
        fields["audio"] = Cnn14Config(**values["audio"])
        fields["decoder"] = DecoderConfig(**values["decoder"])
        return cls(**fields)


class Captioner(CaptionModel):
    """CNN14, projection to the decoder's width, Diff block for clips with references, and BART decoder (4.1)-(4.5)."""

    config: CaptionerConfig

    def __init__(self, config: CaptionerConfig, audio: Cnn14, decoder: CaptionDecoder):
        super().__init__()
        self.config = config
        self.audio_encoder = audio
        self.decoder = decoder
        self.projection = nn.Linear(config.audio.channels[-1], decoder.width)
        self.difference_block = create_difference_block(config, decoder.width)

    @classmethod
    def create(cls, config: CaptionerConfig, captions: Iterable[str]) -> "Captioner":
        """Create a model to train, with the pretrained weights that `config` names and random weights elsewhere.

        Args:
            config: the parts of the model.
            captions: training data of the tokenizer, unless the decoder is pretrained.

        Raises:
            ValueError: a checkpoint cannot be loaded or does not match `config`, or `captions` is empty but needed.
        """
        return cls(config, Cnn14.create(config.audio), CaptionDecoder.create(config.decoder, captions))

    def with_difference(self, difference: Difference, heads: int) -> "Captioner":
        """A captioner with another Diff block and with the encoder, projection, and decoder of this one.

        Returns this captioner itself if its Diff block already matches.
        """
        config = replace(self.config, difference=difference, heads=heads)
        if config == self.config:
            return self
        captioner = Captioner(config, self.audio_encoder, self.decoder)
        captioner.projection = self.projection
        return captioner

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        return self.config.audio.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one frame of `encode`, in seconds."""
        return FRAME_STRIDE * self.config.audio.hop / self.sample_rate

    def tokenize(self, captions: list[str]) -> dict[str, Tensor]:
        """Tokenize captions for `forward`, on the CPU.

        Captions are truncated to `decoder.max_tokens` tokens and keep the end token.
        """
        return self.decoder.tokenize(captions)

    def encode(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features `Z [N, L, D]` (4.1) of waveforms `[N, S]` (valid samples `lengths [N]`), and their mask `[N, L]`."""
        features, mask = self.audio_encoder(audio, lengths)
        return self.projection(features), mask

    def forward(
        self,
        audio: Tensor,
        lengths: Tensor,
        tokens: dict[str, Tensor],
        references: Tensor | None = None,
        reference_lengths: Tensor | None = None,
    ) -> Tensor:
        """`cross_entropy`, with the same arguments, result, and errors."""
        return self.cross_entropy(audio, lengths, tokens, references, reference_lengths)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save configuration, tokenizer, and weights (safetensors) to `folder`."""
        self.decoder.save(save_model(self, self.config, folder) / _DECODER)

    @staticmethod
    def _find(name: str | Path) -> tuple[Path, CaptionerConfig]:
        folder, values = find_model(name)
        if "decoder" not in values:
            raise ValueError(f"{folder} holds no captioner: its configuration names no decoder")
        if "text" in values:
            raise ValueError(f"{folder} holds a unified model, whose audio encoder is not that of a captioner")
        with naming_file(folder / "config.json"):
            return folder, CaptionerConfig.from_dict(values)

    @classmethod
    def saved_config(cls, name: str | Path) -> CaptionerConfig:
        """The configuration of the model that `from_pretrained` loads; arguments and errors are the same."""
        return cls._find(name)[1]

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Captioner":
        """Load a model saved by `save_pretrained`, in evaluation mode.

        Args:
            name: a run folder (its best checkpoint), another local folder, or a hub repository.

        Raises:
            ValueError: `name` holds no such model.
        """
        folder, config = cls._find(name)
        with naming_file(folder):
            model = cls(config, Cnn14(config.audio), CaptionDecoder.load(config.decoder, folder / _DECODER))
            load_weights(model, folder)
        return model.eval()
