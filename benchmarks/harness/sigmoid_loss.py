"""SigLIP's sigmoid loss of N clips and their captions, forward and backward: with all logits in memory, and streamed.

The operations counted are three products over all pairs, for the logits and the two gradients. Streaming computes the
logits twice, so it does a third more work.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import atk
from atk.bench.accuracy import rounded_inputs
from atk.bench.info_nce import LOGIT_COPIES
from atk.bench.info_nce import gradients as gradients_of_first
from atk.bench.measure import Case, Provider
from atk.bench.sizes import Vectors
from atk.ops.backend import BACKENDS, unavailable

MODES = {"step": "forward and backward"}
SCALE, BIAS = 10.0, -10.0  # with which SigLIP starts
gradients = partial(gradients_of_first, count=4)  # also those of the scale and the bias


def case(shape: Vectors, mode: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The benchmark case of one shape."""
    n, d = shape
    with torch.device(device):
        audio, noise = torch.randn(n, d), torch.randn(n, d)
        vectors = (F.normalize(x, dim=-1).to(dtype) for x in (audio, audio + 3 * noise))
        inputs = *vectors, torch.tensor(SCALE), torch.tensor(BIAS)
    width = f"{n} pairs, {d} channels, {str(dtype).removeprefix('torch.')}"
    return Case(
        title=f"sigmoid_loss, {MODES[mode]}: {width}",
        inputs=inputs,
        truth=lambda: gradients(_atk("chunked"))(*(value.double() for value in inputs)),
        providers=_providers(n, dtype, device),
        flops=6.0 * n * n * d,
        nbytes=2.0 * sum(value.nbytes for value in inputs),
        dtype=dtype,
    )


def _providers(n: int, dtype: torch.dtype, device: torch.device) -> list[Provider]:
    """All implementations of the loss; the first, the baseline, is what a user would write."""
    tolerance = rounded_inputs(dtype, gradient=5e-2)
    logit_bytes = dtype.itemsize * n * n
    eager_bytes = LOGIT_COPIES * logit_bytes
    compiled = torch.compile(_logsigmoid, fullgraph=True, dynamic=False)
    providers = [
        Provider("naive F.logsigmoid", gradients(_logsigmoid), tolerance, eager_bytes),
        Provider("torch.compile of F.logsigmoid", gradients(compiled), tolerance, logit_bytes),
    ]
    for backend in BACKENDS["sigmoid_loss"]:
        missing = unavailable(backend, device, dtype)
        needs_bytes = eager_bytes if backend == "reference" else 0
        providers.append(Provider(f"atk {backend}", gradients(_atk(backend)), tolerance, needs_bytes, missing))
    return providers


def _logsigmoid(audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss as in SigLIP's pseudocode."""
    logits = scale * audio @ text.T + bias
    labels = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def _atk(backend: str) -> Callable[..., Tensor]:
    return lambda audio, text, scale, bias: atk.sigmoid_loss(audio, text, scale, bias, backend=backend)
