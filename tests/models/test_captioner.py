"""The captioner: loss, Diff block with and without references, generation, and saved models."""

import dataclasses

import pytest
import torch
from support.tiny_captioner import CAPTIONS, LENGTHS, TINY, clips, tiny

from atk.models import from_pretrained
from atk.models.captioner import Captioner, CaptionerConfig
from atk.models.clap import CLAP, ModelConfig
from atk.models.decoder import DecoderConfig
from atk.models.generation import GenerationConfig


def test_frames_and_their_mask():
    model = tiny()
    z, mask = model.encode(clips(LENGTHS), LENGTHS)
    assert z.shape == (4, 6, 32) and mask.sum(1).tolist() == [6, 3, 5, 6]
    assert model.sample_rate == 16000 and model.frame_seconds == 0.32


def test_the_loss_is_the_mean_cross_entropy_of_the_next_token():
    model = tiny()
    tokens = model.tokenize(CAPTIONS)
    audio = clips(LENGTHS)
    loss = model(audio, LENGTHS, tokens)
    bart, tokenizer = model.decoder.bart, model.decoder.tokenizer
    terms = []
    for n in range(4):  # each caption alone, token by token
        z, mask = model.encode(audio[n : n + 1, : LENGTHS[n]], LENGTHS[n : n + 1])
        ids = [bart.config.decoder_start_token_id, *tokenizer(CAPTIONS[n])["input_ids"]]
        assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[1:-1]).strip() == CAPTIONS[n]
        logits = bart(encoder_outputs=(z,), attention_mask=mask.long(), decoder_input_ids=torch.tensor([ids])).logits[0]
        terms += [-logits[i].log_softmax(0)[ids[i + 1]] for i in range(len(ids) - 1)]
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("difference", ["mask", "subtraction"])
def test_absent_references_are_ignored(difference):
    """A clip without references is captioned alone, whatever the padding and the rest of the batch contain."""
    model = tiny(difference=difference)
    audio, tokens = clips(LENGTHS), model.tokenize(CAPTIONS)
    alone, mask = model._features(audio, LENGTHS, None, None)
    absent = torch.full((4, 2, 32000), float("nan"))
    none = torch.zeros(4, 2, dtype=torch.int64)
    assert torch.equal(model(audio, LENGTHS, tokens), model(audio, LENGTHS, tokens, absent, none))
    assert torch.equal(model(audio, LENGTHS, tokens), model(audio, LENGTHS, tokens, absent[:, :0], none[:, :0]))
    lengths = none.clone()
    lengths[1, 1] = 20000
    absent[1, 1, :20000] = torch.randn(20000)
    mixed, _ = model._features(audio, LENGTHS, absent, lengths)
    for n in (0, 2, 3):
        torch.testing.assert_close(mixed[n, mask[n]], alone[n, mask[n]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[1, mask[1]], alone[1, mask[1]], atol=1e-2)


def test_only_present_references_are_encoded():
    model = tiny()
    seen = []
    masked = []
    model.audio_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    model.difference_block.register_forward_pre_hook(lambda module, inputs: masked.append(len(inputs[0])))
    lengths = torch.tensor([[32000, 0], [0, 0], [0, 32000], [0, 0]])
    model._features(clips(LENGTHS), LENGTHS, clips(lengths), lengths)
    assert seen == [(6, 32000)] and masked == [2]
    model._features(clips(LENGTHS), LENGTHS, clips(lengths * 4, 128000), lengths * 4)  # too long for one batch
    assert seen[1:] == [(4, 32000), (2, 128000)]


def test_gradients_reach_every_weight():
    model = tiny().train()
    lengths = torch.full((4, 1), 32000)
    model(clips(LENGTHS), LENGTHS, model.tokenize(CAPTIONS), clips(lengths), lengths).backward()
    # A key bias shifts all scores of a query equally, so its gradient is 0.
    zero = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().max() > 0]
    assert [name for name in zero if not name.endswith("k_proj.bias")] == []
    assert not [name for name in model.state_dict() if "encoder." in name.replace("audio_encoder.", "")]


@pytest.mark.slow
def test_four_tones_are_memorized():
    torch.manual_seed(1)
    config = dataclasses.replace(TINY, audio=dataclasses.replace(TINY.audio, dropout=0.0))
    config = dataclasses.replace(config, decoder=dataclasses.replace(TINY.decoder, dropout=0.0))
    model = Captioner.create(config, CAPTIONS).train()
    time = torch.arange(16000) / 16000
    tones = torch.stack([torch.sin(2 * torch.pi * hertz * time) for hertz in (200, 600, 1800, 5400)]) * 0.3
    tones += 0.01 * torch.randn_like(tones)
    lengths = torch.full((4,), 16000)
    swapped = tones[[1, 0, 3, 2]]
    # Each batch holds single clips and differences, so batch norm sees the same statistics at every step.
    batch = torch.cat([tones, tones + swapped]), torch.cat([lengths, lengths])
    references = torch.cat([torch.zeros_like(swapped), swapped])[:, None], torch.cat([0 * lengths, lengths])[:, None]
    tokens = model.tokenize(2 * CAPTIONS)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        loss = model(*batch, tokens, *references)
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.eval()
    assert model.generate(tones, lengths) == CAPTIONS
    assert model.generate(tones, lengths, beams=1) == CAPTIONS
    assert model.generate(tones + swapped, lengths, swapped[:, None], lengths[:, None]) == CAPTIONS
    assert all(
        len(model.decoder.tokenizer(text)["input_ids"]) <= 3 for text in model.generate(tones, lengths, max_tokens=2)
    )


@pytest.mark.parametrize("difference", ["mask", "subtraction", "none"])
def test_a_saved_model_loads_unchanged(tmp_path, difference):
    model = tiny(difference=difference)
    model.save_pretrained(tmp_path / "saved")
    audio, tokens = clips(LENGTHS), model.tokenize(CAPTIONS)
    again = from_pretrained(tmp_path / "saved")
    assert isinstance(again, Captioner) and again.config == model.config and not again.training
    assert torch.equal(model(audio, LENGTHS, tokens), again(audio, LENGTHS, tokens))
    assert model.generate(audio, LENGTHS) == again.generate(audio, LENGTHS) == again.generate(audio, LENGTHS)
    names = {path.name for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    bart = again.decoder.bart  # input and output embeddings are still tied after loading
    assert bart.lm_head.weight is bart.model.decoder.embed_tokens.weight


def test_half_precision_under_autocast():
    model = tiny().train()
    lengths = torch.tensor([[32000, 0], [0, 0], [16000, 32000], [0, 0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(clips(LENGTHS), LENGTHS, model.tokenize(CAPTIONS), clips(lengths), lengths)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


def test_the_published_checkpoint_is_only_read_to_create_a_model(tmp_path):
    audio = TINY.audio
    model = tiny()
    state = model.audio_encoder.state_dict()
    filters = model.audio_encoder.log_mel.mel_scale.fb
    torch.save({"model": {**state, "logmel_extractor.melW": filters}}, tmp_path / "cnn14.pth")
    model = tiny(audio=dataclasses.replace(audio, pretrained=str(tmp_path / "cnn14.pth")))
    loaded = model.audio_encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "cnn14.pth").unlink()
    assert Captioner.from_pretrained(tmp_path / "saved").config == model.config
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"")
    assert Captioner.saved_config(tmp_path / "saved") == model.config  # the weights are not read


def test_with_difference_keeps_a_diff_block_that_matches():
    model = tiny()
    block = model.difference_block
    assert model.with_difference("mask", 2).difference_block is block
    for difference, heads in (("mask", 4), ("subtraction", 2), ("none", 2)):
        changed = model.with_difference(difference, heads)
        assert changed.difference_block is not block and changed.projection is model.projection


def test_a_clap_cannot_be_loaded_as_a_captioner(tmp_path):
    CLAP.create(ModelConfig(), CAPTIONS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no captioner"):
        Captioner.from_pretrained(tmp_path)


def test_names_that_are_not_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for call in (
        lambda: Captioner.from_pretrained("nobody/no-such-captioner"),
        lambda: Captioner.from_pretrained("not a name"),
        lambda: tiny(decoder=DecoderConfig(pretrained="nobody/no-such-bart")),
    ):
        with pytest.raises(ValueError, match=r"neither a local folder nor a hub model|cannot load") as error:
            call()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="holds no model"):
        Captioner.from_pretrained(tmp_path)


AUDIO, TOKENS = torch.zeros(2, 16000), {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 3).long()}
TWO = torch.tensor([16000, 16000])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: CaptionerConfig(difference="minus"),
            "difference must be one of 'mask', 'subtraction', 'none', got 'minus'",
        ),
        (lambda: tiny(heads=3), "heads must divide the decoder's width 32, got 3"),
        (lambda: CaptionerConfig(heads=0), "heads must be at least 1, got 0"),
        (lambda: DecoderConfig(max_tokens=2), "max_tokens must be at least 3, got 2"),
        (lambda: DecoderConfig(width=30), "width must be a multiple of heads, got 30 and 4"),
        (lambda: DecoderConfig(width=0), "width must be at least 1, got 0"),
        (lambda: DecoderConfig(layers=0), "layers must be at least 1, got 0"),
        (lambda: DecoderConfig(heads=0), "heads must be at least 1, got 0"),
        (lambda: DecoderConfig(vocabulary=0), "vocabulary must be at least 1, got 0"),
        (lambda: DecoderConfig(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: Captioner.create(TINY, []), "at least one caption"),
        (lambda: tiny()(AUDIO[0], TWO, TOKENS), r"audio must be waveforms of shape \[N, S\]"),
        (lambda: tiny()(AUDIO, TWO[:1], TOKENS), r"lengths must have shape \[2\]"),
        (lambda: tiny()(AUDIO[:1], TWO[:1], TOKENS), "tokens must hold 1 captions"),
        (lambda: tiny()(AUDIO, TWO, TOKENS, AUDIO[:, None]), "must be given together"),
        (lambda: tiny()(AUDIO, TWO, TOKENS, AUDIO, TWO), r"references must have shape \[2, R, S_ref\]"),
        (
            lambda: tiny()(AUDIO, TWO, TOKENS, AUDIO[:, None], TWO),
            r"reference_lengths must have shape \[2, 1\], got \[2\]",
        ),
        (lambda: tiny(difference="none")(AUDIO, TWO, TOKENS, AUDIO[:, None], TWO[:, None]), "has no Diff block"),
        (
            lambda: tiny(difference="subtraction").generate(
                torch.randn(2, 16000), TWO, AUDIO[:, None], TWO[:, None], common=True
            ),
            "common: only a mask keeps what clips have in common",
        ),
        (
            lambda: tiny().generate(AUDIO, TWO, generation=GenerationConfig(min_length=30)),
            r"min_length must be at most max_tokens \(20\), got 30",
        ),
        (lambda: GenerationConfig(no_repeat_ngram_size=-1), "no_repeat_ngram_size must be at least 0, got -1"),
        (lambda: DecoderConfig(activation_dropout=1.0), r"activation_dropout must be in \[0, 1\), got 1.0"),
        (
            lambda: DecoderConfig(pretrained="a", tokenizer="b"),
            "tokenizer: a pretrained decoder brings its own, got 'b'",
        ),
        (lambda: tiny().generate(AUDIO, TWO, beams=0), "beams must be at least 1, got 0"),
        (lambda: tiny().generate(AUDIO, TWO, max_tokens=500), "max_tokens must be between 1 and 128, .* got 500"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
