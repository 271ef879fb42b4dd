"""`atk.nn.SigmoidLoss`, and `atk.nn.AlignedContrastiveLoss` with the sigmoid loss."""

import math

import pytest
import torch
import torch.nn.functional as F

import atk


def test_modules_learn_scale_and_bias_from_those_of_siglip():
    criterion, fixed = atk.nn.SigmoidLoss(), atk.nn.SigmoidLoss(0.2, -3.0, learnable=False)
    assert criterion.logit_scale.item() == pytest.approx(10) and criterion.logit_bias.item() == -10
    assert {name for name, _ in criterion.named_parameters()} == {"log_logit_scale", "logit_bias"}
    assert not list(fixed.parameters()) and set(fixed.state_dict()) == {"log_logit_scale", "logit_bias"}
    vectors = torch.randn(4, 8), torch.randn(4, 8)
    criterion(*vectors).backward()
    assert criterion.log_logit_scale.grad.abs() > 0 and criterion.logit_bias.grad.abs() > 0
    cosines = F.normalize(vectors[0], dim=-1), F.normalize(vectors[1], dim=-1)
    torch.testing.assert_close(fixed(*vectors), atk.sigmoid_loss(*cosines, 5.0, -3.0))
    with torch.no_grad():
        criterion.log_logit_scale.fill_(math.log(117))  # what SigLIP has learned; InfoNCE's stays below 100
    assert criterion.logit_scale.item() == pytest.approx(117)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_aligned_module_applies_the_sigmoid_loss_to_both_similarities(backend):
    inputs = *torch.randn(2, 4, 8), torch.randn(4, 6, 8), torch.randn(4, 3, 8)
    criterion = atk.nn.AlignedContrastiveLoss(0.1, True, loss="sigmoid", bias=-4.0, aligned_weight=2.0, backend=backend)
    unit_inputs = [F.normalize(value, dim=-1) for value in inputs]
    wanted_global = atk.sigmoid_loss(*unit_inputs[:2], 10.0, -4.0)
    wanted_aligned = atk.aligned_sigmoid_loss(*unit_inputs[2:], 10.0, -4.0)
    terms = criterion.terms(*inputs)
    torch.testing.assert_close(terms, {"global": wanted_global, "aligned": wanted_aligned})
    loss = criterion(*inputs)
    torch.testing.assert_close(loss, wanted_global + 2 * wanted_aligned)
    loss.backward()
    assert criterion.log_logit_scale.grad.abs() > 0 and criterion.logit_bias.grad.abs() > 0
    assert set(atk.nn.AlignedContrastiveLoss().state_dict()) == {"log_logit_scale"}


def test_the_modules_reject_what_the_loss_does_not_have():
    with pytest.raises(ValueError, match="loss must be one of 'info_nce', 'sigmoid', got 'softmax'"):
        atk.nn.AlignedContrastiveLoss(loss="softmax")
    with pytest.raises(ValueError, match=r"reduction must be 'sum' for the sigmoid loss, .* got 'mean'"):
        atk.nn.AlignedContrastiveLoss(loss="sigmoid", reduction="mean")
    with pytest.raises(ValueError, match="temperature must be above 0"):
        atk.nn.SigmoidLoss(0.0)
    with pytest.raises(TypeError, match=r"audio must be a torch\.Tensor"):
        atk.nn.SigmoidLoss()(None, torch.randn(3, 4))


@pytest.mark.slow
def test_the_modules_compile_into_one_graph():
    inputs = *torch.randn(2, 4, 8), torch.randn(4, 6, 8), torch.randn(4, 3, 8)
    torch.compiler.reset()
    aligned = atk.nn.AlignedContrastiveLoss(learnable=True, loss="sigmoid", skip_below=0.01, backend="reference")
    for criterion, values in ((atk.nn.SigmoidLoss(), inputs[:2]), (aligned, inputs)):
        compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*values), criterion(*values))
