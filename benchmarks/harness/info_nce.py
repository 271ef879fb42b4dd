"""Symmetric InfoNCE of N clips and their captions, forward and backward: with all logits in memory, and streamed.

The operations counted are three products over all pairs, for the logits and the two gradients. Streaming computes the
logits twice, so it does a third more work.
"""

from collections.abc import Callable, Sequence
from functools import partial

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

Loss = Callable[..., Tensor]  # of audio, text, and the factors of the logits


def case(shape: Vectors, mode: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The benchmark case of one shape."""
    plain = "F.cross_entropy", _cross_entropies
    return loss_case("info_nce", (SCALE,), plain, peers.losses(device), shape, mode, dtype, device)


def loss_case(
    op: str, factors: Sequence[float], plain: tuple[str, Loss], others: Sequence[peers.Peer], shape: Vectors, mode: str,
    dtype: torch.dtype, device: torch.device,
) -> Case:  # fmt: skip
    """The case of a loss of all logits of clips and captions.

    Args:
        op: of atk.
        factors: that the loss takes after the embeddings.
        plain: name and function of what a user would write.
        others: other libraries.
        shape, mode, dtype, device: as passed to `case`.
    """
    n, d = shape
    with torch.device(device):
        audio, noise = torch.randn(n, d), torch.randn(n, d)
        vectors = (F.normalize(x, dim=-1).to(dtype) for x in (audio, audio + 3 * noise))
        inputs = *vectors, *(torch.tensor(factor) for factor in factors)
    differentiated = partial(gradients, count=len(inputs))
    losses = {name: partial(getattr(atk, op), backend=name) for name in BACKENDS[op]}
    tolerance = rounded_inputs(dtype, gradient=5e-2)
    logit_bytes = dtype.itemsize * n * n
    eager_bytes = LOGIT_COPIES * logit_bytes
    name, function = plain
    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    providers = [
        Provider(f"naive {name}", differentiated(function), tolerance, eager_bytes),
        Provider(f"torch.compile of {name}", differentiated(compiled), tolerance, logit_bytes),
    ]
    for name, loss, missing in others:
        needs_bytes = eager_bytes if name == "open_clip" else 0
        providers.append(Provider(name, differentiated(loss), tolerance, needs_bytes, missing))
    for name, loss in losses.items():
        needs_bytes = eager_bytes if name == "reference" else 0
        missing = unavailable(name, device, dtype)
        providers.append(Provider(f"atk {name}", differentiated(loss), tolerance, needs_bytes, missing))
    counts = f"{n} pairs, {d} channels, {str(dtype).removeprefix('torch.')}"
    return Case(
        title=f"{op}, {MODES[mode]}: {counts}",
        inputs=inputs,
        truth=lambda: differentiated(losses["chunked"])(*(value.double() for value in inputs)),
        providers=providers,
        flops=6.0 * n * n * d,
        nbytes=2.0 * sum(value.nbytes for value in inputs),
        dtype=dtype,
    )


def gradients(loss: Loss, count: int = 3) -> Callable[..., tuple[Tensor, ...]]:
    """A function that returns the loss and its gradients with respect to the first `count` inputs."""

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [value.detach().requires_grad_() for value in inputs[:count]]
        value = loss(*leaves, *inputs[count:])
        return value.detach(), *torch.autograd.grad(value, leaves)

    return call


def _cross_entropies(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return peers.cross_entropies(scale * audio @ text.T)
