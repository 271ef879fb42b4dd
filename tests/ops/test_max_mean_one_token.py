"""Captions of at most one token, for which `"auto"` takes the mean of the frames before the product."""

import math

import pytest
import torch
from support.public_cases import gradients, ragged

import atk
from atk.ops import max_mean_one_token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("direction", ["audio", "text", "both"])
@pytest.mark.parametrize("function", [atk.max_mean_similarity, atk.max_mean_similarity_pairs])
def test_values_and_gradients_equal_the_reference(function, dtype, direction):
    audio, text, audio_mask, text_mask = ragged(captions=4, dtype=dtype)
    text, text_mask = text[:, :1], text_mask[:, :1]
    audio, text = audio.masked_fill(~audio_mask[..., None], math.nan), text.masked_fill(~text_mask[..., None], math.nan)

    def run(backend):
        options = {"direction": direction, "backend": backend}
        return gradients(lambda a, t: function(a, t, audio_mask, text_mask, **options), audio, text)

    for got, wanted in zip(run("auto"), run("reference"), strict=True):
        assert got.dtype == wanted.dtype and not got.isnan().any()
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("direction", ["audio", "text", "both"])
@pytest.mark.parametrize(("audio", "text"), [((3, 0), (2, 1)), ((0, 4), (2, 1)), ((3, 4), (0, 1)), ((3, 1), (2, 0))])
def test_no_rows(audio, text, direction):
    arguments = torch.randn(*audio, 8), torch.randn(*text, 8)
    got = atk.max_mean_similarity(*arguments, direction=direction)
    assert torch.equal(got, torch.zeros(audio[0], text[0]))


@pytest.mark.parametrize("function", [atk.max_mean_similarity, atk.max_mean_similarity_pairs])
def test_nan_beside_sequences_without_a_valid_row(function):
    audio, text = torch.randn(3, 4, 8), torch.randn(3, 1, 8)
    audio[0], text[1] = math.nan, math.nan
    audio_mask, text_mask = torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool)
    audio_mask[1], text_mask[0] = False, False

    def run(backend):
        return gradients(lambda a, t: function(a, t, audio_mask, text_mask, backend=backend), audio, text)

    for got, wanted in zip(run("auto"), run("reference"), strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize("masked", [False, True])
def test_clips_copied_a_few_at_a_time_score_the_same(monkeypatch, masked):
    audio, text, audio_mask, _ = ragged(clips=7, captions=7, dtype=torch.bfloat16)
    audio_mask = audio_mask if masked else None

    def run():
        return gradients(lambda a, t: atk.max_mean_similarity(a, t, audio_mask), audio, text[:, :1].contiguous())

    whole = run()
    groups = []
    total = torch.sum
    monkeypatch.setattr(torch, "sum", lambda rows, *rest, **out: groups.append(len(rows)) or total(rows, *rest, **out))
    monkeypatch.setattr(max_mean_one_token, "CACHED_ELEMENTS", 2 * audio[0].numel())
    for got, wanted in zip(run(), whole, strict=True):
        assert torch.equal(got, wanted)
    assert groups[:4] == [2, 2, 2, 1]


def test_transforms_and_tensors_without_values():
    audio, text = torch.randn(2, 3, 5, 8), torch.randn(2, 4, 1, 8)
    mapped = torch.vmap(atk.max_mean_similarity)(audio, text)
    torch.testing.assert_close(mapped, torch.stack(list(map(atk.max_mean_similarity, audio, text))))
    assert atk.max_mean_similarity(audio[0].to("meta"), text[0].to("meta")).shape == (3, 4)
