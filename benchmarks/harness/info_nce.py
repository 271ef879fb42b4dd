"""Symmetric InfoNCE of N clips and their captions, forward and backward: all logits held, and streamed.

Operations are those of three products of all pairs, what the logits and the two gradients need; streaming computes the
logits twice, so it spends a third more.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import atk
from atk.bench import peers
from atk.bench.measure import Case, Provider
from atk.bench.sizes import Vectors
from atk.ops.backend import OPS, unavailable

KINDS = {"step": "forward and backward"}
SCALE = 20.0  # of the cosines
HELD = 3  # matrices of logits that eager PyTorch has at once, at least


def case(shape: Vectors, kind: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The table of one shape."""
    n, d = shape
    with torch.device(device):
        audio, noise = torch.randn(n, d), torch.randn(n, d)
        inputs = *(F.normalize(side, dim=-1).to(dtype) for side in (audio, audio + 3 * noise)), torch.tensor(SCALE)
    width = f"{n} pairs, {d} channels, {str(dtype).removeprefix('torch.')}"
    return Case(
        title=f"info_nce, {KINDS[kind]}: {width}",
        inputs=inputs,
        truth=lambda: gradients(_atk("chunked"))(*(value.double() for value in inputs)),
        providers=_providers(n, dtype, device),
        flops=6.0 * n * n * d,
        nbytes=2.0 * sum(value.nbytes for value in inputs),
        dtype=dtype,
    )


def _providers(n: int, dtype: torch.dtype, device: torch.device) -> list[Provider]:
    """Who computes the loss, the one that a user writes first."""
    tolerance, logits = (1e-4 if dtype == torch.float32 else 5e-2), dtype.itemsize * n * n
    held = HELD * logits
    compiled = torch.compile(_cross_entropies, fullgraph=True, dynamic=False)
    found = [
        Provider("naive F.cross_entropy", gradients(_cross_entropies), tolerance, held),
        Provider("torch.compile of the naive", gradients(compiled), tolerance, logits),
    ]
    for name, loss, missing in peers.losses(device):
        found.append(Provider(name, gradients(loss), tolerance, held if name == "open_clip" else 0, missing))
    for backend in OPS["info_nce"]:
        missing, needs = unavailable(backend, device, dtype), held if backend == "reference" else 0
        found.append(Provider(f"atk {backend}", gradients(_atk(backend)), tolerance, needs, missing))
    return found


def gradients(loss: Callable[..., Tensor], leaves: int = 3) -> Callable[..., tuple[Tensor, ...]]:
    """Forward and backward: the loss, and its gradients to the first `leaves` inputs."""

    def call(*inputs):
        wanted = [value.detach().requires_grad_() for value in inputs[:leaves]]
        value = loss(*wanted, *inputs[leaves:])
        return value.detach(), *torch.autograd.grad(value, wanted)

    return call


def _cross_entropies(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return peers.cross_entropies(scale * audio @ text.T)


def _atk(backend: str) -> Callable[..., Tensor]:
    return lambda *sides: atk.info_nce(*sides, backend=backend)
