"""GradCache: gradients of all parameters, the temperature too, are those of the whole batch."""

import pytest
import torch
from support.integrations import library, our_ops_run
from support.two_ranks import GRAD_CACHE, Encoder, messages

from atk.integrations.grad_cache import AlignedLoss, joined
from atk.nn import AlignedContrastiveLoss


def masks():
    return {"audio_mask": torch.rand(6, 9) < 0.8, "text_mask": torch.rand(6, 5) < 0.8}


def weights(models, loss_fn):
    return [weight for module in (*models, loss_fn) for weight in module.parameters()]


def test_the_loss_is_that_of_its_parts():
    pooled, frames = torch.randn(6, 16), torch.randn(6, 9, 16)
    text, tokens, both = torch.randn(6, 16), torch.randn(6, 5, 16), masks()
    criterion = AlignedContrastiveLoss(0.1)
    expected = criterion(pooled, text, frames, tokens, both["audio_mask"], both["text_mask"])
    torch.testing.assert_close(AlignedLoss(criterion)(joined(pooled, frames), joined(text, tokens), **both), expected)
    assert AlignedLoss().criterion.logit_scale.item() == AlignedContrastiveLoss().logit_scale.item()


def test_gradients_are_those_of_the_whole_batch():
    grad_cache = library("grad_cache")
    models, loss_fn = [Encoder(), Encoder()], AlignedLoss(AlignedContrastiveLoss(0.1, learnable=True))
    inputs, both = [torch.randn(6, 9, 8), torch.randn(6, 5, 8)], masks()
    loss = loss_fn(*(model(rows) for model, rows in zip(models, inputs, strict=True)), **both)
    expected = torch.autograd.grad(loss, weights(models, loss_fn))
    with our_ops_run():
        value = grad_cache.GradCache(models, 2, loss_fn)(*inputs, **both)
    torch.testing.assert_close(value, loss.detach())
    for weight, gradient in zip(weights(models, loss_fn), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", GRAD_CACHE)
def test_two_ranks(case):
    library("grad_cache")
    errors = messages("GRAD_CACHE")[case]
    assert not errors, errors
