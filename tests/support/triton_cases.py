"""What the tests of the Triton kernels share: where they run, inputs, results in float64, calls."""

import os

import pytest
import torch

from atk.kernels.sequences import Sequences, from_padded, index_dtype

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS_HERE = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter's bfloat16 products are wrong (triton 3.7.1).
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
# Half of one unit in the last place of the result, and as much for the weights of grad_audio.
GRADIENT_ERROR = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
here = pytest.mark.skipif(not RUNS_HERE, reason="no GPU: runs in the subprocess of test_cases_pass_in_the_interpreter")


def inputs(N_a, N_t, L_a, L_t, D, dtype=torch.float32, valid=0.7):
    """Random embeddings [N, L, D], and masks with holes in which the first clip and the last caption are empty.

    valid > 1: nothing is masked out.
    """
    generator = torch.Generator().manual_seed(N_a + 7 * L_a + 31 * L_t + D)
    audio, text = (torch.randn(n, length, D, generator=generator).to(dtype) for n, length in ((N_a, L_a), (N_t, L_t)))
    audio_mask, text_mask = (torch.rand(x.shape[:2], generator=generator) < valid for x in (audio, text))
    if valid <= 1:
        audio_mask[0], text_mask[-1] = False, False
    return tuple(x.to(DEVICE) for x in (audio, text, audio_mask, text_mask))


def gradient(*shape, zeros=0.0):
    """A random gradient of `sim`, a share of it exactly zero."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < zeros, 0.0, grad).to(DEVICE)


def ragged(lengths, D, dtype=torch.float32):
    """Packed sequences of the given lengths, without a mask."""
    generator = torch.Generator().manual_seed(sum(lengths) + D)
    rows = torch.randn(sum(lengths), D, generator=generator).to(dtype)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return Sequences(rows.to(DEVICE), cu_seqlens.to(DEVICE), None, max(lengths))


def padded(sequences):
    """The same sequences padded with NaN to the longest, with a mask; and where each row went [T]."""
    lengths = sequences.cu_seqlens.diff().cpu()
    mask = torch.arange(sequences.longest) < lengths[:, None]
    value = torch.full((*mask.shape, sequences.rows.shape[1]), float("nan")).to(sequences.rows)
    value[mask] = sequences.rows
    return from_padded(value, mask.to(DEVICE)), mask.flatten().nonzero().flatten()


def expected(audio, text, audio_mask, text_mask, grad=None):
    """Similarities by torch.max in float64; with `grad` the two gradients by gathering as well."""
    audio, text = (x.double().cpu() for x in (audio, text))
    audio_mask, text_mask = audio_mask.cpu(), text_mask.cpu()
    scores = torch.einsum("atd,bld->abtl", audio, text).masked_fill(~text_mask[None, :, None], -torch.inf)
    best, index = scores.max(-1)
    counts = audio_mask.sum(1).clamp(min=1)[:, None]
    sim = (best.masked_fill(~audio_mask[:, None], 0).sum(-1) / counts).masked_fill(~text_mask.any(1), 0)
    if grad is None:
        return sim
    weight = (grad.double().cpu() / counts)[..., None] * audio_mask[:, None] * text_mask.any(1)[None, :, None]
    grad_audio, grad_text = torch.zeros_like(audio), torch.zeros_like(text)
    for j in range(len(text)):
        grad_audio += weight[:, j, :, None] * text[j][index[:, j]]
        grad_text[j].index_add_(0, index[:, j].flatten(), (weight[:, j, :, None] * audio).flatten(0, 1))
    return sim, grad_audio.flatten(0, 1), grad_text.flatten(0, 1)


def forward(audio, text, pairs=False, with_index=True):
    """Similarities and winners by the kernels, into buffers that hold rubbish, plausible winners among it."""
    from atk.kernels.max_mean import max_mean_forward

    shape = (audio.number,) if pairs else (audio.number, text.number)
    sim = torch.full(shape, float("nan"), device=DEVICE)
    shape = (len(audio.rows),) if pairs else (text.number, len(audio.rows))
    dtype = index_dtype(text.longest)
    index = torch.full(shape, min(3, text.longest - 1), dtype=dtype, device=DEVICE) if with_index else None
    max_mean_forward(audio, text, sim, index, pairs)
    return sim, index


def backward(grad, audio, text, index, pairs=False, sparse=False, **options):
    """The gradients by the kernels, into buffers of NaN."""
    from atk.kernels.max_mean import max_mean_backward

    grad_audio, grad_text = (torch.full_like(x.rows, float("nan")) for x in (audio, text))
    max_mean_backward(grad, audio, text, index, grad_audio, grad_text, pairs, sparse, **options)
    return grad_audio, grad_text


def assert_close(value, wanted, relative):
    """The largest error, relative to the largest value."""
    error = (value.double().cpu() - wanted.double().cpu()).abs().max()
    assert error <= relative * max(wanted.abs().max(), 1e-30), f"error {error}, largest value {wanted.abs().max()}"


def assert_equal(values, wanted):
    """Bit for bit."""
    assert all(torch.equal(value, other) for value, other in zip(values, wanted, strict=True))
