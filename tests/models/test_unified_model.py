"""The unified model with every type of audio encoder: what it embeds, what its decoder sees, and how it is saved."""

import dataclasses

import pytest
import torch
from support.audio_towers import MAKERS, RATE, save_checkpoint
from support.tiny_clap import CONFIG, tiny_clap

from atk.models import from_pretrained
from atk.models.audio import AudioEncoderConfig
from atk.models.captioner import Captioner
from atk.models.clap import CLAP
from atk.models.decoder import DecoderConfig
from atk.models.unified import Unified, UnifiedModelConfig

CAPTIONS = ["a dog barks", "rain falls"]
HEAD = UnifiedModelConfig(decoder=DecoderConfig(width=16, layers=1, heads=2, vocabulary=300, max_tokens=8), heads=2)
LENGTHS = torch.tensor([RATE, RATE // 2, RATE * 3 // 4])


def clips():
    audio = 0.1 * torch.randn(3, RATE, generator=torch.Generator().manual_seed(0))
    return audio * (torch.arange(RATE) < LENGTHS[:, None]), LENGTHS


def encoder_config(name, folder):
    if name == "scratch":
        return dataclasses.replace(CONFIG.audio, frame_layer=0)
    if name == "CNN14":
        return AudioEncoderConfig(type="cnn14", mel_bins=32, window=512, hop=160, channels=(4, 4, 8, 8, 8, 8))
    save_checkpoint(name, folder)
    return AudioEncoderConfig(pretrained=str(folder), frame_layer=None if name == "HTS-AT" else 0)


@pytest.mark.parametrize("name", ["scratch", "CNN14", *MAKERS])
def test_the_decoder_sees_the_last_layer_and_embeddings_are_those_of_the_encoders(tmp_path, name):
    clap = CLAP.create(dataclasses.replace(CONFIG, audio=encoder_config(name, tmp_path / "tower")), CAPTIONS).eval()
    encoder = clap.audio_encoder
    with torch.no_grad():
        expected = clap.embed_audio(*clips())
        layer = getattr(encoder, "frame_layer", None)
        if layer is not None:
            encoder.frame_layer = 1 if name == "scratch" else None  # the last one
        _, last, mask = encoder(*clips())
        if layer is not None:
            encoder.frame_layer = layer
        model = Unified.extend(clap, HEAD.with_encoders(clap.config), CAPTIONS).eval()
        for got, want in zip(model.embed_audio(*clips()), expected, strict=True):
            torch.testing.assert_close(got, want)
        features, feature_mask = model.encode(*clips())
        assert torch.equal(feature_mask, mask)
        torch.testing.assert_close(features[mask], model.projection(last)[mask])
        model.save_pretrained(tmp_path / "saved")
        again = from_pretrained(tmp_path / "saved")
        assert isinstance(again, Unified) and again.config == model.config
        assert torch.equal(again.encode(*clips())[0], features)
        sound = 0.1 * torch.randn(2, 1, RATE // 3)
        sound[1, :, 1:] = 0  # a single sample sounds
        tokens = model.decoder.tokenize(CAPTIONS)
        tracks = (sound, torch.nn.functional.pad(sound, (RATE // 3, RATE // 5)))
        losses = [
            model.cross_entropy(clips()[0][:2], LENGTHS[:2], tokens, x, torch.full((2, 1), x.shape[2])) for x in tracks
        ]
        torch.testing.assert_close(*losses)
        part = CLAP.from_pretrained(tmp_path / "saved")
        assert type(part) is CLAP and torch.equal(part.embed_audio(*clips()).pooled, model.embed_audio(*clips()).pooled)


def test_cross_entropy_from_waveforms_is_that_from_features():
    model = Unified.extend(tiny_clap(), HEAD.with_encoders(CONFIG), CAPTIONS).eval()
    audio, lengths = clips()
    references, given = audio.flip(0)[:, None], torch.tensor([[0], [RATE // 2], [RATE]])
    tokens = model.decoder.tokenize([*CAPTIONS, "rain"])
    present = given > 0
    features = model.encode(audio, lengths), model.encode(references[present], given[present])
    loss = model.decode_loss(*features, present, tokens)
    torch.testing.assert_close(loss, model.cross_entropy(audio, lengths, tokens, references, given))
    alone = model.decode_loss(features[0], None, present, tokens)
    torch.testing.assert_close(alone, model.cross_entropy(audio, lengths, tokens))
    rest = model.subtract(features[0][0], *features[1], present)
    assert [torch.allclose(rest[row], features[0][0][row]) for row in range(3)] == [True, False, False]
    alone.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.difference_block.parameters())


def test_other_models_are_refused_in_one_line(tmp_path):
    tiny_clap().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no unified model: its configuration lacks a text encoder or a decoder"):
        Unified.from_pretrained(tmp_path)
    Unified.extend(tiny_clap(), HEAD.with_encoders(CONFIG), CAPTIONS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a unified model, whose audio encoder is not that of a captioner"):
        Captioner.from_pretrained(tmp_path)
