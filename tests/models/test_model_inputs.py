"""Models report wrong inputs at once and accept weights in half precision."""

import warnings
from functools import cache

import pytest
import torch
from support.tiny_captioner import tiny as tiny_captioner
from support.tiny_clap import tiny_clap

from atk.data import UnlabeledAudio
from atk.eval.caption_metrics import caption_metrics
from atk.eval.embed import embed_captions
from atk.models.text import train_tokenizer
from atk.nn import AlignedContrastiveLoss, InfoNCELoss

WAVES, LENGTHS = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 9000])
TEXT = "a dog barks"
clap, captioner = cache(tiny_clap), cache(tiny_captioner)  # for tests that do not change them


@pytest.mark.parametrize(
    "get_function",
    [
        lambda: clap().embed_text,
        lambda: clap().tokenize,
        lambda: captioner().tokenize,
        lambda: lambda captions: embed_captions(clap(), captions),
        lambda: lambda captions: train_tokenizer(captions, 300),
    ],
)
@pytest.mark.parametrize("captions", [TEXT, [TEXT, None]])
def test_captions_must_be_a_list_of_strings(get_function, captions):
    with pytest.raises(TypeError, match=r"captions must be a list of strings, got ('a dog barks'|None at index 1)"):
        get_function()(captions)


@pytest.mark.parametrize(
    "get_function",
    [
        lambda: clap().embed_text,
        lambda: captioner().tokenize,
        lambda: lambda captions: embed_captions(clap(), captions),
    ],
)
def test_an_empty_list_and_invalid_unicode_are_errors(get_function):
    with pytest.raises(ValueError, match="the number of captions must be at least 1, got 0"):
        get_function()([])
    with pytest.raises(ValueError, match=r"captions must be valid Unicode, got 'caf\\udce9' at index 0"):
        get_function()(["caf\udce9"])


@pytest.mark.parametrize("loss", [InfoNCELoss, AlignedContrastiveLoss])
def test_a_batch_of_one_pair_causes_a_warning(loss):
    vectors = torch.randn(2, 8), torch.randn(2, 8)
    frames = () if loss is InfoNCELoss else (torch.randn(2, 5, 8), torch.randn(2, 3, 8))
    with pytest.warns(UserWarning, match="a batch of one pair has nothing to contrast: its loss is always 0"):
        loss()(*(value[:1] for value in (*vectors, *frames)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss()(*vectors, *frames)
        loss().eval()(*(value[:1] for value in (*vectors, *frames)))
        torch.compile(loss(), backend="aot_eager", fullgraph=True)(*vectors, *frames)


def test_a_single_string_is_not_taken_for_a_list_elsewhere_either():
    with pytest.raises(TypeError, match="candidates must be a list"):
        caption_metrics(TEXT, [[TEXT]])
    with pytest.raises(TypeError, match=r"references\[0\] must be a list"):
        caption_metrics([TEXT], [TEXT])
    with pytest.raises(TypeError, match="folders must be a sequence of paths"):
        UnlabeledAudio.scan("folder")


@pytest.mark.parametrize("get_function", [lambda: clap().embed_audio, lambda: captioner().generate])
@pytest.mark.parametrize(
    ("audio", "lengths", "error", "reason"),
    [
        ((WAVES * 32768).short(), LENGTHS, TypeError, r"audio must be a floating-point .* got torch\.int16"),
        (WAVES.numpy(), LENGTHS, TypeError, r"audio must be a floating-point .* got ndarray"),
        (WAVES[0], LENGTHS[:1], ValueError, r"audio must be waveforms of shape \[N, S\] .* got \[16000\]"),
        (WAVES[:, None], LENGTHS, ValueError, r"audio must be waveforms of shape \[N, S\] .* got \[2, 1, 16000\]"),
        (WAVES[:0], LENGTHS[:0], ValueError, r"audio must be waveforms of shape .* N >= 1, got \[0, 16000\]"),
        (WAVES, LENGTHS.float(), TypeError, r"lengths must be an integer tensor, .* got torch\.float32"),
        (WAVES, LENGTHS > 0, TypeError, r"lengths must be an integer tensor, .* got torch\.bool"),
        (WAVES, [16000, 9000], TypeError, r"lengths must be an integer tensor, .* got list"),
        (WAVES, LENGTHS[:1], ValueError, r"lengths must have shape \[2\], got \[1\]"),
    ],
)
def test_audio_and_lengths_must_have_the_right_types_and_shapes(get_function, audio, lengths, error, reason):
    with pytest.raises(error, match=reason):
        get_function()(audio, lengths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_every_type_give_nearly_the_same_vectors(dtype):
    model = tiny_clap()
    with torch.no_grad():
        expected = model.embed_audio(WAVES, LENGTHS), model.embed_text([TEXT, "rain"])
        mel = model.log_mel(WAVES, LENGTHS)
        model.to(dtype)
        for waves in (WAVES, WAVES.to(dtype)):
            got = model.embed_audio(waves, LENGTHS), model.embed_text([TEXT, "rain"])
            for ours, theirs in zip(got, expected, strict=True):
                assert torch.cosine_similarity(ours.pooled, theirs.pooled).min() > 0.99
        assert torch.equal(model.log_mel(WAVES, LENGTHS), mel)  # windows and filters are not rounded
        model.float()
    assert {buffer.dtype for buffer in model.audio_encoder.buffers()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_captioner_in_half_precision(dtype):
    model = tiny_captioner()
    captions = model.generate(WAVES, LENGTHS, WAVES[:, None], LENGTHS[:, None], beams=2)
    assert all(isinstance(caption, str) for caption in captions)
    got = model.to(dtype).generate(WAVES, LENGTHS, WAVES[:, None], LENGTHS[:, None], beams=2)
    assert len(got) == len(captions) == 2
    assert model(WAVES, LENGTHS, model.tokenize([TEXT, "rain"])).isfinite()
