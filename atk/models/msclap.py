"""The published weights of MS-CLAP 2023 (HTS-AT and GPT-2, width 1024) as encoders for `atk.models.clap.CLAP`.

Names and settings are those of the package msclap 1.3.4 (`msclap/models/{clap,htsat,config}.py`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.htsat import HTSAT
from atk.models.published import HTSAT_UNUSED, PublishedWeights, htsat_name, htsat_settings, mel_filters
from atk.models.text import TextEncoder, TextEncoderConfig
from atk.models.tokenizer import import_transformers

if TYPE_CHECKING:
    from transformers import ClapFeatureExtractor, GPT2Config, PreTrainedTokenizerFast

_RATE = 44100
_HOP = 320
_SECONDS = 7
_HTSAT = "audio_encoder.base.htsat."
_GPT2 = "caption_encoder.base."
_HEAD_WIDTH = 64  # the same in every GPT-2

# Subfolders of a saved model.
_AUDIO = "audio"
_TEXT = "text"

# The classifier of HTS-AT, the temperature, and the attention masks of GPT-2.
_UNUSED = (
    rf"audio_encoder\.base\.htsat\.({HTSAT_UNUSED})|caption_encoder\.base\.h\.\d+\.attn\.(masked_)?bias|logit_scale"
)


@dataclass(frozen=True)
class MsClapConfig:
    """MS-CLAP 2023, which replaces both encoders if `weights` is set.

    Args:
        weights: local copy of CLAP_weights_2023.pth from microsoft/msclap on the hub. Of the encoder settings, only
            `text.max_tokens` and `text.token_layer` then apply.
        tokenizer: local folder or hub name of GPT-2's tokenizer, which is not part of that file.
    """

    weights: str | None = None
    tokenizer: str = "gpt2"

    @property
    def enabled(self) -> bool:
        """Whether the model is MS-CLAP."""
        return self.weights is not None


class Projection(nn.Module):
    """Projects features `[..., width]` to the shared space `[..., dim]`: linear map, residual layer, and layer norm."""

    def __init__(self, width: int, dim: int, dropout: float = 0.5):
        super().__init__()
        self.linear1 = nn.Linear(width, dim, bias=False)
        self.linear2 = nn.Linear(dim, dim, bias=False)
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Project; the output is not normalized to unit length."""
        x = self.linear1(features)
        return self.layer_norm(x + self.dropout(self.linear2(F.gelu(x))))


def create_encoders(config: MsClapConfig, text: TextEncoderConfig) -> tuple[HTSAT, TextEncoder, Projection, Projection]:
    """Create the audio encoder, the text encoder, and their projections with the published weights.

    The sound-event classifier is left out.

    Args:
        config: where the weights are.
        text: only `max_tokens` and `token_layer` apply.

    Raises:
        ValueError: the file or the tokenizer cannot be loaded or does not match the model.
    """
    transformers = import_transformers()
    assert config.weights is not None  # because `config.enabled`
    weights = PublishedWeights(config.weights, "msclap")
    projections = [_projection(weights, f"{part}_encoder.projection.") for part in ("audio", "caption")]
    audio_config = transformers.ClapAudioConfig(
        **htsat_settings(weights, _HTSAT), projection_dim=projections[0].linear1.out_features
    )
    htsat = transformers.ClapAudioModel(audio_config)
    weights.load(htsat.audio_encoder, _HTSAT, htsat_name)
    gpt2 = transformers.GPT2Model(_text_config(transformers, weights))
    weights.load(gpt2, _GPT2)
    filters = mel_filters(weights, _HTSAT)
    weights.finish(_UNUSED)
    scale = float(weights["logit_scale"].exp()) if weights.names("logit_scale") else None
    encoder = HTSAT(htsat, _extractor(transformers, filters), filters, scale)
    tokenizer = _tokenizer(transformers, config.tokenizer, gpt2.config.vocab_size)
    return encoder, TextEncoder(replace(text, pooling="last"), gpt2, tokenizer), projections[0], projections[1]


def _projection(weights: PublishedWeights, prefix: str) -> Projection:
    dim, width = weights[f"{prefix}linear1.weight"].shape
    projection = Projection(width, dim)
    weights.load(projection, prefix)
    return projection


def save_encoders(audio: HTSAT, text: TextEncoder, folder: Path) -> None:
    """Save everything but the weights to `folder`."""
    audio.model.config.save_pretrained(folder / _AUDIO)
    audio.features.extractor.save_pretrained(folder / _AUDIO)
    text.save(folder / _TEXT)


def load_encoders(folder: Path, text: TextEncoderConfig) -> tuple[HTSAT, TextEncoder, Projection, Projection]:
    """Load what `save_encoders` saved. The weights are loaded with those of the whole model."""
    transformers = import_transformers()
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder / _AUDIO)
    model = transformers.ClapAudioModel(transformers.ClapAudioConfig.from_pretrained(folder / _AUDIO))
    filters = torch.zeros(extractor.nb_frequency_bins, model.config.num_mel_bins)
    audio_encoder = HTSAT(model, extractor, filters)
    text_encoder = TextEncoder.load(replace(text, pooling="last"), folder / _TEXT)
    dim = model.config.projection_dim
    audio_projection = Projection(model.config.hidden_size, dim)
    return audio_encoder, text_encoder, audio_projection, Projection(text_encoder.width, dim)


def _text_config(transformers: ModuleType, weights: PublishedWeights) -> "GPT2Config":
    """The configuration that matches the shapes of GPT-2's weights."""
    word_embeddings = weights[f"{_GPT2}wte.weight"]
    position_embeddings = weights[f"{_GPT2}wpe.weight"]
    return transformers.GPT2Config(
        vocab_size=word_embeddings.shape[0],
        n_embd=word_embeddings.shape[1],
        n_positions=position_embeddings.shape[0],
        n_layer=sum(name.endswith(".ln_1.weight") for name in weights.names(_GPT2)),
        n_head=word_embeddings.shape[1] // _HEAD_WIDTH,
        use_cache=False,
    )


def _extractor(transformers: ModuleType, filters: Tensor) -> "ClapFeatureExtractor":
    """The settings of the log-mel features; their mel filters come from the checkpoint."""
    return transformers.ClapFeatureExtractor(
        feature_size=filters.shape[1],
        sampling_rate=_RATE,
        hop_length=_HOP,
        max_length_s=_SECONDS,
        fft_window_size=2 * len(filters) - 2,
        truncation="rand_trunc",
        padding="repeat",
    )


def _tokenizer(transformers: ModuleType, name: str, vocab_size: int) -> "PreTrainedTokenizerFast":
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"msclap.tokenizer: cannot load {name!r}: {reason}") from error
    if len(tokenizer) > vocab_size or tokenizer.eos_token is None:
        raise ValueError(
            f"msclap.tokenizer: {name!r} is not GPT-2's: expected at most {vocab_size} entries and an end token, got "
            f"{len(tokenizer)} entries"
        )
    _add_end_token(tokenizer)
    return tokenizer


def _add_end_token(tokenizer: "PreTrainedTokenizerFast") -> None:
    """End each caption with a space and the end token, as MS-CLAP does, and use the end token for padding."""
    from tokenizers import processors

    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    ends = [("Ġ", tokenizer.convert_tokens_to_ids("Ġ")), (tokenizer.eos_token, tokenizer.eos_token_id)]
    template = processors.TemplateProcessing(single=f"$A Ġ {tokenizer.eos_token}", special_tokens=ends)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), template]
    )
