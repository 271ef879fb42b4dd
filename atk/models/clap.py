"""Audio and text encoders with a shared space for frames, tokens, and one global vector per clip or caption."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from atk.models import clap_transformers, msclap
from atk.models.audio_towers import AudioTower, create_audio_encoder, load_audio_encoder, save_audio_encoder
from atk.models.clap_config import ModelConfig, with_layer_numbers
from atk.models.clap_transformers import ClapConfig
from atk.models.embeddings import AudioEmbedding, TextEmbedding
from atk.models.layers import check_waveforms
from atk.models.msclap import MsClapConfig
from atk.models.published import layout_of
from atk.models.saved import find_model, load_weights, naming_file, save_config, save_weights
from atk.models.word_vectors import TextTower, text_tower

# Subfolders of a saved model.
_AUDIO = "audio"
_TEXT = "text"
_CLAP = "clap"
_MSCLAP = "msclap"
CAPTIONING = ("decoder.", "projection.", "difference_block.")  # names of the weights that a unified model adds


class CLAP(nn.Module):
    """Contrastive audio-text model with frames, tokens and global vectors in one space (thesis ch. 3)."""

    audio_encoder: AudioTower
    text_encoder: TextTower
    encoders: tuple[str, ...] = ("encode_audio", "encode_text")  # methods that training calls in place of `forward`

    def __init__(
        self,
        config: ModelConfig,
        audio_encoder: AudioTower,
        text_encoder: TextTower,
        audio_projection: nn.Module,
        text_projection: nn.Module,
    ):
        super().__init__()
        self.config = config
        self.audio_encoder = audio_encoder
        self.text_encoder = text_encoder
        self.audio_projection = audio_projection
        self.text_projection = text_projection

    @classmethod
    def create(cls, config: ModelConfig, captions: Iterable[str]) -> "CLAP":
        """Create a model to train, with the pretrained weights that `config` names and random weights elsewhere.

        Args:
            config: the parts of the model. Layers that are "auto" suit a loss that aligns frames and tokens.
            captions: training data of the tokenizer, unless it is pretrained.

        Raises:
            ValueError: a checkpoint cannot be loaded, or `captions` is empty but needed.
        """
        config = with_layer_numbers(config)
        if config.clap.enabled:
            return cls(config, *clap_transformers.create_encoders(config.clap, config.text, captions))
        if config.msclap.enabled:
            return cls(config, *msclap.create_encoders(config.msclap, config.text))
        # The text encoder comes first, so that a seed gives the weights it always gave.
        text = text_tower(config.text).create(config.text, captions)
        return cls._assemble(config, create_audio_encoder(config.audio), text)

    @classmethod
    def _assemble(cls, config: ModelConfig, audio: AudioTower, text: TextTower) -> "CLAP":
        """A model of two encoders and linear projections."""
        return cls(config, audio, text, nn.Linear(audio.width, config.dim), nn.Linear(text.width, config.dim))

    @property
    def dim(self) -> int:
        """Width D of the shared space."""
        *_, last = (layer for layer in self.text_projection.modules() if isinstance(layer, nn.Linear))
        return last.out_features

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        return self.audio_encoder.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one output frame, in seconds."""
        return self.audio_encoder.frame_seconds

    @property
    def longest_seconds(self) -> float:
        """Length of the longest clip that the audio encoder takes whole, in seconds; infinity if there is no limit."""
        return getattr(self.audio_encoder, "longest_seconds", math.inf)

    @property
    def logit_scale(self) -> float | None:
        """Inverse of the temperature of the published checkpoint that the model was created from; None if unknown."""
        return getattr(self.audio_encoder, "logit_scale", None)

    def describe_cut(self, clip_seconds: float) -> str:
        """One line to warn that the audio encoder truncates windows of `clip_seconds`; "" if it does not."""
        longest = self.longest_seconds
        if clip_seconds <= longest:
            return ""
        return f"clip_seconds: this model uses only the first {longest:g} s of each window of {clip_seconds:g} s"

    def log_mel(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel spectrogram `[N, frames, mel_bins]` of waveforms `[N, S]`, in the scale of the audio encoder."""
        return self.audio_encoder.log_mel(audio, lengths)[0]

    @property
    def token_width(self) -> int:
        """Width D_T of the text encoder's input embeddings, and so of pseudo-tokens."""
        return self.text_encoder.token_width

    def tokenize(self, captions: list[str], reserve: int = 0) -> dict[str, Tensor]:
        """Tokenize captions for `encode_text`, on the CPU, truncated to leave space for `reserve` pseudo-tokens.

        Raises:
            ValueError: `reserve` is negative or leaves no space for a caption.
        """
        return self.text_encoder.tokenize(captions, reserve)

    def encode_audio(self, audio: Tensor, lengths: Tensor, project_frames: bool = True) -> AudioEmbedding:
        """Project waveforms `[N, S]` (valid samples `lengths [N]`) into the shared space, not normalized.

        Without `project_frames`, the frames are those of the audio encoder, `[N, L_a, D_A]`.
        """
        pooled, frames, mask = self.audio_encoder(audio, lengths)
        frames = self.audio_projection(frames) if project_frames else frames
        return AudioEmbedding(self.audio_projection(pooled), frames, mask)

    def encode_text(self, tokens: dict[str, Tensor], pseudo_tokens: Tensor | None = None) -> TextEmbedding:
        """Project tokenized captions into the shared space, not normalized.

        Args:
            tokens: output of `tokenize` for N captions.
            pseudo_tokens: `[N, P, D_T]`, inserted into the input embeddings before the end token (5.9), (5.14). The
                result then has L_t + P tokens, and `mask` excludes the pseudo-tokens.

        Raises:
            TypeError, ValueError: as in `TextEncoder.forward`.
        """
        pooled, features, mask, offsets = self.text_encoder(tokens, pseudo_tokens)
        return TextEmbedding(self.text_projection(pooled), self.text_projection(features), mask, offsets)

    def forward(
        self, audio: Tensor, lengths: Tensor, tokens: dict[str, Tensor]
    ) -> tuple[AudioEmbedding, TextEmbedding]:
        """Run `encode_audio` and `encode_text`."""
        return self.encode_audio(audio, lengths), self.encode_text(tokens)

    def embed_audio(self, audio: Tensor, lengths: Tensor) -> AudioEmbedding:
        """`encode_audio` with every vector of unit length.

        Args:
            audio: waveforms `[N, S]` at `sample_rate`, floating point with full scale +-1.
            lengths: valid samples of each clip `[N]`, integer.

        Raises:
            TypeError, ValueError: the type or shape of an argument is wrong.
        """
        check_waveforms(audio, lengths)
        pooled, frames, mask = self.encode_audio(audio, lengths)
        return AudioEmbedding(_unit(pooled), _unit(frames), mask)

    def embed_text(self, captions: list[str]) -> TextEmbedding:
        """`encode_text` of a list of captions, with every vector of unit length."""
        pooled, tokens, mask, offsets = self.encode_text(self.tokenize(captions))
        return TextEmbedding(_unit(pooled), _unit(tokens), mask, offsets)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save configuration, tokenizer, and weights (safetensors) to `folder`."""
        self.save_settings(folder)
        save_weights(self, folder)

    def save_settings(self, folder: str | Path) -> None:
        """Save everything but the weights to `folder`: configuration and tokenizer."""
        folder = save_config(self.config, folder)
        audio: Any = self.audio_encoder
        text: Any = self.text_encoder
        if self.config.clap.enabled:
            clap_transformers.save_encoders(audio, text, folder / _CLAP)
        elif self.config.msclap.enabled:
            msclap.save_encoders(audio, text, folder / _MSCLAP)
        else:
            text.save(folder / _TEXT)
            save_audio_encoder(audio, folder / _AUDIO)

    @staticmethod
    def _find(name: str | Path, tokenizer: str | None = None) -> tuple[Path, ModelConfig, bool]:
        """Folder or file and configuration of a saved model; whether others saved it rather than `save_pretrained`."""
        if Path(name).is_file():
            return Path(name), _config_of_file(Path(name), tokenizer), True
        folder, values = find_model(name)
        if values.get("model_type") == "clap":
            return folder, ModelConfig(clap=ClapConfig(str(folder))), True
        if "text" not in values:
            raise ValueError(f"{folder} holds no contrastive audio-text model: its configuration names no text encoder")
        with naming_file(folder / "config.json"):
            return folder, ModelConfig.from_dict(values), False

    @classmethod
    def saved_config(cls, name: str | Path) -> ModelConfig:
        """The configuration of the model that `from_pretrained` loads; arguments and errors are the same."""
        return cls._find(name)[1]

    @classmethod
    def from_pretrained(cls, name: str | Path, tokenizer: str | None = None) -> "CLAP":
        """Load a saved or published model, in evaluation mode.

        Args:
            name: a run folder (its best checkpoint); another local folder, or a hub repository, with what
                `save_pretrained` or a `transformers.ClapModel` has saved; or a file of LAION-CLAP or MS-CLAP 2023. Of
                a unified model, the part that embeds is loaded.
            tokenizer: local folder or hub name of the tokenizer that goes with a file, which holds none; None =
                roberta-base for LAION-CLAP, gpt2 for MS-CLAP.

        Raises:
            ValueError: `name` holds no such model.
        """
        folder, config, is_published = cls._find(name, tokenizer)
        if is_published:
            return cls.create(config, []).eval()
        with naming_file(folder):
            model = cls.without_weights(config, folder)
            load_weights(model, folder, CAPTIONING)
        return model.eval()

    @classmethod
    def without_weights(cls, config: ModelConfig, folder: Path) -> "CLAP":
        """The model saved in `folder`, with weights still to be loaded."""
        if config.clap.enabled:
            return cls(config, *clap_transformers.load_encoders(folder / _CLAP, config.text))
        if config.msclap.enabled:
            return cls(config, *msclap.load_encoders(folder / _MSCLAP, config.text))
        text = text_tower(config.text).load(config.text, folder / _TEXT)
        return cls._assemble(config, load_audio_encoder(config.audio, folder / _AUDIO), text)


def _config_of_file(path: Path, tokenizer: str | None) -> ModelConfig:
    """The configuration of a file of LAION-CLAP or MS-CLAP 2023."""
    options: dict[str, Any] = {} if tokenizer is None else {"tokenizer": tokenizer}
    if layout_of(path) == "laion":
        return ModelConfig(clap=ClapConfig(str(path), **options))
    return ModelConfig(msclap=MsClapConfig(str(path), **options))


def _unit(value: Tensor) -> Tensor:
    return F.normalize(value.float(), dim=-1)
