"""Shared by the tests of the Triton kernels: where they run, inputs, float64 results, and calls."""

import os

import pytest
import torch

from atk.kernels.sequences import Sequences, from_padded, index_columns, index_dtype

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS_HERE = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter computes wrong bfloat16 products (triton 3.7.1).
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
# Half a unit in the last place for the result, and the same again for the weights of grad_audio.
GRADIENT_ERROR = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
needs_gpu_or_interpreter = pytest.mark.skipif(
    not RUNS_HERE, reason="no GPU; test_interpreter.py runs it in another process"
)

needs_compiler = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter was selected in place of its compiler"
)


def inputs(N_a, N_t, L_a, L_t, D, dtype=torch.float32, valid=0.7):
    """Random embeddings [N, L, D] and masks [N, L] with gaps. The first clip and the last caption are empty.

    With valid > 1, nothing is masked.
    """
    generator = torch.Generator().manual_seed(N_a + 7 * L_a + 31 * L_t + D)
    audio, text = (torch.randn(n, length, D, generator=generator).to(dtype) for n, length in ((N_a, L_a), (N_t, L_t)))
    audio_mask, text_mask = (torch.rand(x.shape[:2], generator=generator) < valid for x in (audio, text))
    if valid <= 1:
        audio_mask[0] = False
        text_mask[-1] = False
    return tuple(x.to(DEVICE) for x in (audio, text, audio_mask, text_mask))


def gradient(*shape, zeros=0.0):
    """A random gradient of `sim`; a fraction `zeros` of it is exactly 0."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < zeros, 0.0, grad).to(DEVICE)


def ragged(lengths, D, dtype=torch.float32):
    """Packed random sequences of the given lengths, without a mask."""
    generator = torch.Generator().manual_seed(sum(lengths) + D)
    rows = torch.randn(sum(lengths), D, generator=generator).to(dtype)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return Sequences(rows.to(DEVICE), cu_seqlens.to(DEVICE), None, max(lengths))


def padded(sequences):
    """The sequences padded with NaN to the longest, with a mask; and the padded position of each row, [T]."""
    lengths = sequences.cu_seqlens.diff().cpu()
    mask = torch.arange(sequences.longest) < lengths[:, None]
    value = torch.full((*mask.shape, sequences.rows.shape[1]), float("nan")).to(sequences.rows)
    value[mask] = sequences.rows
    return from_padded(value, mask.to(DEVICE)), mask.flatten().nonzero().flatten()


def expected(audio, text, audio_mask, text_mask, grad=None):
    """Similarities computed by torch.max in float64; with `grad`, also both gradients, computed by gathering."""
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
    """Similarities and winner indices from the kernels, written to buffers prefilled with NaN and a valid index."""
    from atk.kernels.max_mean import max_mean_forward

    sim_shape = (audio.num_sequences,) if pairs else (audio.num_sequences, text.num_sequences)
    sim = torch.full(sim_shape, float("nan"), device=DEVICE)
    columns = index_columns(len(audio.rows), audio.num_sequences, audio.longest, audio.mask is not None)
    index_shape = (columns,) if pairs else (text.num_sequences, columns)
    dtype = index_dtype(text.longest)
    index = torch.full(index_shape, min(3, text.longest - 1), dtype=dtype, device=DEVICE) if with_index else None
    max_mean_forward(audio, text, sim, index, pairs)
    return sim, index


def backward(grad, audio, text, index, pairs=False, sparse=False, **options):
    """The gradients from the kernels, written to buffers of NaN."""
    from atk.kernels.max_mean import max_mean_backward

    grad_audio, grad_text = (torch.full_like(x.rows, float("nan")) for x in (audio, text))
    max_mean_backward(grad, audio, text, index, grad_audio, grad_text, pairs, sparse, **options)
    return grad_audio, grad_text


def assert_close(value, wanted, relative):
    """Checks the largest error relative to the largest value."""
    error = (value.double().cpu() - wanted.double().cpu()).abs().max()
    assert error <= relative * max(wanted.abs().max(), 1e-30), f"error {error}, largest value {wanted.abs().max()}"


def assert_equal(values, wanted):
    """Checks bitwise equality."""
    assert all(torch.equal(value, target) for value, target in zip(values, wanted, strict=True))
