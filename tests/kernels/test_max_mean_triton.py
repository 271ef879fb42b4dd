"""Max-mean kernels in Triton against float64, on a GPU if there is one, otherwise in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.triton_cases import (
    DEVICE,
    DTYPES,
    GRADIENT_ERROR,
    assert_close,
    assert_equal,
    backward,
    expected,
    forward,
    gradient,
    inputs,
    needs_gpu_or_interpreter,
)  # fmt: skip

from atk.kernels.sequences import from_padded

pytestmark = pytest.mark.triton

# (N_a, N_t, L_a, L_t, D): several tiles of frames; several tiles of captions; more tokens than a tile, with indices of
# one and two bytes; several tiles of channels; several parts of the clips; the smallest case.
SHAPES = [(3, 5, 70, 7, 24), (2, 18, 9, 5, 16), (2, 3, 20, 150, 33), (2, 2, 9, 300, 40), (2, 3, 9, 20, 300)]
SHAPES += [(6, 2, 5, 4, 8), (1, 1, 1, 1, 1)]


@needs_gpu_or_interpreter
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, torch.float32) for shape in SHAPES] + [(SHAPES[k], d) for d in DTYPES[1:] for k in (0, 2, 4)],
)
def test_matches_float64_for_any_padding_values(shape, dtype):
    clean = inputs(*shape, dtype, valid=0.7 if shape[0] > 1 else 1.1)
    audio, text, audio_mask, text_mask = clean
    grad = gradient(*shape[:2]) * 1e-6
    padding = torch.tensor([float("nan"), float("inf"), float("-inf")])[torch.arange(shape[-1]) % 3].to(audio)  # [D]
    audio = from_padded(torch.where(audio_mask[..., None], audio, padding), audio_mask)
    text = from_padded(torch.where(text_mask[..., None], text, padding), text_mask)
    sim, index = forward(audio, text)
    wanted_sim, wanted_audio, wanted_text = expected(*clean, grad)
    assert_close(sim, wanted_sim, 2e-6)
    assert torch.equal(forward(audio, text, with_index=False)[0], sim)
    grad_audio, grad_text = backward(grad, audio, text, index)
    # Subnormal half-precision outputs have an absolute rounding error.
    assert_close(grad_audio, wanted_audio, GRADIENT_ERROR[dtype] + 6e-8 / wanted_audio.abs().max())
    assert_close(grad_text, wanted_text, GRADIENT_ERROR[dtype] + 6e-8 / wanted_text.abs().max())
    assert (grad_audio[~audio.mask] == 0).all() and (grad_text[~text.mask] == 0).all()
    if shape[0] > 1:
        assert (sim[0] == 0).all() and (sim[:, -1] == 0).all()


@needs_gpu_or_interpreter
@pytest.mark.parametrize("L_t", [5, 150])
def test_no_masks(L_t):
    audio, text, audio_mask, text_mask = inputs(2, 3, 9, L_t, 16, valid=1.1)
    grad = gradient(2, 3)
    masked = from_padded(audio, audio_mask), from_padded(text, text_mask)
    wanted_sim, *wanted = expected(audio, text, audio_mask, text_mask, grad)
    audio, text = from_padded(audio, None), from_padded(text, None)
    sim, index = forward(audio, text)
    assert_close(sim, wanted_sim, 2e-6)
    for value, target in zip(backward(grad, audio, text, index), wanted, strict=True):
        assert_close(value, target, 2e-6)
    assert torch.equal(forward(*masked)[0], sim)


@needs_gpu_or_interpreter
@pytest.mark.parametrize("L_t", [9, 150])
def test_ties_go_to_the_first_valid_token(L_t):
    audio, text, audio_mask, text_mask = inputs(2, 3, 9, L_t, 16, valid=1.1)
    text[:] = text[:, :1].clone()
    text_mask[1, :3] = False
    audio, text = from_padded(audio, audio_mask), from_padded(text, text_mask)
    index = forward(audio, text)[1]
    _, grad_text = backward(torch.ones(2, 3, device=DEVICE), audio, text, index)
    winners = (grad_text.view(3, L_t, 16) != 0).any(2)
    assert winners.nonzero().tolist() == [[0, 0], [1, 3], [2, 0]]


@needs_gpu_or_interpreter
@pytest.mark.parametrize("L_t", [9, 150])
def test_nan_at_valid_positions_propagates_as_in_torch_max(L_t):
    audio, text, audio_mask, text_mask = inputs(4, 3, 9, L_t, 16, valid=1.1)
    audio[0, 2, 3] = float("nan")
    audio[1, 5] = float("inf")
    text[1, L_t - 3, 0] = float("nan")
    text[1, L_t - 1] = float("nan")
    wanted = expected(audio, text, audio_mask, text_mask)
    sim, _ = forward(from_padded(audio, audio_mask), from_padded(text, text_mask))
    assert torch.equal(sim.isnan().cpu(), wanted.isnan())
    assert wanted.isnan().any() and not wanted.isnan().all()


@needs_gpu_or_interpreter
@pytest.mark.parametrize("L_t", [9, 150])
def test_the_first_nan_wins(L_t):
    audio, text, *_ = inputs(2, 1, 9, L_t, 16, valid=1.1)
    text[0, [2, L_t - 1], 0] = float("nan")
    audio, text = from_padded(audio, None), from_padded(text, None)
    index = forward(audio, text)[1]
    _, grad_text = backward(torch.ones(2, 1, device=DEVICE), audio, text, index)
    assert (grad_text != 0).any(1).nonzero().flatten().tolist() == [2]


@needs_gpu_or_interpreter
@pytest.mark.parametrize("L_t", [9, 150])
def test_frames_whose_scores_are_all_minus_infinity_point_to_a_valid_token(L_t):
    audio, text, audio_mask, text_mask = inputs(2, 3, 9, L_t, 16, valid=1.1)
    text_mask[:, :2] = False
    audio[0, 4] = float("-inf")
    text[:] = text.abs()
    packed = from_padded(audio, audio_mask), from_padded(text, text_mask)
    sim, index = forward(*packed)
    assert (sim[0] == float("-inf")).all() and sim[1].isfinite().all()
    grad_audio, _ = backward(torch.ones(2, 3, device=DEVICE), *packed, index)
    torch.testing.assert_close(grad_audio[4], text[:, 2].sum(0) / 9)


@needs_gpu_or_interpreter
@pytest.mark.parametrize("L_t", [7, 256])  # with 256 tokens, every one-byte index is a valid position
def test_nan_gradients_of_empty_clips_and_captions_are_ignored(L_t):
    audio, text, audio_mask, text_mask = inputs(3, 3, 9, L_t, 16)
    audio, text = from_padded(audio, audio_mask), from_padded(text, text_mask)
    grad = gradient(3, 3)
    index = forward(audio, text)[1]
    clean = backward(grad, audio, text, index)
    grad[0] = float("nan")
    grad[:, -1] = float("nan")
    assert_equal(backward(grad, audio, text, index), clean)


@needs_gpu_or_interpreter
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pairs_with_zero_gradient_contribute_nothing_even_if_not_finite(dtype, sparse):
    audio, text, *_ = inputs(3, 9, 20, 7, 16, dtype, valid=1.1)
    grad = gradient(3, 9)
    grad[1] = 0
    grad[:, 5] = 0
    clean = [from_padded(x, None) for x in (audio, text)]
    wanted = backward(grad, *clean, forward(*clean)[1])
    audio[1, 3] = float("inf")
    text[5, 2] = float("nan")
    non_finite = [from_padded(x, None) for x in (audio, text)]
    assert_equal(backward(grad, *non_finite, forward(*non_finite)[1], sparse=sparse), wanted)


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_reproducible(dtype):
    audio, text, audio_mask, text_mask = inputs(5, 3, 20, 7, 16, dtype)
    packed = from_padded(audio, audio_mask), from_padded(text, text_mask)
    grad = gradient(5, 3)
    sim, index = forward(*packed)
    gradients = backward(grad, *packed, index)
    again, index = forward(*packed)
    assert torch.equal(sim, again)
    assert_equal(backward(grad, *packed, index), gradients)
