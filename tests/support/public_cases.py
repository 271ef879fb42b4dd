"""Shared by the tests of max-mean similarity: the available backends, ragged inputs, and the definition as loops.

Cases of the Triton backend create their tensors on the GPU if there is one; see `conftest.py`.
"""

import itertools

import pytest
import torch

from atk.ops.backend import unavailable

TRITON_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            unavailable(name, TRITON_DEVICE if name == "triton" else torch.device("cpu"), torch.float32) is not None,
            reason=f"{name} cannot run here",
        ),
    )
    for name in ("reference", "chunked", "cpp", "triton")
]
no_bf16 = "the interpreter computes wrong bfloat16 products (triton 3.7.1)"


def loop_similarity(audio, text, audio_mask, text_mask):
    """Equation (3.6) as Python loops in float64, independent of the einsum."""
    sim = torch.zeros(len(audio), len(text), dtype=torch.float64)
    for i, j in itertools.product(range(len(audio)), range(len(text))):
        frames, tokens = audio[i][audio_mask[i]].double(), text[j][text_mask[j]].double()
        if len(frames) and len(tokens):
            sim[i, j] = sum(max(float(t @ w) for w in tokens) for t in frames) / len(frames)
    return sim


def ragged(clips=4, captions=5, frames=9, tokens=7, width=6, dtype=torch.float32):
    """Random embeddings and masks with gaps; clip 1 and caption 2 are empty."""
    audio = torch.randn(clips, frames, width)
    text = torch.randn(captions, tokens, width)
    audio_mask = torch.rand(clips, frames) > 0.4
    text_mask = torch.rand(captions, tokens) > 0.4
    audio_mask[1:2] = False
    text_mask[2:3] = False
    return audio.to(dtype), text.to(dtype), audio_mask, text_mask


def gradients(function, *values):
    """The output of `function` and the gradients of its arguments, for a fixed weighted sum of the output."""
    leaves = [value.detach().clone().requires_grad_() for value in values]
    out = function(*leaves)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)


cpp_runs = pytest.mark.skipif(
    unavailable("cpp", torch.device("cpu"), torch.float32) is not None, reason="cpp cannot run here"
)
