"""`skip_below` of `atk.aligned_info_nce`: the backward skips pairs of small weight, within the documented bound.

Without a GPU, the Triton cases run in Triton's interpreter, started by `tests/kernels/test_interpreter.py`.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from support.public_cases import BACKENDS, gradients, loop_similarity

import atk


def unit_batch(pairs=9, frames=7, tokens=5, width=16):
    """Unit-length embeddings; captions are noisy copies of their clip's frames, so most softmax weights are small."""
    audio = F.normalize(torch.randn(pairs, frames, width), dim=-1)
    text = F.normalize(audio[:, :tokens] + 0.3 * torch.randn(pairs, tokens, width), dim=-1)
    audio_mask, text_mask = torch.rand(pairs, frames) > 0.2, torch.rand(pairs, tokens) > 0.2
    audio_mask[:, 0] = text_mask[:, 0] = True
    return audio, text, audio_mask, text_mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("direction", "reduction"), [("audio", "sum"), ("audio", "mean"), ("text", "sum")])
def test_skipped_pairs_stay_within_the_bound(backend, direction, reduction):
    audio, text, audio_mask, text_mask = unit_batch()
    scale = torch.tensor(20.0)

    def loss(skip_below):
        return lambda a, t, s: atk.aligned_info_nce(
            a, t, s, audio_mask, text_mask,
            direction=direction, reduction=reduction, skip_below=skip_below, backend=backend,
        )  # fmt: skip

    exact = gradients(loss(0), audio, text, scale)
    errors = []
    for skip_below in (0.01, 0.1, 0.5):
        value, grad_audio, grad_text, grad_scale = gradients(loss(skip_below), audio, text, scale)
        torch.testing.assert_close(value, exact[0])
        torch.testing.assert_close(grad_scale, exact[3])
        bound = skip_below * scale.item() / (2 if reduction == "mean" else 1)
        audio_error, text_error = (grad_audio - exact[1]).norm(dim=-1), (grad_text - exact[2]).norm(dim=-1)
        if direction == "audio":  # the mean is over frames, the max over tokens
            mean_error, mean_mask, max_error = audio_error, audio_mask, text_error
        else:
            mean_error, mean_mask, max_error = text_error, text_mask, audio_error
        assert (mean_error.amax(1) <= bound / mean_mask.sum(1) + 1e-6).all()
        assert (max_error.sum(1) <= bound + 1e-6).all()
        errors.append(max_error.sum(1).max().item())
    assert 0 < errors[0] < errors[1] < errors[2]  # some pairs were skipped


@pytest.mark.parametrize("backend", BACKENDS)
def test_skipping_equals_a_loss_whose_small_weights_are_zero(backend):
    audio, text, audio_mask, text_mask = unit_batch()
    sim = torch.tensor(loop_similarity(audio, text, audio_mask, text_mask).tolist(), requires_grad=True)
    logits = 20 * sim
    (-(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean())).backward()
    weights = sim.grad * len(audio) / 20
    kept = torch.where(weights.abs() < 0.05, 0, sim.grad)
    assert 0 < (kept != 0).float().mean() < 0.5

    def masked(audio, text):
        return (atk.max_mean_similarity(audio, text, audio_mask, text_mask, backend="reference") * kept).sum()

    def skipping(audio, text):
        return atk.aligned_info_nce(audio, text, 20.0, audio_mask, text_mask, skip_below=0.05, backend=backend)

    for got, want in zip(gradients(skipping, audio, text)[1:], gradients(masked, audio, text)[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip_below", [-0.1, 2.0, math.nan])
def test_skip_below_must_be_a_weight(skip_below):
    with pytest.raises(ValueError, match="skip_below must be at least 0 and below 2"):
        atk.aligned_info_nce(torch.randn(2, 3, 4), torch.randn(2, 3, 4), 1.0, skip_below=skip_below)
