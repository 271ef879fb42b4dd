"""A captioner that describes a clip, or what the clip contains that its reference clips do not (thesis ch. 4)."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from atk.models.caption_model import CaptionModel, create_difference_block
from atk.models.captioner_config import CaptionerConfig
from atk.models.cnn14 import FRAME_STRIDE, Cnn14
from atk.models.decoder import CaptionDecoder
from atk.models.saved import find_model, load_weights, naming_file, save_config, save_weights

_DECODER = "decoder"


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

    def reconfigured(self, config: CaptionerConfig) -> "Captioner":
        """As in `CaptionModel`."""
        return Captioner(config, self.audio_encoder, self.decoder)

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
        common: bool | Tensor = False,
    ) -> Tensor:
        """`cross_entropy`, with the same arguments, result, and errors."""
        return self.cross_entropy(audio, lengths, tokens, references, reference_lengths, common)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save configuration, tokenizer, and weights (safetensors) to `folder`."""
        self.save_settings(folder)
        save_weights(self, folder)

    def save_settings(self, folder: str | Path) -> None:
        """Save everything but the weights to `folder`: configuration and tokenizer."""
        self.decoder.save(save_config(self.config, folder) / _DECODER)

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
