"""Features of a ClapModel against the feature extractor of transformers."""

import pytest
import torch
from support.clap_features import RATE, clips, transformers_features

from atk.models.clap_features import ClapFeatures
from atk.models.tokenizer import import_transformers


@pytest.mark.parametrize(
    ("truncation", "padding"),
    [("rand_trunc", "repeatpad"), ("fusion", "repeatpad"), ("rand_trunc", "repeat"), ("fusion", "pad")],
)
def test_features_match_the_extractor(truncation, padding):
    extractor = import_transformers().ClapFeatureExtractor(truncation=truncation, padding=padding)
    audio, lengths = clips(10, 9.91, 5, 3.3, 0.01)
    features = ClapFeatures(extractor, 4 if truncation == "fusion" else 1)(audio, lengths)
    expected = transformers_features(extractor, audio, lengths)
    assert features.shape == expected.shape == (5, 4 if truncation == "fusion" else 1, 1001, 64)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-3)


def test_features_with_other_settings():
    extractor = import_transformers().ClapFeatureExtractor(
        feature_size=40, sampling_rate=16000, hop_length=200, max_length_s=2, fft_window_size=512, frequency_min=50,
        frequency_max=7000, truncation="rand_trunc",
    )  # fmt: skip
    audio, lengths = clips(2, 0.7, rate=16000)
    rows = [audio[0].numpy(), audio[1, : lengths[1]].numpy()]
    expected = extractor(rows, sampling_rate=16000, return_tensors="pt")["input_features"].float()
    torch.testing.assert_close(ClapFeatures(extractor, 1)(audio, lengths), expected, rtol=0, atol=1e-3)


def test_longer_clips_are_truncated_and_padding_is_ignored():
    features = ClapFeatures(import_transformers().ClapFeatureExtractor(truncation="rand_trunc"), 1)
    audio, lengths = clips(12, 3)
    first = features(audio[:1, : 10 * RATE], torch.tensor([10 * RATE]))
    assert torch.equal(features(audio, lengths)[:1], first)
    audio[1, int(lengths[1]) :] = 1.0
    alone = features(audio[1:, : int(lengths[1])], lengths[1:])
    assert torch.equal(features(audio, lengths)[1:], alone)


def test_silent_and_empty_clips_have_finite_features():
    features = ClapFeatures(import_transformers().ClapFeatureExtractor(truncation="rand_trunc"), 1)
    for audio, lengths in ((torch.zeros(1, RATE), [RATE]), (torch.zeros(1, 0), [0])):
        assert torch.equal(features(audio, torch.tensor(lengths)), torch.full((1, 1, 1001, 64), -100.0))


def test_unknown_padding_is_refused():
    extractor = import_transformers().ClapFeatureExtractor(padding="mirror")
    with pytest.raises(ValueError, match=r"padding must be one of .* got 'mirror'"):
        ClapFeatures(extractor, 1)
