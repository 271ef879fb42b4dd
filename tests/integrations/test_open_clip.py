"""open_clip: `ClipLoss` on one rank, on two with every way to gather, and through `create_loss`."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from support.integrations import assert_all_close, library, our_ops_run
from support.two_ranks import OPEN_CLIP, messages

from atk.integrations import open_clip as adapter

pytestmark = pytest.mark.slow  # the library takes seconds to import


@pytest.fixture(scope="module")
def losses():
    return library("open_clip.loss")


def leaves(pairs, dtype=torch.float64):
    vectors = [F.normalize(torch.randn(pairs, 16, dtype=dtype), dim=-1).requires_grad_() for _ in range(2)]
    return [*vectors, torch.tensor(14.3, dtype=dtype, requires_grad=True)]


def value_and_gradients(criterion, inputs, **options):
    value = criterion(*inputs, **options)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradients(losses, dtype):
    inputs = leaves(9, dtype)
    with our_ops_run(expected=False):
        expected = value_and_gradients(losses.ClipLoss(), inputs)
    with our_ops_run():
        assert_all_close(value_and_gradients(adapter.ClipLoss(), inputs), expected)
    assert adapter.ClipLoss()(*inputs, output_dict=True).keys() == {"contrastive_loss"}
    assert isinstance(adapter.ClipLoss(), losses.ClipLoss)


def test_a_bias_changes_nothing_but_is_part_of_the_graph(losses):
    inputs, bias = leaves(5), torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    expected = losses.ClipLoss()(*inputs, bias)
    value = adapter.ClipLoss()(*inputs, bias)
    torch.testing.assert_close(value, expected)
    assert torch.autograd.grad(value, bias)[0] == 0


@pytest.mark.parametrize("case", OPEN_CLIP)
def test_two_ranks(losses, case):
    errors = messages("OPEN_CLIP")[case]
    assert not errors, errors


def options_of_the_training_script(**changes):
    defaults = {"distill": False, "model": "ViT-B-32", "siglip": False, "local_loss": True, "gather_with_grad": True}
    return argparse.Namespace(**defaults | {"rank": 0, "world_size": 1, "horovod": False} | changes)


def test_create_loss_gives_our_loss_while_installed(losses):
    factory = library("open_clip.factory")
    original, args = factory.ClipLoss, options_of_the_training_script()
    inputs = leaves(6)
    expected = value_and_gradients(factory.create_loss(args), inputs)
    with adapter.install(), our_ops_run():
        assert type(factory.create_loss(args)) is adapter.ClipLoss
        assert_all_close(value_and_gradients(factory.create_loss(args), inputs), expected)
        assert type(factory.create_loss(options_of_the_training_script(distill=True))) is losses.DistillClipLoss
    assert factory.ClipLoss is original


def test_a_step_of_a_model(losses):
    open_clip = library("open_clip")
    torch.manual_seed(0)
    tower = {"layers": 1, "width": 16, "heads": 2}
    vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
    model = open_clip.model.CLIP(16, vision, tower | {"vocab_size": 50, "context_length": 8})
    images, texts = torch.randn(4, 3, 16, 16), torch.randint(1, 50, (4, 8))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    results = []
    for criterion in (losses.ClipLoss(), adapter.ClipLoss()):
        model.load_state_dict(before)
        model.zero_grad()
        criterion(*model(images, texts)[:3]).backward()
        gradients = [weight.grad.clone() for weight in model.parameters()]
        torch.optim.SGD(model.parameters(), 0.1).step()
        results.append([*gradients, *(weight.detach().clone() for weight in model.parameters())])
    assert_all_close(results[1], results[0], atol=1e-5, rtol=1e-4)


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match=r"module 'atk.integrations.open_clip' has no attribute 'SigLipLoss'"):
        adapter.SigLipLoss  # noqa: B018
