"""Tiny checkpoints of the audio encoders of transformers, with random weights."""

import torch

from atk.models.tokenizer import import_transformers

RATE = 16000
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_CONVS = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 8)}


def _wav2vec2(transformers, model, config, **options):
    settings = {**_SIZES, **_CONVS, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, **options}
    network = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return network, transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE)


def _ast(transformers):
    sizes = {"num_mel_bins": 16, "max_length": 64}
    config = transformers.ASTConfig(**_SIZES, **sizes, patch_size=8, frequency_stride=4, time_stride=4)
    return transformers.ASTModel(config), transformers.ASTFeatureExtractor(**sizes)


def _whisper(transformers):
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=16, max_source_positions=50, vocab_size=60,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperModel(config), transformers.WhisperFeatureExtractor(16, chunk_length=1)


def _clap(transformers):
    audio = {
        "spec_size": 64, "num_mel_bins": 16, "depths": [1, 1], "num_attention_heads": [2, 2], "patch_size": 4,
        "patch_stride": [4, 4], "patch_embeds_hidden_size": 8, "hidden_size": 16, "window_size": 4, "projection_dim": 8,
        "num_hidden_layers": 2,
    }  # fmt: skip
    text = {**_SIZES, "vocab_size": 400, "projection_dim": 8}
    config = transformers.ClapConfig(audio_config=audio, text_config=text, projection_dim=8)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=RATE,
        hop_length=160,
        fft_window_size=256,
        max_length_s=1,
        truncation="rand_trunc",
    )
    return transformers.ClapModel(config), extractor


MAKERS = {
    "AST": _ast,
    "Whisper": _whisper,
    "HTS-AT": _clap,
    "wav2vec 2.0": lambda t: _wav2vec2(t, "Wav2Vec2Model", "Wav2Vec2Config"),
    "wav2vec 2.0, layer norm": lambda t: _wav2vec2(
        t, "Wav2Vec2Model", "Wav2Vec2Config", feat_extract_norm="layer", do_stable_layer_norm=True
    ),
    "HuBERT": lambda t: _wav2vec2(t, "HubertModel", "HubertConfig"),
}


def save_checkpoint(name, folder):
    """Save a tiny model and its feature extractor; returns both."""
    torch.manual_seed(0)
    model, extractor = MAKERS[name](import_transformers())
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)  # published initializations make all clips nearly the same
    model.eval().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model, extractor
