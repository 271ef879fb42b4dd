"""The published weights of LAION-CLAP (HTS-AT and RoBERTa, width 512) as a `transformers.ClapModel`.

Names and settings are those of the package laion-clap 1.1.7 (`clap_module/{model,htsat}.py`, `hook.py`).
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from atk.models.published import HTSAT_UNUSED, PublishedWeights, htsat_name, htsat_settings, mel_filters

if TYPE_CHECKING:
    from transformers import ClapFeatureExtractor, ClapModel

_RATE = 48000
_HOP = 480
_SECONDS = 10
_MEL_RANGE = (50, 14000)  # in Hz
_HTSAT = "audio_branch."
_ROBERTA = "text_branch."
_HEAD_WIDTH = 64  # the same in every RoBERTa
_PROJECTION = {"linear1": "0", "linear2": "2"}  # names in transformers -> positions in the published nn.Sequential
# The classifier of HTS-AT, and what only the training of LAION-CLAP uses.
_UNUSED = rf"audio_branch\.({HTSAT_UNUSED})|(audio|text)_transform\..*"


def read_model(transformers: ModuleType, path: str) -> "tuple[ClapModel, ClapFeatureExtractor]":
    """Read the model and the settings of its log-mel features.

    Raises:
        ValueError: the file cannot be read; or a weight is missing, unexpected, or of the wrong shape, and is named.
    """
    weights = PublishedWeights(path, "laion")
    audio = htsat_settings(weights, _HTSAT)
    dim = len(weights["audio_projection.0.weight"])
    config = transformers.ClapConfig(
        audio_config=audio, text_config=_text_settings(weights), projection_dim=dim, projection_hidden_act="relu"
    )
    model = transformers.ClapModel(config).eval()
    weights.load(model.audio_model.audio_encoder, _HTSAT, htsat_name)
    weights.load(model.text_model, _ROBERTA)
    for name in ("audio_projection", "text_projection"):
        weights.load(getattr(model, name), f"{name}.", _projection_name)
    for name in ("logit_scale_a", "logit_scale_t"):
        getattr(model, name).data.copy_(weights[name])
    extractor = _extractor(transformers, weights, audio["enable_fusion"])
    weights.finish(_UNUSED)
    return model, extractor


def _projection_name(name: str) -> str:
    layer, _, tensor = name.partition(".")
    return f"{_PROJECTION[layer]}.{tensor}"


def _text_settings(weights: PublishedWeights) -> dict[str, Any]:
    """The arguments of `transformers.ClapTextConfig` that match the shapes of RoBERTa's weights."""
    words = weights[f"{_ROBERTA}embeddings.word_embeddings.weight"]
    types = weights[f"{_ROBERTA}embeddings.token_type_embeddings.weight"]
    if len(types) != 1:
        weights.refuse(f"its text encoder is not RoBERTa: it has {len(types)} types of tokens")
    layers = [name.split(".")[2] for name in weights.names(_ROBERTA) if name.startswith("encoder.layer.")]
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": len(set(layers)),
        "num_attention_heads": words.shape[1] // _HEAD_WIDTH,
        "intermediate_size": len(weights[f"{_ROBERTA}encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": len(weights[f"{_ROBERTA}embeddings.position_embeddings.weight"]),
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,  # of RoBERTa; the default in transformers is BERT's
    }


def _extractor(transformers: ModuleType, weights: PublishedWeights, fusion: bool) -> "ClapFeatureExtractor":
    """The settings of the log-mel features. Models with feature fusion compute them with other filters (HTK)."""
    filters = mel_filters(weights, _HTSAT)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=filters.shape[1],
        sampling_rate=_RATE,
        hop_length=_HOP,
        max_length_s=_SECONDS,
        fft_window_size=2 * len(filters) - 2,
        frequency_min=_MEL_RANGE[0],
        frequency_max=_MEL_RANGE[1],
        truncation="fusion" if fusion else "rand_trunc",
        padding="repeatpad",
    )
    computed = torch.from_numpy(extractor.mel_filters_slaney).float()
    if not torch.allclose(filters, computed, atol=1e-3 * float(computed.max())):
        low, high = _MEL_RANGE
        weights.refuse(f"{_HTSAT}logmel_extractor.melW is not the mel filters from {low} to {high} Hz at {_RATE} Hz")
    return extractor
