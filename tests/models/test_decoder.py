"""The decoder: pretrained BART checkpoints, and captions as targets."""

import shutil

import pytest
import torch
from support.tiny_captioner import CAPTIONS, LENGTHS, clips, tiny

from atk.models.captioner import Captioner
from atk.models.decoder import DecoderConfig
from atk.models.generation import GenerationConfig
from atk.models.tokenizer import import_transformers, train_bpe

transformers = import_transformers()


@pytest.fixture(scope="module")
def bart_folder(tmp_path_factory):
    """A BART checkpoint in half precision, with generation settings for summarization."""
    folder = tmp_path_factory.mktemp("bart")
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = train_bpe(CAPTIONS, 400, special, "<s> $A </s>")
    config = transformers.BartConfig(
        vocab_size=len(tokenizer),
        d_model=24,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=40,
    )
    bart = transformers.BartForConditionalGeneration(config)
    bart.generation_config.min_length, bart.generation_config.no_repeat_ngram_size = 12, 2
    bart.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_pretrained_decoder_weights_are_loaded(bart_folder, tmp_path):
    model = tiny(decoder=DecoderConfig(pretrained=str(bart_folder), max_tokens=10))
    loaded = model.decoder.bart.state_dict()
    checkpoint = transformers.BartForConditionalGeneration.from_pretrained(bart_folder)
    for name, value in checkpoint.state_dict().items():
        if not name.startswith("model.encoder."):
            assert loaded[name].dtype == torch.float32 and torch.equal(loaded[name], value.float()), name
    assert model.projection.out_features == 24
    audio = clips(LENGTHS)
    steps = []
    hook = model.decoder.bart.register_forward_hook(lambda *_: steps.append(1))
    model.generate(audio, LENGTHS, max_tokens=4)
    assert 1 <= len(steps) <= 4
    hook.remove()
    assert model.decoder.bart.generation_config.min_length in (0, None)  # not the checkpoint's settings
    assert model.decoder.bart.generation_config.no_repeat_ngram_size in (0, None)
    model.save_pretrained(tmp_path / "saved")
    again = Captioner.from_pretrained(tmp_path / "saved")
    assert again.generate(audio, LENGTHS) == model.generate(audio, LENGTHS)


def test_the_loss_of_a_pretrained_decoder_matches_transformers(bart_folder):
    model = tiny(decoder=DecoderConfig(pretrained=str(bart_folder), max_tokens=10))
    tokens, audio = model.tokenize(CAPTIONS), clips(LENGTHS)
    tokenizer = model.decoder.tokenizer
    ids = tokens["input_ids"]
    assert (ids[:, 0] == tokenizer.bos_token_id).all() and ((ids == tokenizer.eos_token_id).sum(1) == 1).all()
    z, mask = model.encode(audio, LENGTHS)
    labels = ids.masked_fill(tokens["attention_mask"] == 0, -100)
    expected = model.decoder.bart(encoder_outputs=(z,), attention_mask=mask.long(), labels=labels).loss
    torch.testing.assert_close(model(audio, LENGTHS, tokens), expected)


def test_long_captions_are_truncated_and_keep_the_end_token():
    model = tiny()
    ids = model.tokenize(["wind " * 50, "wind"])["input_ids"]
    eos = model.decoder.tokenizer.eos_token_id
    assert ids.shape == (2, 20) and ids[0, -1] == eos and (ids[0] == eos).sum() == 1
    assert model(clips(LENGTHS[:2]), LENGTHS[:2], model.tokenize(["wind " * 50, "wind"])).isfinite()


def test_checkpoints_of_other_models_are_refused(tmp_path):
    transformers.BertModel(
        transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"decoder.pretrained: cannot load .* expected a BART checkpoint, got model type 'bert'"
    ):
        tiny(decoder=DecoderConfig(pretrained=str(tmp_path)))


def test_bart_checkpoints_with_missing_weights_are_refused(bart_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(bart_folder, tmp_path / "bart")
    weights = load_file(folder / "model.safetensors")
    del weights["model.decoder.layers.1.fc1.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights \(1 in all; the first is model.decoder.layers.1.fc1.bias\)"):
        tiny(decoder=DecoderConfig(pretrained=str(folder)))


def test_captions_must_fit_the_positions_of_the_decoder(bart_folder):
    with pytest.raises(ValueError, match=r"max_tokens must be between 1 and 40, the decoder's positions, got 64"):
        tiny(decoder=DecoderConfig(pretrained=str(bart_folder)))


def test_feature_positions_are_the_input_layer_of_the_encoder(bart_folder, tmp_path):
    """Learned positions and LayerNorm, with the weights of a checkpoint if there is one; saved and loaded."""
    z, mask = torch.randn(2, 6, 24), torch.ones(2, 6, dtype=torch.bool)
    config = DecoderConfig(pretrained=str(bart_folder), max_tokens=10, feature_positions=True)
    model = tiny(decoder=config)
    published = transformers.BartForConditionalGeneration.from_pretrained(bart_folder).float().model.encoder
    positions = published.embed_positions.weight[2:8]  # the first two are not used
    expected = published.layernorm_embedding(z + positions)
    torch.testing.assert_close(model.decoder._encoder_output(z, mask).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    again = Captioner.from_pretrained(tmp_path)
    assert torch.equal(again.decoder._encoder_output(z, mask).last_hidden_state, expected)
    audio = clips(LENGTHS)
    assert again.generate(audio, LENGTHS) == model.generate(audio, LENGTHS)
    model(audio, LENGTHS, model.tokenize(CAPTIONS)).backward()
    encoder = model.decoder.bart.model.encoder
    assert len(encoder.layers) == 0 and encoder.embed_positions.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="audio must have at most 40 frames, the positions of audio features, got 41"):
        model.decoder._encoder_output(torch.randn(1, 41, 24), torch.ones(1, 41, dtype=torch.bool))
    assert tiny(decoder=DecoderConfig(feature_positions=True, layers=1)).decoder.max_positions == 1024


def test_a_new_decoder_takes_a_tokenizer_by_name(bart_folder):
    """Random weights with the tokenizer of BART: texts are <s> ... </s>, so the decoder starts with </s>."""
    config = DecoderConfig(width=32, layers=1, heads=2, tokenizer=str(bart_folder), max_tokens=20)
    model = tiny(decoder=config)
    tokenizer, bart = model.decoder.tokenizer, model.decoder.bart
    assert bart.config.vocab_size == len(tokenizer) and bart.config.d_model == 32
    assert bart.config.decoder_start_token_id == bart.config.eos_token_id == tokenizer.eos_token_id
    ids = model.tokenize(CAPTIONS)["input_ids"]
    assert (ids[:, 0] == tokenizer.bos_token_id).all() and not (ids == tokenizer.unk_token_id).any()
    assert model(clips(LENGTHS), LENGTHS, model.tokenize(CAPTIONS)).isfinite()
    assert tiny().decoder.bart.config.decoder_start_token_id == tiny().decoder.tokenizer.bos_token_id


def test_tokenizers_that_do_not_suit_a_decoder_are_refused(tmp_path):
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    train_bpe(CAPTIONS, 300, special, "<s> $A </s>").save_pretrained(tmp_path / "unpadded")
    special["pad_token"] = "<pad>"
    train_bpe(CAPTIONS, 300, special, "<s> $A").save_pretrained(tmp_path / "endless")
    for name, message in (
        ("unpadded", "decoder.tokenizer: .* has no pad_token_id"),
        ("endless", "does not end texts with its end token"),
        ("nowhere", "decoder.tokenizer: cannot load"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(decoder=DecoderConfig(tokenizer=str(tmp_path / name)))


def test_generation_settings_are_those_of_transformers(monkeypatch):
    torch.manual_seed(0)
    model = tiny()
    audio = clips(LENGTHS[:2])
    short = GenerationConfig(min_length=12, no_repeat_ngram_size=1)
    ids = []
    tokenizer = model.decoder.tokenizer
    monkeypatch.setattr(tokenizer, "batch_decode", lambda rows, **options: ids.append(rows) or [""] * len(rows))
    model.generate(audio, LENGTHS[:2], generation=short)
    eos = tokenizer.eos_token_id
    for row in ids[0].tolist():
        end = row.index(eos, 1) if eos in row[1:] else len(row)
        assert end >= 11 and len(set(row[1:end])) == end - 1  # long enough, and no token twice
    calls = []
    original = model.decoder.bart.generate
    monkeypatch.setattr(model.decoder.bart, "generate", lambda **options: calls.append(options) or original(**options))
    settings = GenerationConfig(5, 3, 2.0, True)
    model.generate(audio, LENGTHS[:2], beams=2, generation=settings)
    given = {"min_length": 5, "no_repeat_ngram_size": 3, "length_penalty": 2.0, "early_stopping": True, "num_beams": 2}
    assert {name: calls[0][name] for name in given} == given
    model.generate(audio, LENGTHS[:2], beams=1)
    assert "early_stopping" not in calls[1] and calls[1]["num_beams"] == 1
