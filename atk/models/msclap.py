"""The published weights of MS-CLAP 2023 (HTS-AT and GPT-2, width 1024) as encoders for `atk.models.clap.CLAP`.

Names and settings are those of the package msclap 1.3.4 (`msclap/models/{clap,htsat,config}.py`).
"""

import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.htsat import HTSAT
from atk.models.text import TextEncoder, TextEncoderConfig
from atk.models.tokenizer import import_transformers

if TYPE_CHECKING:
    from transformers import ClapAudioConfig, ClapFeatureExtractor, GPT2Config, PreTrainedTokenizerFast

_RATE = 44100
_HOP = 320
_SECONDS = 7
_HTSAT = "audio_encoder.base.htsat."
_GPT2 = "caption_encoder.base."
_STFT = "spectrogram_extractor.stft.conv_real.weight"
_FILTERS = "logmel_extractor.melW"
_HEAD_WIDTH = 64  # the same in every GPT-2

# Subfolders of a saved model.
_AUDIO = "audio"
_TEXT = "text"

# (name in MS-CLAP, name in transformers), replaced in this order.
_RENAMES = (
    ("bn0.", "batch_norm."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.output.dense."),
    (".attn.", ".attention.self."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)
# The classifier, and what the model computes itself: STFT, mel filters, and attention masks.
_UNUSED = re.compile(r"(tscam_conv|head|spectrogram_extractor|logmel_extractor)\.|.*\.attn_mask$")
_MASKS = re.compile(r".*\.attn\.(masked_)?bias$")


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
    state = _read(config.weights)
    htsat_state = _with_prefix(state, _HTSAT)
    gpt2_state = _with_prefix(state, _GPT2)
    try:
        audio_projection = _projection(_with_prefix(state, "audio_encoder.projection."))
        text_projection = _projection(_with_prefix(state, "caption_encoder.projection."))
        dim = audio_projection.linear1.out_features
        htsat = transformers.ClapAudioModel(_audio_config(transformers, htsat_state, dim))
        scale = float(state["logit_scale"].exp()) if "logit_scale" in state else None
        encoder = HTSAT(htsat, _extractor(transformers, htsat_state), htsat_state[_FILTERS], scale)
        gpt2 = transformers.GPT2Model(_text_config(transformers, gpt2_state))
        htsat.audio_encoder.load_state_dict(_renamed(htsat_state))
        gpt2.load_state_dict({name: value for name, value in gpt2_state.items() if not _MASKS.match(name)})
    except (KeyError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise ValueError(f"msclap.weights: {config.weights} is not MS-CLAP 2023: {reason}") from error
    tokenizer = _tokenizer(transformers, config.tokenizer, gpt2.config.vocab_size)
    return encoder, TextEncoder(replace(text, pooling="last"), gpt2, tokenizer), audio_projection, text_projection


def _projection(weights: dict[str, Tensor]) -> Projection:
    dim, width = weights["linear1.weight"].shape
    projection = Projection(width, dim)
    projection.load_state_dict(weights)
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


def _read(path: str) -> dict[str, Tensor]:
    """Read weights by name, in float32."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    except (OSError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"msclap.weights: cannot read the weights of MS-CLAP from {path!r}: {reason}") from error


def _with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights that start with `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of HTS-AT under the names that transformers uses."""
    renamed = {}
    for name, value in state.items():
        if _UNUSED.match(name):
            continue
        new_name = name
        for msclap_name, transformers_name in _RENAMES:
            new_name = new_name.replace(msclap_name, transformers_name)
        if ".qkv." in new_name:
            for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[new_name.replace("qkv", part)] = chunk
        else:
            renamed[new_name] = value
    return renamed


def _audio_config(transformers: ModuleType, state: dict[str, Tensor], dim: int) -> "ClapAudioConfig":
    """The configuration that matches the shapes of HTS-AT's weights and a shared space of width `dim`."""
    patches = state["patch_embed.proj.weight"]  # [width, 1, patch, patch]
    blocks = {name for name in state if name.endswith("attn.relative_position_bias_table")}
    stages = 1 + max(int(name.split(".")[1]) for name in blocks)
    depths = [sum(name.startswith(f"layers.{stage}.") for name in blocks) for stage in range(stages)]
    tables = [state[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(stages)]
    return transformers.ClapAudioConfig(
        num_mel_bins=len(state["bn0.weight"]),
        patch_size=patches.shape[2],
        patch_stride=[patches.shape[2], patches.shape[3]],
        patch_embeds_hidden_size=patches.shape[0],
        hidden_size=patches.shape[0] * 2 ** (stages - 1),
        projection_dim=dim,
        depths=depths,
        num_attention_heads=[table.shape[1] for table in tables],
        num_hidden_layers=stages,
        window_size=(int(len(tables[0]) ** 0.5) + 1) // 2,  # a table has (2 window_size - 1)^2 rows
        hidden_dropout_prob=0.0,
        drop_path_rate=0.1,
    )


def _text_config(transformers: ModuleType, state: dict[str, Tensor]) -> "GPT2Config":
    """The configuration that matches the shapes of GPT-2's weights."""
    word_embeddings = state["wte.weight"]
    position_embeddings = state["wpe.weight"]
    return transformers.GPT2Config(
        vocab_size=word_embeddings.shape[0],
        n_embd=word_embeddings.shape[1],
        n_positions=position_embeddings.shape[0],
        n_layer=sum(name.endswith(".ln_1.weight") for name in state),
        n_head=word_embeddings.shape[1] // _HEAD_WIDTH,
        use_cache=False,
    )


def _extractor(transformers: ModuleType, state: dict[str, Tensor]) -> "ClapFeatureExtractor":
    """The settings of the log-mel features; their mel filters come from the checkpoint."""
    filters = state[_FILTERS]
    window = state[_STFT][0, 0]  # the row of frequency 0 is the window itself
    size = len(window)
    if filters.shape[0] != size // 2 + 1 or not torch.allclose(window, torch.hann_window(size), atol=1e-4):
        raise RuntimeError(f"{_STFT} is not an STFT with a Hann window of {2 * len(filters) - 2} samples")
    return transformers.ClapFeatureExtractor(
        feature_size=filters.shape[1],
        sampling_rate=_RATE,
        hop_length=_HOP,
        max_length_s=_SECONDS,
        fft_window_size=size,
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
