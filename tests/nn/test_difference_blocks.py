"""`atk.nn.CrossAttentionDifference` and `SubtractionDifference`: weights, gradients, padding, and errors.

Without a GPU, the Triton cases run in Triton's interpreter, started by `tests/kernels/test_interpreter.py`.
"""

import pytest
import torch
from support.cross_attention_cases import BACKENDS, inputs
from torch import nn

import atk


@pytest.mark.parametrize("bias", [False, True])
def test_weights_are_exchanged_with_multihead_attention(bias):
    torch.manual_seed(3)
    block = atk.nn.CrossAttentionDifference(12, 3, bias=bias)
    torch.manual_seed(3)
    attention = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True)
    assert [name for name, _ in block.named_parameters()] == [name for name, _ in attention.named_parameters()]
    for parameter, wanted in zip(block.parameters(), attention.parameters(), strict=True):
        assert torch.equal(parameter, wanted)  # the same initialization from the same random numbers
        nn.init.normal_(wanted)
    block.load_state_dict(attention.state_dict())
    back = atk.nn.CrossAttentionDifference.from_multihead_attention(attention).to_multihead_attention()
    assert back.batch_first and back.num_heads == 3
    frames, reference = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    mask = torch.tensor([[True, False, True, True], [True] * 4])
    for module in (attention, back):
        z_sim, _ = module(frames, reference, reference, key_padding_mask=~mask, need_weights=False)
        wanted = (1 - torch.sigmoid(z_sim)) * frames
        torch.testing.assert_close(block(frames, reference, mask), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"dropout": 0.1}, {"kdim": 5}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str
)
def test_attention_with_unsupported_options_is_rejected(options):
    with pytest.raises(ValueError, match=f"attention must have no .*got .*{next(iter(options))}"):
        atk.nn.CrossAttentionDifference.from_multihead_attention(nn.MultiheadAttention(8, 2, **options))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_module_gradients_are_correct_whatever_padding_holds(backend, poison):
    block = atk.nn.CrossAttentionDifference(12, 3, backend=backend)
    nn.init.normal_(block.in_proj_bias)
    (frames, _, reference, *_), mask = inputs()
    reference[~mask] = poison
    frames.requires_grad_(), reference.requires_grad_()
    out = block(frames, reference, mask)
    assert torch.equal(out[-1], frames[-1])
    out.square().sum().backward()
    clean = reference.detach().masked_fill(~mask[..., None], 0).double().requires_grad_()
    double_frames, attention = frames.detach().double().requires_grad_(), block.to_multihead_attention().double()
    key_padding_mask = ~(mask | ~mask.any(1)[:, None])
    z_sim, _ = attention(double_frames, clean, clean, key_padding_mask=key_padding_mask, need_weights=False)
    present = mask.any(1)[:, None, None]
    (torch.where(present, 1 - torch.sigmoid(z_sim), 1) * double_frames).square().sum().backward()
    got = [frames, reference, *block.parameters()]
    for value, want in zip(got, [double_frames, clean, *attention.parameters()], strict=True):
        expected = want.grad if want is not clean else want.grad.masked_fill(~mask[..., None], 0)
        torch.testing.assert_close(value.grad.double(), expected, rtol=1e-4, atol=1e-5)


def test_without_a_reference_the_input_is_returned():
    frames = torch.randn(2, 5, 12)
    for block in (atk.nn.CrossAttentionDifference(12, 3), atk.nn.SubtractionDifference()):
        assert block(frames) is frames
        no_frame = torch.zeros(2, 5, dtype=torch.bool)
        assert torch.equal(block(frames, torch.full_like(frames, float("nan")), no_frame), frames)
    assert torch.equal(atk.nn.CrossAttentionDifference(12, 3)(frames, frames[:, :0]), frames)


def test_subtraction_is_frame_by_frame():
    frames, reference = torch.randn(2, 5, 12), torch.randn(2, 5, 12, requires_grad=True)
    mask = torch.rand(2, 5) > 0.5
    block = atk.nn.SubtractionDifference()
    assert torch.equal(block(frames, reference), frames - reference)
    out = block(frames, reference, mask)
    assert torch.equal(out[mask], (frames - reference)[mask]) and torch.equal(out[~mask], frames[~mask])
    out.sum().backward()
    assert torch.equal(reference.grad, -mask[..., None].float().expand_as(reference))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_clips_have_in_common_is_the_rest_of_the_input(backend):
    """`sigmoid(CrossAttention(Z, Z_ref)) * Z` in float64, with gradients; 0 without a reference."""
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    block = atk.nn.CrossAttentionDifference.from_multihead_attention(attention, backend)
    frames = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(3, 7, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 7) > 0.4
    mask[0] = False
    common = block(frames, reference, mask, common=True)
    attended = attention(frames[1:], reference[1:], reference[1:], key_padding_mask=~mask[1:])[0]
    expected = attended.sigmoid() * frames[1:]
    torch.testing.assert_close(common[1:], expected)
    assert not common[0].any() and torch.equal(block(frames, None, common=True), torch.zeros_like(frames))
    weights = torch.randn_like(expected)
    inputs = (frames, reference)
    got = torch.autograd.grad((common[1:] * weights).sum(), (*inputs, *block.parameters()), retain_graph=True)
    wanted = torch.autograd.grad((expected * weights).sum(), (*inputs, *attention.parameters()))
    for value, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(value, other)
    assert torch.autograd.gradcheck(lambda *x: block(*x, mask, common=True), inputs)
    some = torch.tensor([False, True, False])
    mixed = block(frames, reference, mask, common=some)
    assert torch.equal(mixed[1], common[1]) and torch.equal(mixed[2], block(frames, reference, mask)[2])
    with pytest.raises(ValueError, match=r"common must be True, False, or boolean with shape \[3\], got torch.bool"):
        block(frames, reference, mask, common=some[:2])


@pytest.mark.parametrize("block", [atk.nn.CrossAttentionDifference(12, 3), atk.nn.SubtractionDifference()], ids=str)
@pytest.mark.parametrize(
    ("frames", "reference", "mask", "error", "message"),
    [
        ((2, 12), (2, 5, 12), None, ValueError, r"input must have shape \[N, L(_a)?, D\], got \[2, 12\]"),
        ((2, 5, 12), (2, 5), None, ValueError, r"reference must have shape \[N, L_ref, D\], got \[2, 5\]"),
        ((2, 5, 12), (3, 5, 12), None, ValueError, "reference and input must hold the same number N of clips"),
        ((2, 5, 12), (2, 5, 8), None, ValueError, "reference and input must have the same width D, got 8 and 12"),
        ((2, 5, 12), (2, 5, 12), torch.ones(2, 4).bool(), ValueError, r"reference_mask must have shape \[2, 5\]"),
        ((2, 5, 12), (2, 5, 12), torch.ones(2, 5), TypeError, "reference_mask must be a boolean tensor"),
    ],
)
def test_module_errors_name_the_argument(block, frames, reference, mask, error, message):
    with pytest.raises(error, match=message):
        block(torch.randn(frames), torch.randn(reference), mask)


def test_lengths_and_heads_must_fit():
    with pytest.raises(ValueError, match=r"reference must have the shape of input, \[2, 5, 4\], got \[2, 6, 4\]"):
        atk.nn.SubtractionDifference()(torch.randn(2, 5, 4), torch.randn(2, 6, 4))
    with pytest.raises(ValueError, match="num_heads must be a positive integer that divides D = 12, got 5"):
        atk.nn.CrossAttentionDifference(12, 5)
    with pytest.raises(ValueError, match="input and in_proj_weight must have the same width D, got 4 and 12"):
        atk.nn.CrossAttentionDifference(12, 3)(torch.randn(2, 5, 4))
