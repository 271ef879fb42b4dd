"""MS-CLAP 2023 against the encoders of transformers and, if it is installed, the msclap package."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.published_models import MsClap, gpt2_tokenizer

from atk.models import from_pretrained
from atk.models.clap import CLAP, ModelConfig
from atk.models.clap_transformers import ClapConfig
from atk.models.msclap import MsClapConfig
from atk.models.text import TextEncoderConfig
from atk.models.tokenizer import import_transformers

CAPTIONS = ["a dog barks", "a bell rings, then rain falls", "engine"]
RATE, CLIP = 44100, 7 * 44100


class Published(MsClap):
    def project(self, part, features):
        weights = self.projections[part]
        first = features @ weights["linear1.weight"].T
        second = first + F.gelu(first) @ weights["linear2.weight"].T
        return F.layer_norm(second, (24,), weights["layer_norm.weight"], weights["layer_norm.bias"])

    def config(self, **text):
        msclap = MsClapConfig(str(self.file), str(self.tokenizer))
        return ModelConfig(text=TextEncoderConfig(**text), msclap=msclap)

    def load(self, **text):
        return CLAP.create(self.config(**text), []).eval()


@pytest.fixture
def published(tmp_path):
    with torch.no_grad():
        return Published(tmp_path)


def clips():
    lengths = torch.tensor([CLIP, 3 * RATE, RATE // 2 + 3, 1])
    audio = torch.randn(4, CLIP) * 0.1 * (torch.arange(CLIP) < lengths[:, None])
    repeated = [
        np.tile(row[:length].numpy(), -(-CLIP // length))[:CLIP]
        for row, length in zip(audio, lengths.tolist(), strict=True)
    ]
    return audio, lengths, torch.from_numpy(np.stack(repeated))


@torch.no_grad()
def test_audio_matches_the_encoder_of_transformers(published):
    model, (audio, lengths, repeated) = published.load(), clips()
    assert model.dim == 24 and model.token_width == 128 and model.sample_rate == RATE and model.frame_seconds == 7 / 32
    spectrum = torch.stft(repeated.double(), 1024, 320, window=torch.hann_window(1024).double(), return_complex=True)
    mel = 10 * torch.log10((spectrum.abs().square().transpose(1, 2) @ published.filters.double()).clamp(min=1e-10))
    theirs = published.htsat(input_features=mel[:, None].float())
    embedding = model.encode_audio(audio, lengths)
    pooled = published.project("audio", theirs.pooler_output)
    torch.testing.assert_close(embedding.pooled, pooled, rtol=1e-3, atol=1e-4)
    frames = published.project("audio", theirs.last_hidden_state.mean(2).transpose(1, 2))
    torch.testing.assert_close(embedding.frames, frames, rtol=1e-3, atol=1e-3)
    assert embedding.mask.sum(1).tolist() == [32, 13, 2, 1]


@torch.no_grad()
def test_text_matches_the_encoder_of_transformers(published):
    model = published.load()
    tokens, embedding = model.tokenize(CAPTIONS), model.encode_text(model.tokenize(CAPTIONS))
    tokenizer = model.text_encoder.tokenizer
    for row, caption in enumerate(CAPTIONS):
        length = int(tokens["attention_mask"][row].sum())
        ids = tokens["input_ids"][row, :length]
        assert tokenizer.decode(ids) == caption + " <|endoftext|>"
        hidden = published.gpt2(input_ids=ids[None]).last_hidden_state
        torch.testing.assert_close(
            embedding.pooled[row], published.project("caption", hidden[0, -1]), rtol=1e-4, atol=1e-4
        )
        assert embedding.mask[row].tolist() == [i < length - 2 for i in range(tokens["input_ids"].shape[1])]
        offsets = embedding.offsets[row][embedding.mask[row]].tolist()
        covered = {i for start, end in offsets for i in range(start, end)}
        assert covered == {i for i, letter in enumerate(caption) if letter != " "}


@torch.no_grad()
def test_pseudo_tokens_are_inserted_before_the_end_token(published):
    model = published.load()
    tokens = model.tokenize(CAPTIONS, reserve=2)
    pseudo, words = torch.randn(3, 2, 128), published.gpt2.wte
    pooled = model.encode_text(tokens, pseudo).pooled
    for row, length in enumerate(tokens["attention_mask"].sum(1).tolist()):
        embedded = words(tokens["input_ids"][row, :length])
        inputs = torch.cat([embedded[:-1], pseudo[row], embedded[-1:]])[None]
        hidden = published.gpt2(inputs_embeds=inputs).last_hidden_state[0, -1]
        torch.testing.assert_close(pooled[row], published.project("caption", hidden), rtol=1e-4, atol=1e-4)


def test_long_captions_keep_their_end_token(published):
    tokens = published.load(max_tokens=12).tokenize(["rain " * 50, ""], reserve=3)
    assert tokens["input_ids"].shape == (2, 9) and tokens["attention_mask"].sum(1).tolist() == [9, 2]
    assert tokens["input_ids"][0, -2:].tolist() == tokens["input_ids"][1, :2].tolist()


@pytest.mark.parametrize("learn", [False, True], ids=["as loaded", "after a step"])
def test_saved_model_loads_unchanged(published, tmp_path, learn):
    model = published.load()
    if learn:
        audio, text = model.train()(*clips()[:2], model.tokenize([*CAPTIONS, "rain"]))
        (audio.frames.square().sum() + (text.pooled * text.tokens[:, 0]).sum()).backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert all(name.endswith("key.bias") for name in missing), missing
        torch.optim.SGD(model.parameters(), 0.01).step()
        model.eval()
    model.save_pretrained(tmp_path / "saved")
    published.file.unlink()
    published.tokenizer.rename(tmp_path / "gone")
    again = from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model.encode_audio(*clips()[:2]).mask, again.encode_audio(*clips()[:2]).mask)
        audio, lengths, _ = clips()
        assert torch.equal(model.encode_audio(audio, lengths).frames, again.encode_audio(audio, lengths).frames)
        for before, after in zip(model.embed_text(CAPTIONS), again.embed_text(CAPTIONS), strict=True):
            assert torch.equal(before, after)


def test_outputs_match_the_msclap_package(tmp_path, monkeypatch):
    import_transformers()
    clap = pytest.importorskip("msclap.models.clap", reason="package msclap is not installed")
    transformers = import_transformers()
    gpt2_tokenizer(tmp_path / "tokenizer")
    gpt2 = transformers.GPT2Model(transformers.GPT2Config(vocab_size=320, n_layer=1))
    monkeypatch.setattr(clap.AutoModel, "from_pretrained", lambda name: gpt2)
    theirs = clap.CLAP("HTSAT", RATE, 1024, 320, 64, 50, 8000, 527, 768, "gpt2", 768, 1024).eval()
    torch.save({"model": theirs.state_dict()}, tmp_path / "weights.pth")
    msclap = MsClapConfig(str(tmp_path / "weights.pth"), str(tmp_path / "tokenizer"))
    model = CLAP.create(ModelConfig(msclap=msclap), []).eval()
    audio, lengths, repeated = clips()
    tokens = model.tokenize(CAPTIONS)
    # The package pads with 0 and finds the end of a caption by counting the IDs that are not 0.
    inputs = {"input_ids": tokens["input_ids"] * tokens["attention_mask"], "attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        pooled = model.encode_audio(audio, lengths).pooled, model.encode_text(tokens).pooled
        expected = theirs.audio_encoder(repeated)[0], theirs.caption_encoder(inputs)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


def without(name):
    def change(published):
        state = published.checkpoint()
        del state[name]
        torch.save({"model": state}, published.file)

    return change


def shaped(name, *shape):
    def change(published):
        torch.save({"model": published.checkpoint() | {name: torch.ones(shape)}}, published.file)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda published: published.file.unlink(), "cannot read the weights"),
        (lambda published: published.file.write_text("no weights"), "cannot read the weights"),
        (lambda published: torch.save({"state": 1}, published.file), "cannot read the weights"),
        (without("audio_encoder.base.htsat.patch_embed.proj.weight"), "it lacks .*htsat.patch_embed.proj.weight"),
        (without("audio_encoder.base.htsat.norm.bias"), "is not MS-CLAP 2023: it lacks audio_encoder.base.htsat.norm"),
        (without("audio_encoder.base.htsat.layers.1.blocks.1.attn.qkv.bias"), r"it lacks .*layers.1.blocks.1.attn.qkv"),
        (without("caption_encoder.base.ln_f.weight"), "it lacks caption_encoder.base.ln_f.weight"),
        (shaped("audio_encoder.base.htsat.other", 2), "that this model lacks: audio_encoder.base.htsat.other"),
        (shaped("other", 2), "it has weights that this model lacks: other"),
        (shaped("caption_encoder.projection.linear2.weight", 3, 3), r"of caption_encoder.projection.linear2.*\[3, 3\]"),
        (shaped("audio_encoder.base.htsat.spectrogram_extractor.stft.conv_real.weight", 513, 1, 1024), "Hann window"),
        (lambda published: published.tokenizer.rename(published.tokenizer.with_name("x")), "msclap.tokenizer: cannot"),
        (shaped("caption_encoder.base.wte.weight", 100, 128), "expected at most 100 entries"),
    ],
)
def test_errors(published, change, message):
    change(published)
    with pytest.raises(ValueError, match=message):
        published.load()


def test_only_one_pretrained_model_at_a_time(published):
    with pytest.raises(ValueError, match="only one of clap and msclap can be set"):
        ModelConfig(clap=ClapConfig(random_init=True), msclap=published.config().msclap)
