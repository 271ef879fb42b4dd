"""Checkpoints of many kinds as text encoders: they work, or an error names them before training."""

import json

import pytest
import torch
from support.tiny_clap import CONFIG

from atk.models.clap import CLAP, ModelConfig
from atk.models.text import TextEncoder, TextEncoderConfig, train_tokenizer
from atk.models.tokenizer import import_transformers

CAPTIONS = ["a dog barks", "rain falls on a tin roof while thunder rolls"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SEQ2SEQ = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")}


@pytest.fixture
def tokenizer():
    return train_tokenizer(CAPTIONS, 300)


def models(vocab_size):
    transformers = import_transformers()
    vision = {**SIZES, "image_size": 32, "patch_size": 16}
    text = {**SIZES, "vocab_size": vocab_size, "bos_token_id": 2, "eos_token_id": 3}
    return {
        "distilbert": lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(vocab_size=vocab_size, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
        ),
        "gpt2": lambda: transformers.GPT2Model(
            transformers.GPT2Config(
                vocab_size=vocab_size, n_embd=16, n_layer=1, n_head=2, bos_token_id=3, eos_token_id=3
            )
        ),
        "xlnet": lambda: transformers.XLNetModel(
            transformers.XLNetConfig(vocab_size=vocab_size, d_model=16, n_layer=1, n_head=2, d_inner=32)
        ),
        "t5": lambda: transformers.T5Model(
            transformers.T5Config(vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        "bart": lambda: transformers.BartModel(transformers.BartConfig(vocab_size=vocab_size, d_model=16, **SEQ2SEQ)),
        "clip": lambda: transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)),
    }


@pytest.mark.parametrize("model_type", ["distilbert", "gpt2", "xlnet", "t5", "bart", "clip"])
def test_encoders_decoders_and_towers_encode_text(tmp_path, tokenizer, model_type):
    models(len(tokenizer))[model_type]().save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    text = TextEncoderConfig(pretrained=str(tmp_path / "checkpoint"), pooling="mean")
    model = CLAP.create(ModelConfig(dim=8, audio=CONFIG.audio, text=text), []).eval()
    with torch.no_grad():
        both = model.embed_text(CAPTIONS)
        alone = model.embed_text(CAPTIONS[:1])
        assert both.tokens.shape[-1] == 8 and int(both.mask[0].sum()) == int(alone.mask.sum()) > 2
        torch.testing.assert_close(both.pooled[:1], alone.pooled, rtol=1e-4, atol=1e-5)
        model.save_pretrained(tmp_path / "saved")
        again = CLAP.from_pretrained(tmp_path / "saved").embed_text(CAPTIONS)
    assert torch.equal(again.pooled, both.pooled)
    embeddings = torch.zeros(2, 1, model.token_width)
    if model_type == "clip":
        with pytest.raises(ValueError, match="pseudo_tokens: a clip_text_model takes no embeddings in place of words"):
            model.encode_text(model.tokenize(CAPTIONS, reserve=1), embeddings)
    else:
        assert model.encode_text(model.tokenize(CAPTIONS, reserve=1), embeddings).pooled.isfinite().all()


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_vector_does_not_depend_on_the_padding_side_of_the_checkpoint(tmp_path, tokenizer, pooling):
    models(len(tokenizer))["gpt2"]().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "left"}))
    encoder = TextEncoder.create(TextEncoderConfig(pretrained=str(tmp_path), pooling=pooling), []).eval()
    with torch.no_grad():
        alone, beside = (encoder(encoder.tokenize(captions))[0][0] for captions in (CAPTIONS[:1], CAPTIONS))
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


def test_the_end_token_pads_if_there_is_no_padding_token(tmp_path, tokenizer):
    bare = import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]"
    )
    bare.save_pretrained(tmp_path)
    models(len(tokenizer))["gpt2"]().save_pretrained(tmp_path)
    encoder = TextEncoder.create(TextEncoderConfig(pretrained=str(tmp_path)), [])
    both, alone = (encoder.tokenize(captions)["attention_mask"] for captions in (CAPTIONS, CAPTIONS[:1]))
    assert both[0].sum() == alone.sum() < both.shape[1]


def test_old_weights_in_bin_files(tmp_path, tokenizer):
    model = models(len(tokenizer))["distilbert"]()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    tokenizer.save_pretrained(tmp_path)
    encoder = TextEncoder.create(TextEncoderConfig(pretrained=str(tmp_path)), [])
    assert torch.equal(encoder.model.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight)


def neither_padding_nor_end_token(folder, tokenizer, _):
    import_transformers().PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(folder)


def python_tokenizer(folder, *_):
    import_transformers().CanineTokenizer().save_pretrained(folder)


def an_image_model(folder, *_):
    import_transformers().ViTModel(
        import_transformers().ViTConfig(**SIZES, image_size=32, patch_size=16)
    ).save_pretrained(folder)


def ids_beyond_the_embeddings(folder, *_):
    train_tokenizer(["".join(map(chr, range(200, 900))), *CAPTIONS], 1000).save_pretrained(folder)
    models(20)["distilbert"]().save_pretrained(folder)


def weights_cut_short(folder, *_):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def tokenizer_cut_short(folder, *_):
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:100])


def no_configuration(folder, *_):
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (neither_padding_nor_end_token, "its tokenizer has neither a padding token nor an end token"),
        pytest.param(
            python_tokenizer,
            "its tokenizer gives no character offsets; a checkpoint with a tokenizer.json is needed",
            marks=pytest.mark.slow,
        ),
        (an_image_model, "a vit model has no word embeddings"),
        (ids_beyond_the_embeddings, "index out of range"),
        (weights_cut_short, r"model\.safetensors is damaged or cut short"),
        (tokenizer_cut_short, r"tokenizer\.json is damaged or cut short"),
        (no_configuration, ""),
    ],
)
def test_what_cannot_encode_text_is_named_before_training(tmp_path, tokenizer, spoil, reason):
    tokenizer.save_pretrained(tmp_path)
    models(len(tokenizer))["distilbert"]().save_pretrained(tmp_path)
    spoil(tmp_path, tokenizer, None)
    with pytest.raises(ValueError, match=rf"^text\.pretrained: cannot use '.*': .*{reason}"):
        TextEncoder.create(TextEncoderConfig(pretrained=str(tmp_path)), [])
