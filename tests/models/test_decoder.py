"""The decoder: pretrained BART checkpoints, and captions as targets."""

import shutil

import pytest
import torch
from support.tiny_captioner import CAPTIONS, LENGTHS, clips, tiny

from atk.models.captioner import Captioner
from atk.models.decoder import DecoderConfig
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
