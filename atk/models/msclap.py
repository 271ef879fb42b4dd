"""MS-CLAP 2023 (HTS-AT and GPT-2, 1024 wide): its published weights as the encoders of `atk.models.clap.CLAP`.

Names and settings are those of the public package msclap 1.3.4 (`msclap/models/{clap,htsat,config}.py`).
"""

import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.htsat import HTSAT
from atk.models.text import TextEncoder, TextEncoderConfig
from atk.models.tokenizer import import_transformers

_RATE, _HOP, _SECONDS = 44100, 320, 7
_HTSAT, _GPT2 = "audio_encoder.base.htsat.", "caption_encoder.base."
_STFT, _FILTERS = "spectrogram_extractor.stft.conv_real.weight", "logmel_extractor.melW"
_HEAD_WIDTH = 64  # of every GPT-2
_AUDIO, _TEXT = "audio", "text"

# HTS-AT's names here and in transformers, in this order.
_RENAMED = (
    ("bn0.", "batch_norm."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.output.dense."),
    (".attn.", ".attention.self."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)
# Classifier, Fourier transform and masks that are computed here.
_NOT_NEEDED = re.compile(r"(tscam_conv|head|spectrogram_extractor|logmel_extractor)\.|.*\.attn_mask$")
_MASKS = re.compile(r".*\.attn\.(masked_)?bias$")


@dataclass(frozen=True)
class MsClapConfig:
    """The weights of MS-CLAP 2023 in place of the project's own encoders, where `weights` is set.

    Args:
        weights: local file with its weights, CLAP_weights_2023.pth of the hub's microsoft/msclap.
        tokenizer: local folder or hub name of GPT-2's tokenizer, which that file does not hold.
    """

    weights: str | None = None
    tokenizer: str = "gpt2"

    @property
    def chosen(self) -> bool:
        """Whether MS-CLAP is wanted at all."""
        return self.weights is not None


class Projection(nn.Module):
    """Features `[..., width]` to the shared space `[..., dim]`: a linear map, a residual layer, layer norm."""

    def __init__(self, width: int, dim: int, dropout: float = 0.5):
        super().__init__()
        self.linear1 = nn.Linear(width, dim, bias=False)
        self.linear2 = nn.Linear(dim, dim, bias=False)
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Not of unit length."""
        first = self.linear1(features)
        return self.layer_norm(first + self.dropout(self.linear2(F.gelu(first))))


def create_encoders(config: MsClapConfig, text: TextEncoderConfig) -> tuple[HTSAT, TextEncoder, nn.Module, nn.Module]:
    """Audio encoder, text encoder and their projections, with the published weights.

    Left out: the temperature, since every trainer has its own, the classifier of sound events, and the blanking of
    random times and bands in training (SpecAugment).

    Args:
        config: where the weights are.
        text: `max_tokens` and `token_layer` hold.

    Raises:
        ValueError: the file or the tokenizer cannot be loaded or does not fit.
    """
    transformers = import_transformers()
    state = _read(config.weights)
    audio, gpt2 = _below(state, _HTSAT), _below(state, _GPT2)
    try:
        projections = [_below(state, f"{part}_encoder.projection.") for part in ("audio", "caption")]
        heads = [Projection(*reversed(weights["linear1.weight"].shape)) for weights in projections]
        htsat = transformers.ClapAudioModel(_audio_config(transformers, audio, len(projections[0]["linear1.weight"])))
        encoder = HTSAT(htsat, _extractor(transformers, audio), audio[_FILTERS])
        words = transformers.GPT2Model(_text_config(transformers, gpt2))
        htsat.audio_encoder.load_state_dict(_renamed(audio))
        words.load_state_dict({name: value for name, value in gpt2.items() if not _MASKS.match(name)})
        for head, weights in zip(heads, projections, strict=True):
            head.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300]
        raise ValueError(f"msclap.weights: {config.weights} is not MS-CLAP 2023: {reason}") from error
    tokenizer = _tokenizer(transformers, config.tokenizer, words.config.vocab_size)
    return encoder, TextEncoder(replace(text, pooling="last"), words, tokenizer), *heads


def save_encoders(audio: HTSAT, text: TextEncoder, folder: Path) -> None:
    """Write everything but the weights to `folder`."""
    audio.model.config.save_pretrained(folder / _AUDIO)
    audio.features.extractor.save_pretrained(folder / _AUDIO)
    text.save(folder / _TEXT)


def load_encoders(folder: Path, text: TextEncoderConfig) -> tuple[HTSAT, TextEncoder, nn.Module, nn.Module]:
    """What `save_encoders` wrote in `folder`; the weights come with the whole model's."""
    transformers = import_transformers()
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder / _AUDIO)
    model = transformers.ClapAudioModel(transformers.ClapAudioConfig.from_pretrained(folder / _AUDIO))
    filters = torch.zeros(extractor.nb_frequency_bins, model.config.num_mel_bins)
    encoder = TextEncoder.load(replace(text, pooling="last"), folder / _TEXT)
    heads = (Projection(width, model.config.projection_dim) for width in (model.config.hidden_size, encoder.width))
    return HTSAT(model, extractor, filters), encoder, *heads


def _read(path: str) -> dict[str, Tensor]:
    """Weights by name, in float32."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    except (OSError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"msclap.weights: cannot read the weights of MS-CLAP from {path!r}: {reason}") from error


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """HTS-AT's weights by transformers' names."""
    renamed = {}
    for name, value in state.items():
        if _NOT_NEEDED.match(name):
            continue
        for theirs, ours in _RENAMED:
            name = name.replace(theirs, ours)
        if ".qkv." in name:
            for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[name.replace("qkv", part)] = chunk
        else:
            renamed[name] = value
    return renamed


def _audio_config(transformers, state: dict[str, Tensor], dim: int):
    """The configuration that fits the shapes of HTS-AT's weights and a shared space `dim` wide."""
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


def _text_config(transformers, state: dict[str, Tensor]):
    """The configuration that fits the shapes of GPT-2's weights."""
    words, positions = state["wte.weight"], state["wpe.weight"]
    return transformers.GPT2Config(
        vocab_size=words.shape[0],
        n_embd=words.shape[1],
        n_positions=positions.shape[0],
        n_layer=sum(name.endswith(".ln_1.weight") for name in state),
        n_head=words.shape[1] // _HEAD_WIDTH,
        use_cache=False,
    )


def _extractor(transformers, state: dict[str, Tensor]):
    """Log-mel settings; the filters themselves are the checkpoint's."""
    filters, window = state[_FILTERS], state[_STFT][0, 0]  # the row of frequency 0 is the window
    size = len(window)
    if filters.shape[0] != size // 2 + 1 or not torch.allclose(window, torch.hann_window(size), atol=1e-4):
        raise RuntimeError(f"{_STFT} is no Fourier transform with a Hann window of {2 * len(filters) - 2} samples")
    return transformers.ClapFeatureExtractor(
        feature_size=filters.shape[1],
        sampling_rate=_RATE,
        hop_length=_HOP,
        max_length_s=_SECONDS,
        fft_window_size=size,
        truncation="rand_trunc",
        padding="repeat",
    )


def _tokenizer(transformers, name: str, entries: int):
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"msclap.tokenizer: cannot load {name!r}: {reason}") from error
    if len(tokenizer) > entries or tokenizer.eos_token is None:
        raise ValueError(
            f"msclap.tokenizer: {name!r} is not GPT-2's: {len(tokenizer)} entries, at most {entries} and an end token "
            "are wanted"
        )
    _add_end_token(tokenizer)
    return tokenizer


def _add_end_token(tokenizer) -> None:
    """A caption ends with a space and the end token, as in MS-CLAP; what pads behind it is never attended to."""
    from tokenizers import processors

    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
    ends = [("Ġ", tokenizer.convert_tokens_to_ids("Ġ")), (tokenizer.eos_token, tokenizer.eos_token_id)]
    template = processors.TemplateProcessing(single=f"$A Ġ {tokenizer.eos_token}", special_tokens=ends)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), template]
    )
