"""Audio and text encoders projected into one space: every frame and every token, and one global vector each."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.audio import FRAME_STRIDE, AudioEncoder, AudioEncoderConfig
from atk.models.saved import find_model, load_weights, save_model
from atk.models.text import TextEncoder, TextEncoderConfig

_TEXT = "text"


@dataclass(frozen=True)
class ModelConfig:
    """An audio encoder, a text encoder and the width of the space they share.

    Args:
        dim: width D of the shared space (128 in the thesis).
        audio: audio encoder.
        text: text encoder.
    """

    dim: int = 128
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """The configuration that `dataclasses.asdict` wrote."""
        audio = {**values["audio"], "channels": tuple(values["audio"]["channels"])}
        return cls(values["dim"], AudioEncoderConfig(**audio), TextEncoderConfig(**values["text"]))


class AudioEmbedding(NamedTuple):
    """Clips in the shared space: `pooled [N, D]`, `frames [N, L_a, D]`, boolean `mask [N, L_a]`."""

    pooled: Tensor
    frames: Tensor
    mask: Tensor


class TextEmbedding(NamedTuple):
    """Captions in the shared space: `pooled [N, D]`, `tokens [N, L_t, D]`, boolean `mask [N, L_t]` (no special
    tokens), and the characters each token stands for, `offsets [N, L_t, 2]`."""

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    offsets: Tensor


class CLAP(nn.Module):
    """Contrastive audio-text model whose frames and tokens live in the space of the global vectors (thesis ch. 3)."""

    def __init__(self, config: ModelConfig, text: TextEncoder):
        super().__init__()
        self.config = config
        self.audio_encoder = AudioEncoder(config.audio)
        self.text_encoder = text
        self.audio_projection = nn.Linear(config.audio.width, config.dim)
        self.text_projection = nn.Linear(text.width, config.dim)

    @classmethod
    def create(cls, config: ModelConfig, captions: Iterable[str]) -> "CLAP":
        """A model to train: pretrained text weights where `config.text` names them, the rest from scratch.

        `captions` train the tokenizer when there is no pretrained one.
        """
        return cls(config, TextEncoder.create(config.text, captions))

    @property
    def sample_rate(self) -> int:
        """Of the waveforms the model takes, in Hz."""
        return self.config.audio.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one output frame, in seconds."""
        return FRAME_STRIDE * self.config.audio.hop / self.sample_rate

    def log_mel(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Scaled log-mel spectrogram `[N, frames, mel_bins]` of waveforms `[N, S]`, as the audio encoder sees it."""
        return self.audio_encoder.log_mel(audio, lengths)[0]

    @property
    def token_width(self) -> int:
        """Width D_T of the text encoder's input embeddings, which pseudo-tokens have too."""
        return self.text_encoder.token_width

    def tokenize(self, captions: list[str], reserve: int = 0) -> dict[str, Tensor]:
        """What `encode_text` takes, on the CPU, cut to leave room for `reserve` pseudo-tokens.

        Raises:
            ValueError: `reserve` is below 0 or leaves no room for a caption.
        """
        return self.text_encoder.tokenize(captions, reserve)

    def encode_audio(self, audio: Tensor, lengths: Tensor) -> AudioEmbedding:
        """Project waveforms `[N, S]` (valid samples `lengths [N]`) into the shared space, not normalised."""
        pooled, frames, mask = self.audio_encoder(audio, lengths)
        return AudioEmbedding(self.audio_projection(pooled), self.audio_projection(frames), mask)

    def encode_text(self, tokens: dict[str, Tensor], pseudo_tokens: Tensor | None = None) -> TextEmbedding:
        """Project tokenized captions into the shared space, not normalised.

        Args:
            tokens: what `tokenize` returned for N captions.
            pseudo_tokens: `[N, P, D_T]`, inserted among the input embeddings before the end token (5.9), (5.14); the
                result then has L_t + P tokens, of which these are not in `mask`.

        Raises:
            TypeError, ValueError: as `TextEncoder.forward`.
        """
        pooled, features, mask, offsets = self.text_encoder(tokens, pseudo_tokens)
        return TextEmbedding(self.text_projection(pooled), self.text_projection(features), mask, offsets)

    def forward(
        self, audio: Tensor, lengths: Tensor, tokens: dict[str, Tensor]
    ) -> tuple[AudioEmbedding, TextEmbedding]:
        """Both encoders, for training."""
        return self.encode_audio(audio, lengths), self.encode_text(tokens)

    def embed_audio(self, audio: Tensor, lengths: Tensor) -> AudioEmbedding:
        """`encode_audio` with every vector of unit length."""
        pooled, frames, mask = self.encode_audio(audio, lengths)
        return AudioEmbedding(_unit(pooled), _unit(frames), mask)

    def embed_text(self, captions: list[str]) -> TextEmbedding:
        """`encode_text` of `captions` with every vector of unit length."""
        pooled, tokens, mask, offsets = self.encode_text(self.tokenize(captions))
        return TextEmbedding(_unit(pooled), _unit(tokens), mask, offsets)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration, tokenizer and weights (safetensors) to `folder`."""
        self.text_encoder.save(save_model(self, folder) / _TEXT)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "CLAP":
        """Load what `save_pretrained` wrote, from a local folder or a hub repository, in evaluation mode.

        Raises:
            ValueError: there is no such model.
        """
        folder, values = find_model(name)
        config = ModelConfig.from_dict(values)
        model = cls(config, TextEncoder.load(config.text, folder / _TEXT))
        load_weights(model, folder)
        return model.eval()


def _unit(value: Tensor) -> Tensor:
    return F.normalize(value.float(), dim=-1)
