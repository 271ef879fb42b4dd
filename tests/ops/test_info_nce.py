"""`atk.info_nce` and `atk.aligned_info_nce`: definitions, gradients, and errors; and the losses of `atk.nn`."""

import math

import pytest
import torch
import torch.nn.functional as F

import atk
from atk.ops import info_nce as info_nce_module


def test_info_nce_is_the_sum_of_two_cross_entropies():
    audio, text = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    logits, target = 7 * audio @ text.T, torch.arange(5)
    wanted = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    torch.testing.assert_close(atk.info_nce(audio, text, 7.0), wanted)
    torch.testing.assert_close(atk.info_nce(audio, text, 7.0, reduction="mean"), wanted / 2)


def test_aligned_info_nce_is_info_nce_over_the_similarity():
    audio, text = torch.randn(4, 6, 8), torch.randn(4, 3, 8)
    logits, target = 5 * atk.max_mean_similarity(audio, text), torch.arange(4)
    wanted = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    torch.testing.assert_close(atk.aligned_info_nce(audio, text, 5.0), wanted)


@pytest.mark.parametrize("aligned", [False, True])
def test_gradcheck_with_logit_scale(aligned):
    shape = (4, 3, 5) if aligned else (4, 5)
    audio, text = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    function = atk.aligned_info_nce if aligned else atk.info_nce
    assert torch.autograd.gradcheck(lambda a, t, s: function(a, t, s, backend="reference"), (audio, text, scale))


def test_large_scales_and_half_precision_stay_finite():
    audio = F.normalize(torch.randn(16, 32), dim=-1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loss = atk.info_nce(audio.to(dtype), -audio.to(dtype), 100.0)
        assert loss.dtype == torch.float32 and torch.isfinite(loss) and loss > 100


def test_the_loss_of_one_pair_is_zero():
    assert atk.info_nce(torch.randn(1, 4), torch.randn(1, 4), 10.0).item() == 0


def test_fixed_and_learnable_temperature():
    fixed, learnable = atk.nn.InfoNCELoss(0.2), atk.nn.InfoNCELoss(0.2, learnable=True)
    assert not list(fixed.parameters()) and fixed.logit_scale.item() == pytest.approx(5)
    audio, text = torch.randn(4, 8), torch.randn(4, 8)
    learnable(audio, text).backward()
    assert learnable.log_logit_scale.grad.abs() > 0
    with torch.no_grad():
        learnable.log_logit_scale.fill_(math.log(1e6))
    assert learnable.logit_scale.item() == pytest.approx(100)
    learnable.log_logit_scale.grad = None
    learnable(audio, text).backward()
    assert learnable.log_logit_scale.grad.abs() > 0  # it can decrease again


def test_aligned_contrastive_loss_is_the_weighted_sum():
    audio, text = torch.randn(4, 8), torch.randn(4, 8)
    frames, tokens = torch.randn(4, 6, 8), torch.randn(4, 3, 8)
    inputs = audio, text, frames, tokens
    unit = [F.normalize(value, dim=-1) for value in inputs]
    wanted_global = atk.info_nce(unit[0], unit[1], 5.0)
    wanted_aligned = atk.aligned_info_nce(unit[2], unit[3], 5.0)
    terms = atk.nn.AlignedContrastiveLoss().terms(*inputs)
    torch.testing.assert_close(terms["global"], wanted_global)
    torch.testing.assert_close(terms["aligned"], wanted_aligned)
    loss = atk.nn.AlignedContrastiveLoss(global_weight=2, aligned_weight=3)
    torch.testing.assert_close(loss(*inputs), 2 * wanted_global + 3 * wanted_aligned)
    assert list(atk.nn.AlignedContrastiveLoss(aligned_weight=0).terms(*inputs)) == ["global"]


@pytest.mark.parametrize("backend", ["auto", "reference", "cpp"])
def test_the_modules_use_the_fast_path_unless_a_backend_is_given(monkeypatch, backend):
    used = []
    dispatch = info_nce_module.dispatch
    monkeypatch.setattr(info_nce_module, "dispatch", lambda *args: used.append(args[-1]) or dispatch(*args))
    vectors = torch.randn(3, 8), torch.randn(3, 8)
    atk.nn.AlignedContrastiveLoss(backend=backend, aligned_weight=0).terms(*vectors, None, None)
    assert used == ["reference" if backend == "reference" else "chunked"]
    if backend != "cpp":
        atk.nn.InfoNCELoss(backend=backend)(*vectors)
        assert used[1:] == used[:1]


def loss_with_positive(positive, clips=3, **options):
    return atk.info_nce(torch.randn(clips, 4), torch.randn(5, 4), 1.0, positive=positive, **options)


def test_wrong_types_are_rejected():
    with pytest.raises(TypeError, match=r"positive must be an int64 tensor, got torch\.int32"):
        loss_with_positive(torch.tensor([0, 1, 2]).int())
    with pytest.raises(TypeError, match="logit_scale must be a number or a real tensor of one element, got str"):
        atk.info_nce(torch.randn(3, 4), torch.randn(3, 4), "5")


def test_the_modules_name_their_own_arguments():
    vectors, frames, ids = torch.randn(3, 4), torch.randn(3, 5, 4), torch.ones(3, 5).long()
    criterion = atk.nn.AlignedContrastiveLoss()
    with pytest.raises(TypeError, match=r"audio must be a torch.Tensor of shape \[N, D\], got NoneType"):
        atk.nn.InfoNCELoss()(None, vectors)
    with pytest.raises(TypeError, match=r"frames must be a torch.Tensor of shape \[N, L_a, D\], got NoneType"):
        criterion(vectors, vectors)
    with pytest.raises(ValueError, match=r"tokens must have shape \[N, L_t, D\], got \[3, 4\]"):
        criterion(vectors, vectors, frames, vectors)
    with pytest.raises(TypeError, match="token_mask must be a boolean tensor"):
        criterion(vectors, vectors, frames, frames, None, ids)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: atk.info_nce(torch.randn(3, 4), torch.randn(2, 4), 1.0), "same number N of pairs, got 3 and 2"),
        (lambda: atk.info_nce(torch.randn(0, 4), torch.randn(0, 4), 1.0), "got 0 and 0"),
        (lambda: atk.info_nce(torch.randn(3, 4), torch.randn(3, 4), 1.0, reduction="none"), "reduction must be one of"),
        (lambda: atk.info_nce(torch.randn(3, 4), torch.randn(3, 4), 1.0, backend="cpp"), "backend must be one of"),
        (
            lambda: atk.info_nce(torch.randn(3, 4), torch.randn(3, 4), torch.ones(3)),
            r"logit_scale must be .*got .*\[3\]",
        ),
        (
            lambda: loss_with_positive(torch.tensor([0, 5, 1])),
            "positive must lie within the 5 rows of text, got 0 to 5",
        ),
        (
            lambda: loss_with_positive(torch.tensor([0, -1, 1])),
            "positive must lie within the 5 rows of text, got -1 to 1",
        ),
        (lambda: loss_with_positive(torch.zeros(3, device="meta").long()), "positive must be on the device of audio"),
        (lambda: loss_with_positive(torch.tensor([0, 1])), r"positive must have shape \[3\].*got \[2\]"),
        (lambda: loss_with_positive(torch.zeros(0).long(), 0), "audio must hold at least one clip, got 0"),
        (lambda: loss_with_positive(torch.tensor([0, 1, 2]), reduction="none"), "reduction must be one of"),
        (lambda: atk.pairwise_logsumexp(torch.randn(3, 4), torch.randn(3, 5), 1.0), "same width D, got 5 and 4"),
        (lambda: atk.pairwise_logsumexp(torch.randn(3, 4), torch.randn(3, 4), 1.0, backend="sdpa"), "backend must be"),
        (lambda: atk.aligned_info_nce(torch.randn(3, 2, 4), torch.randn(2, 2, 4), 1.0), "got 3 and 2"),
        (lambda: atk.nn.InfoNCELoss(0.0), "temperature must be above 0"),
        (lambda: atk.nn.AlignedContrastiveLoss(global_weight=0, aligned_weight=0), "not both 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
