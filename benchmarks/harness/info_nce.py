"""Symmetric InfoNCE of N clips and their captions, forward and backward: with all logits in memory, and streamed.

Operations are those of three products of all pairs, for the logits and the two gradients. Streaming computes the
logits twice, so it does a third more.
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
SCALE = 20.0  # of the cosines
LOGIT_COPIES = 3  # matrices of logits that eager PyTorch holds at once, at least


def case(shape: Vectors, mode: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The benchmark case of one shape."""
    n, d = shape
    with torch.device(device):
        audio, noise = torch.randn(n, d), torch.randn(n, d)
        vectors = (F.normalize(x, dim=-1).to(dtype) for x in (audio, audio + 3 * noise))
        inputs = *vectors, torch.tensor(SCALE)
    width = f"{n} pairs, {d} channels, {str(dtype).removeprefix('torch.')}"
    return Case(
        title=f"info_nce, {MODES[mode]}: {width}",
        inputs=inputs,
        truth=lambda: gradients(_atk("chunked"))(*(value.double() for value in inputs)),
        providers=_providers(n, dtype, device),
        flops=6.0 * n * n * d,
        nbytes=2.0 * sum(value.nbytes for value in inputs),
        dtype=dtype,
    )


def _providers(n: int, dtype: torch.dtype, device: torch.device) -> list[Provider]:
    """All implementations of the loss. The first is what a user would write, the baseline."""
    tolerance = rounded_inputs(dtype, gradient=5e-2)
    logits = dtype.itemsize * n * n
    eager = LOGIT_COPIES * logits
    compiled = torch.compile(_cross_entropies, fullgraph=True, dynamic=False)
    providers = [
        Provider("naive F.cross_entropy", gradients(_cross_entropies), tolerance, eager),
        Provider("torch.compile of the naive", gradients(compiled), tolerance, logits),
    ]
    for name, loss, missing in peers.losses(device):
        needs = eager if name == "open_clip" else 0
        providers.append(Provider(name, gradients(loss), tolerance, needs, missing))
    for backend in BACKENDS["info_nce"]:
        missing = unavailable(backend, device, dtype)
        needs = eager if backend == "reference" else 0
        providers.append(Provider(f"atk {backend}", gradients(_atk(backend)), tolerance, needs, missing))
    return providers


def gradients(loss: Callable[..., Tensor], count: int = 3) -> Callable[..., tuple[Tensor, ...]]:
    """Forward and backward: the loss, and its gradients with respect to the first `count` inputs."""

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [value.detach().requires_grad_() for value in inputs[:count]]
        value = loss(*leaves, *inputs[count:])
        return value.detach(), *torch.autograd.grad(value, leaves)

    return call


def _cross_entropies(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return peers.cross_entropies(scale * audio @ text.T)


def _atk(backend: str) -> Callable[..., Tensor]:
    return lambda audio, text, scale: atk.info_nce(audio, text, scale, backend=backend)
