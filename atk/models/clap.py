"""Audio and text encoders projected into one space: every frame and every token, and one global vector each."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from atk.models import clap_transformers, msclap
from atk.models.audio import AudioEncoder, AudioEncoderConfig
from atk.models.clap_transformers import ClapConfig
from atk.models.msclap import MsClapConfig
from atk.models.saved import find_model, load_weights, save_model
from atk.models.text import TextEncoder, TextEncoderConfig

_TEXT, _CLAP, _MSCLAP = "text", "clap", "msclap"


@dataclass(frozen=True)
class ModelConfig:
    """An audio encoder, a text encoder and the width of the space they share.

    Args:
        dim: width D of the shared space (128 in the thesis).
        audio: audio encoder.
        text: text encoder.
        clap: a ClapModel in place of `dim`, `audio` and `text`, of which only `max_tokens`, `vocabulary` and
            `token_layer` of `text` then count; clips are cut to its 10 s.
        msclap: MS-CLAP 2023 in place of them, likewise; clips are cut to its 7 s.
    """

    dim: int = 128
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    clap: ClapConfig = field(default_factory=ClapConfig)
    msclap: MsClapConfig = field(default_factory=MsClapConfig)

    def __post_init__(self):
        if self.clap.chosen and self.msclap.chosen:
            raise ValueError("clap and msclap are two models to choose from, got both")

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """The configuration that `dataclasses.asdict` wrote."""
        audio = {**values["audio"], "channels": tuple(values["audio"]["channels"])}
        parts = {"audio": AudioEncoderConfig(**audio), "text": TextEncoderConfig(**values["text"])}
        for name, part in (("clap", ClapConfig), ("msclap", MsClapConfig)):
            parts[name] = part(**values.get(name, {}))  # models saved before there was one have none
        return cls(values["dim"], **parts)


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

    encoders = ("encode_audio", "encode_text")  # the methods that training calls

    def __init__(
        self,
        config: ModelConfig,
        audio_encoder: nn.Module,
        text_encoder: TextEncoder,
        audio_projection: nn.Module,
        text_projection: nn.Module,
    ):
        super().__init__()
        self.config = config
        self.audio_encoder, self.text_encoder = audio_encoder, text_encoder
        self.audio_projection, self.text_projection = audio_projection, text_projection

    @classmethod
    def create(cls, config: ModelConfig, captions: Iterable[str]) -> "CLAP":
        """A model to train: pretrained weights where `config` names them, the rest from scratch.

        `captions` train the tokenizer when there is no pretrained one.

        Raises:
            ValueError: a checkpoint cannot be loaded, or there is no caption where they are needed.
        """
        if config.clap.chosen:
            return cls(config, *clap_transformers.create_encoders(config.clap, config.text, captions))
        if config.msclap.chosen:
            return cls(config, *msclap.create_encoders(config.msclap, config.text))
        return cls._assemble(config, TextEncoder.create(config.text, captions))

    @classmethod
    def _assemble(cls, config: ModelConfig, text: TextEncoder) -> "CLAP":
        """The project's own encoders."""
        projections = nn.Linear(config.audio.width, config.dim), nn.Linear(text.width, config.dim)
        return cls(config, AudioEncoder(config.audio), text, *projections)

    @property
    def dim(self) -> int:
        """Width D of the shared space."""
        *_, last = (layer for layer in self.text_projection.modules() if isinstance(layer, nn.Linear))
        return last.out_features

    @property
    def sample_rate(self) -> int:
        """Of the waveforms the model takes, in Hz."""
        return self.audio_encoder.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one output frame, in seconds."""
        return self.audio_encoder.frame_seconds

    def describe_cut(self, clip_seconds: float) -> str:
        """One line that tells how much of a window of `clip_seconds` the audio encoder leaves out; "" for nothing."""
        longest = getattr(self.audio_encoder, "longest_seconds", math.inf)
        if clip_seconds <= longest:
            return ""
        return f"clip_seconds: of windows of {clip_seconds:g} s this model hears only the first {longest:g} s"

    def log_mel(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel spectrogram `[N, frames, mel_bins]` of waveforms `[N, S]`, scaled as the audio encoder has it."""
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
        folder = save_model(self, folder)
        if self.config.clap.chosen:
            clap_transformers.save_encoders(self.audio_encoder, self.text_encoder, folder / _CLAP)
        elif self.config.msclap.chosen:
            msclap.save_encoders(self.audio_encoder, self.text_encoder, folder / _MSCLAP)
        else:
            self.text_encoder.save(folder / _TEXT)

    @staticmethod
    def _find(name: str | Path) -> tuple[Path, ModelConfig, bool]:
        """Folder and configuration of a saved model, and whether `save_pretrained` wrote it, not transformers."""
        folder, values = find_model(name)
        if values.get("model_type") == "clap":
            return folder, ModelConfig(clap=ClapConfig(str(folder))), False
        try:
            return folder, ModelConfig.from_dict(values), True
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no contrastive audio-text model: its config.json has {error}") from None

    @classmethod
    def saved_config(cls, name: str | Path) -> ModelConfig:
        """The configuration of what `from_pretrained` would load, without its weights; the same errors."""
        return cls._find(name)[1]

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "CLAP":
        """Load what `save_pretrained` or a `transformers.ClapModel` wrote, in evaluation mode.

        Args:
            name: a local folder or a hub repository.

        Raises:
            ValueError: there is no such model.
        """
        folder, config, own = cls._find(name)
        if not own:
            return cls.create(config, []).eval()
        if config.clap.chosen:
            model = cls(config, *clap_transformers.load_encoders(folder / _CLAP, config.text))
        elif config.msclap.chosen:
            model = cls(config, *msclap.load_encoders(folder / _MSCLAP, config.text))
        else:
            model = cls._assemble(config, TextEncoder.load(config.text, folder / _TEXT))
        load_weights(model, folder)
        return model.eval()


def _unit(value: Tensor) -> Tensor:
    return F.normalize(value.float(), dim=-1)
