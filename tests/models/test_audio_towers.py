"""Any audio encoder with any text encoder: own features, frame times, independence of the batch, saving."""

import dataclasses

import pytest
import torch
from support.audio_towers import MAKERS, RATE, save_checkpoint
from support.tiny_clap import CONFIG

from atk.models.audio import AudioEncoderConfig
from atk.models.clap import CLAP

CAPTIONS = ["a dog barks", "rain falls"]
FRAME_SECONDS = {"AST": 0.04, "Whisper": 0.02, "HTS-AT": 1 / 32}
TOWERS = [*MAKERS, "CNN14", "Music Tagging Transformer"]


def noise(seconds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(1, int(RATE * seconds), generator=generator)


def batch(*clips):
    longest = max(clip.shape[1] for clip in clips)
    padded = [torch.nn.functional.pad(clip, (0, longest - clip.shape[1])) for clip in clips]
    return torch.cat(padded), torch.tensor([clip.shape[1] for clip in clips])


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """The checkpoint of each tower, what transformers loads from it, and a model with that tower."""
    made = {}
    for name in MAKERS:
        folder = tmp_path_factory.mktemp("towers")
        saved = save_checkpoint(name, folder)
        made[name] = (*saved, clap(AudioEncoderConfig(pretrained=str(folder))))
    cnn = AudioEncoderConfig(type="cnn14", mel_bins=32, window=512, hop=160, channels=(4, 4, 8, 8, 8, 8))
    made["CNN14"] = (None, None, clap(cnn))
    made["Music Tagging Transformer"] = (
        None,
        None,
        clap(dataclasses.replace(CONFIG.audio, type="music-tagging-transformer", hop=80)),
    )
    return made


def clap(audio):
    return CLAP.create(dataclasses.replace(CONFIG, audio=audio), CAPTIONS).eval()


@pytest.mark.parametrize("name", TOWERS)
def test_an_embedding_depends_on_nothing_but_its_clip(towers, name):
    model = towers[name][-1]
    first, second, third = noise(0.9, 1), noise(0.41, 2), noise(0.6, 3)
    alone = model.embed_audio(*batch(second))
    both = model.embed_audio(*batch(first, second, third))
    audio, lengths = batch(second, first)
    audio[0, lengths[0] :] = torch.nan  # whatever the padding holds
    swapped = model.embed_audio(audio.nan_to_num(5.0), lengths)
    frames = int(alone.mask.sum())
    for other, row in ((both, 1), (swapped, 0)):
        torch.testing.assert_close(other.pooled[row], alone.pooled[0], rtol=0, atol=1e-5)
        assert int(other.mask[row].sum()) == frames > 0
        torch.testing.assert_close(other.frames[row, :frames], alone.frames[0, :frames], rtol=0, atol=1e-5)
    assert (both.pooled[0] - both.pooled[1]).abs().max() > 1e-4, "clips are not told apart"


@pytest.mark.parametrize("name", TOWERS)
def test_frames_cover_the_clip(towers, name):
    model = towers[name][-1]
    seconds = 0.6
    frames = int(model.embed_audio(*batch(noise(seconds), noise(0.9, 1))).mask[0].sum())
    # Convolutions without padding, and patches, lose less than two frames at the end.
    expected = seconds / model.frame_seconds
    assert expected - 2 <= frames <= expected + 1, (frames, expected)
    if name in FRAME_SECONDS:
        assert model.frame_seconds == pytest.approx(FRAME_SECONDS[name])
    assert model.sample_rate == RATE


@pytest.mark.parametrize("name", ["AST", "Whisper", "wav2vec 2.0", "wav2vec 2.0, layer norm", "HuBERT"])
def test_features_are_those_of_the_extractor(towers, name):
    network, extractor, model = towers[name]
    encoder = model.audio_encoder
    for seconds in (0.9, 0.4):
        clip = noise(seconds, 4)
        inputs = extractor(clip[0].numpy(), sampling_rate=RATE, return_tensors="pt")
        values = inputs.get("input_features", inputs.get("input_values"))
        network_encoder = network.encoder if name == "Whisper" else network
        with torch.no_grad():
            expected = network_encoder(values).last_hidden_state
            _, frames, mask = encoder(*batch(clip, noise(1.0, 5)))
        if name == "AST":
            expected = expected[:, 2:].unflatten(1, (encoder.bands, encoder.frames)).mean(1)
        count = int(mask[0].sum())
        torch.testing.assert_close(frames[0, :count], expected[0, :count], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", TOWERS)
def test_a_saved_model_is_the_same(towers, name, tmp_path):
    model = towers[name][-1]
    model.save_pretrained(tmp_path / "model")
    again = CLAP.from_pretrained(tmp_path / "model")
    inputs = batch(noise(0.5))
    assert torch.equal(again.embed_audio(*inputs).pooled, model.embed_audio(*inputs).pooled)
    assert again.frame_seconds == model.frame_seconds


def test_frames_can_come_from_a_lower_layer(tmp_path):
    network, extractor = save_checkpoint("Whisper", tmp_path / "checkpoint")
    settings = AudioEncoderConfig(pretrained=str(tmp_path / "checkpoint"), frame_layer=1)
    clip = noise(0.5)
    features = extractor(clip[0].numpy(), sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        expected = network.encoder(features, output_hidden_states=True).hidden_states[1]
        _, frames, _ = clap(settings).audio_encoder(*batch(clip))
    torch.testing.assert_close(frames[:, :20], expected[:, :20], rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match=r"audio.frame_layer must be in 0\.\.2, the layers of the encoder, got 3"):
        clap(dataclasses.replace(settings, frame_layer=3))


def test_other_models_are_refused_in_one_line(tmp_path):
    from atk.models.tokenizer import import_transformers

    transformers = import_transformers()
    transformers.BertModel(
        transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=10)
    ).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"audio.pretrained: cannot use '.*': a bert model is none of AST, Whisper"):
        clap(AudioEncoderConfig(pretrained=str(tmp_path)))
    with pytest.raises(ValueError, match=r"audio.pretrained: cannot use '/no/such': "):
        clap(AudioEncoderConfig(pretrained="/no/such"))
