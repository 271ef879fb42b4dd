"""Symmetric InfoNCE of N clips and their captions, forward and backward: with all logits in memory, and streamed.

The operations counted are three products over all pairs, for the logits and the two gradients. Streaming computes the
logits twice, so it does a third more work.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import atk
from atk.bench import peers
from atk.bench.accuracy import rounded_inputs
from atk.bench.measure import Case, Provider
from atk.bench.sizes import Vectors
from atk.ops.backend import BACKENDS, unavailable

MODES = {"step": "forward and backward"}
SCALE = 20.0  # logit scale
LOGIT_COPIES = 3  # least number of logit matrices that eager PyTorch holds at once


def case(shape: Vectors, mode: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The benchmark case of one shape."""
    n, d = shape
    with torch.device(device):
        audio, noise = torch.randn(n, d), torch.randn(n, d)
        vectors = (F.normalize(x, dim=-1).to(dtype) for x in (audio, audio + 3 * noise))
        inputs = *vectors, torch.tensor(SCALE)
    counts = f"{n} pairs, {d} channels, {str(dtype).removeprefix('torch.')}"
    return Case(
        title=f"info_nce, {MODES[mode]}: {counts}",
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
    compiled = torch.compile(_cross_entropies, fullgraph=True, dynamic=False)
    providers = [
        Provider("naive F.cross_entropy", gradients(_cross_entropies), tolerance, eager_bytes),
        Provider("torch.compile of F.cross_entropy", gradients(compiled), tolerance, logit_bytes),
    ]
    for name, loss, missing in peers.losses(device):
        needs_bytes = eager_bytes if name == "open_clip" else 0
        providers.append(Provider(name, gradients(loss), tolerance, needs_bytes, missing))
    for backend in BACKENDS["info_nce"]:
        missing = unavailable(backend, device, dtype)
        needs_bytes = eager_bytes if backend == "reference" else 0
        providers.append(Provider(f"atk {backend}", gradients(_atk(backend)), tolerance, needs_bytes, missing))
    return providers


def gradients(loss: Callable[..., Tensor], count: int = 3) -> Callable[..., tuple[Tensor, ...]]:
    """A function that returns the loss and its gradients with respect to the first `count` inputs."""

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [value.detach().requires_grad_() for value in inputs[:count]]
        value = loss(*leaves, *inputs[count:])
        return value.detach(), *torch.autograd.grad(value, leaves)

    return call


def _cross_entropies(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return peers.cross_entropies(scale * audio @ text.T)


def _atk(backend: str) -> Callable[..., Tensor]:
    return lambda audio, text, scale: atk.info_nce(audio, text, scale, backend=backend)
