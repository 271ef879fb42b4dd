"""Max-mean kernels in Triton against float64: on a GPU where there is one, else in Triton's interpreter.

The interpreter must be chosen before triton is imported, and other tests need the compiler, so without a GPU the cases
run in a subprocess, with those of the public op, and one test here reports them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS_HERE = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter's bfloat16 products are wrong (triton 3.7.1).
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
# Half of one unit in the last place of the result, and as much for the weights of grad_audio.
GRADIENT_ERROR = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
# N_a, N_t, L_a, L_t, D: several tiles of frames; several tiles of captions; more tokens than a tile, with indices of
# one and two bytes; several tiles of channels, even and odd; several runs of clips, the last one shorter; the smallest.
SHAPES = [(3, 5, 70, 7, 24), (3, 40, 9, 5, 16), (2, 2, 20, 150, 33), (2, 2, 9, 300, 40), (2, 3, 9, 20, 300)]
SHAPES += [(20, 3, 5, 4, 8), (1, 1, 1, 1, 1)]
here = pytest.mark.skipif(not RUNS_HERE, reason="no GPU: runs in the subprocess of test_cases_pass_in_the_interpreter")


@pytest.mark.skipif(RUNS_HERE, reason="the cases run in this process")
def test_cases_pass_in_the_interpreter():
    files = [__file__, str(Path(__file__).with_name("test_max_mean.py"))]
    command = [sys.executable, "-m", "pytest", "-k", "triton", "-p", "no:cacheprovider", "-p", "no:warnings", *files]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    passed = re.search(r"(\d+) passed", run.stdout)
    assert run.returncode == 0 and passed and int(passed[1]) >= 40, f"\n{run.stdout}\n{run.stderr}"


def forward(audio, text, audio_mask, text_mask, with_index=True):
    """Similarities and winners by the kernels, into buffers that hold rubbish, plausible winners among it."""
    from atk.kernels.max_mean import max_mean_forward

    sim = torch.full((len(audio), len(text)), float("nan"), device=DEVICE)
    dtype = torch.uint8 if text.shape[1] <= 256 else torch.int16
    shape = (len(audio), len(text), audio.shape[1])
    index = torch.full(shape, text.shape[1] - 1, dtype=dtype, device=DEVICE) if with_index else None
    max_mean_forward(audio, text, audio_mask, text_mask, sim, index)
    return sim, index


def backward(grad, audio, text, audio_mask, text_mask, index):
    from atk.kernels.max_mean import max_mean_backward

    grad_audio, grad_text = torch.full_like(audio, float("nan")), torch.full_like(text, float("nan"))
    max_mean_backward(grad, audio, text, audio_mask, text_mask, index, grad_audio, grad_text)
    return grad_audio, grad_text


def inputs(N_a, N_t, L_a, L_t, D, dtype=torch.float32, valid=0.7):
    """Random embeddings, and masks with holes in which the first clip and the last caption are empty."""
    generator = torch.Generator().manual_seed(N_a + 7 * L_a + 31 * L_t + D)
    audio, text = (torch.randn(n, length, D, generator=generator).to(dtype) for n, length in ((N_a, L_a), (N_t, L_t)))
    audio_mask, text_mask = (torch.rand(x.shape[:2], generator=generator) < valid for x in (audio, text))
    if N_a > 1:
        audio_mask[0], text_mask[-1] = False, False
    return tuple(x.to(DEVICE) for x in (audio, text, audio_mask, text_mask))


def expected(audio, text, audio_mask, text_mask, grad=None):
    """Similarities and winners by torch.max in float64; with `grad` the two gradients by gathering as well."""
    audio, text = (x.double().cpu() for x in (audio, text))
    audio_mask, text_mask = audio_mask.cpu(), text_mask.cpu()
    scores = torch.einsum("atd,bld->abtl", audio, text).masked_fill(~text_mask[None, :, None], -torch.inf)
    best, index = scores.max(-1)
    counts = audio_mask.sum(1).clamp(min=1)[:, None]
    sim = (best.masked_fill(~audio_mask[:, None], 0).sum(-1) / counts).masked_fill(~text_mask.any(1), 0)
    if grad is None:
        return sim, index
    weight = (grad.double().cpu() / counts)[..., None] * audio_mask[:, None] * text_mask.any(1)[None, :, None]
    grad_audio, grad_text = torch.zeros_like(audio), torch.zeros_like(text)
    for j in range(len(text)):
        grad_audio += weight[:, j, :, None] * text[j][index[:, j]]
        grad_text[j].index_add_(0, index[:, j].flatten(), (weight[:, j, :, None] * audio).flatten(0, 1))
    return sim, index, grad_audio, grad_text


def assert_winners(index, wanted, audio_mask, text_mask):
    counts = (audio_mask[:, None] & text_mask.any(1)[None, :, None]).cpu()
    assert torch.equal(index.cpu().long()[counts], wanted[counts])


def assert_close(value, wanted, relative):
    """The largest error, relative to the largest value."""
    error = (value.double().cpu() - wanted).abs().max()
    assert error <= relative * max(wanted.abs().max(), 1e-30), f"error {error}, largest value {wanted.abs().max()}"


@here
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64_whatever_the_padding_holds(shape, dtype):
    clean = inputs(*shape, dtype, valid=0.7 if shape[0] > 1 else 1.1)
    audio, text, audio_mask, text_mask = clean
    grad = torch.randn(len(audio), len(text), generator=torch.Generator().manual_seed(0)).to(DEVICE) * 1e-6
    padding = torch.tensor([float("nan"), float("inf"), float("-inf")])[torch.arange(shape[-1]) % 3].to(audio)  # [D]
    audio, text = torch.where(audio_mask[..., None], audio, padding), torch.where(text_mask[..., None], text, padding)
    dirty = (audio, text, audio_mask, text_mask)
    sim, index = forward(*dirty)
    wanted_sim, wanted_index, wanted_audio, wanted_text = expected(*clean, grad)
    assert_close(sim, wanted_sim, 2e-6)
    assert_winners(index, wanted_index, audio_mask, text_mask)
    grad_audio, grad_text = backward(grad, *dirty, index)
    # Half-precision outputs below the smallest normal number round in absolute terms.
    assert_close(grad_audio, wanted_audio, GRADIENT_ERROR[dtype] + 6e-8 / wanted_audio.abs().max())
    assert_close(grad_text, wanted_text, GRADIENT_ERROR[dtype] + 6e-8 / wanted_text.abs().max())
    assert (grad_audio[~audio_mask] == 0).all() and (grad_text[~text_mask] == 0).all()
    if shape[0] > 1:
        assert (sim[0] == 0).all() and (sim[:, -1] == 0).all() and (grad_text[-1] == 0).all()


@here
@pytest.mark.parametrize("L_t", [5, 150])
def test_no_masks_and_no_index(L_t):
    audio, text, audio_mask, text_mask = inputs(2, 3, 9, L_t, 16, valid=1.1)
    audio_mask[:], text_mask[:] = True, True
    grad = torch.ones(2, 3, device=DEVICE)
    wanted_sim, wanted_index, wanted_audio, wanted_text = expected(audio, text, audio_mask, text_mask, grad)
    sim, index = forward(audio, text, None, None)
    assert_close(sim, wanted_sim, 2e-6)
    assert_winners(index, wanted_index, audio_mask, text_mask)
    assert torch.equal(forward(audio, text, None, None, with_index=False)[0], sim)
    grad_audio, grad_text = backward(grad, audio, text, None, None, index)
    assert_close(grad_audio, wanted_audio, 2e-6)
    assert_close(grad_text, wanted_text, 2e-6)


@here
@pytest.mark.parametrize("L_t", [9, 150])
def test_ties_go_to_the_first_valid_token(L_t):
    audio, text, audio_mask, text_mask = inputs(2, 3, 9, L_t, 16)
    text[:] = text[:, :1].clone()
    text_mask[:], text_mask[1, :3] = True, False
    index = forward(audio, text, audio_mask, text_mask)[1].cpu()
    for j, first in enumerate((0, 3, 0)):
        assert (index[:, j][audio_mask.cpu()] == first).all()


@here
@pytest.mark.parametrize("L_t", [9, 150])
def test_nan_in_valid_positions_propagates_as_in_torch_max(L_t):
    audio, text, audio_mask, text_mask = inputs(4, 3, 9, L_t, 16)
    audio_mask[:], text_mask[:] = True, True
    audio[0, 2, 3] = float("nan")
    audio[1, 5] = float("inf")
    text[1, L_t - 3, 0] = float("nan")
    text[1, L_t - 1] = float("nan")
    sim, index = forward(audio, text, audio_mask, text_mask)
    wanted_sim, wanted_index = expected(audio, text, audio_mask, text_mask)
    assert torch.equal(sim.isnan().cpu(), wanted_sim.isnan())
    assert wanted_sim.isnan().any() and not wanted_sim.isnan().all()
    assert_winners(index, wanted_index, audio_mask, text_mask)


@here
@pytest.mark.parametrize("L_t", [9, 150])
def test_frames_whose_scores_are_all_minus_infinity_point_to_a_valid_token(L_t):
    audio, text, audio_mask, text_mask = inputs(2, 3, 9, L_t, 16)
    audio_mask[:], text_mask[:] = True, True
    text_mask[:, :2] = False
    audio[0, 4], text[:] = float("-inf"), text.abs()
    sim, index = forward(audio, text, audio_mask, text_mask)
    assert (sim[0] == float("-inf")).all() and sim[1].isfinite().all()
    assert (index[0, :, 4] == 2).all()


@here
@pytest.mark.parametrize("L_t", [7, 256])  # with 256 every index of one byte is a position
def test_gradients_of_empty_clips_and_captions_do_not_count_even_if_nan(L_t):
    audio, text, audio_mask, text_mask = inputs(3, 5, 20, L_t, 16)
    grad = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    index = forward(audio, text, audio_mask, text_mask)[1]
    clean = backward(grad, audio, text, audio_mask, text_mask, index)
    grad[0], grad[:, -1] = float("nan"), float("nan")
    for value, wanted in zip(backward(grad, audio, text, audio_mask, text_mask, index), clean, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)  # the scale of the weights may differ


@here
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_repeat_bit_for_bit(dtype):
    data = inputs(5, 3, 20, 7, 16, dtype)
    grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    sim, index = forward(*data)
    gradients = backward(grad, *data, index)
    again, index = forward(*data)
    assert torch.equal(sim, again)
    assert all(map(torch.equal, gradients, backward(grad, *data, index)))
