"""Cross-attention difference of N inputs and references: `nn.MultiheadAttention` plus the mask, and the fused op.

Each row runs the whole block forward and backward, including the input projections, with shared weights and a key
mask. The operations counted are three times those of the forward's projections and attention over valid frames.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atk
from atk.bench.accuracy import rounded_inputs
from atk.bench.measure import Case, Provider
from atk.bench.sizes import Attention
from atk.ops.backend import BACKENDS, unavailable

MODES = {"step": "forward and backward"}
SHORTEST = 0.5  # valid fraction of the shortest reference; the others are spread evenly up to the full length


def case(shape: Attention, mode: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The benchmark case of one shape."""
    n, length, d, heads = shape
    attention = nn.MultiheadAttention(d, heads, batch_first=True, device=device, dtype=dtype)
    nn.init.normal_(attention.in_proj_bias, std=0.1)
    with torch.device(device):
        frames, reference, grad = (torch.randn(n, length, d).to(dtype) for _ in range(3))
        mask = torch.arange(length) < torch.linspace(SHORTEST * length, length, n).long()[:, None]
    valid = int(mask.sum())
    precise = copy.deepcopy(attention).double()
    weights = sum(parameter.nbytes for parameter in attention.parameters())
    fractions = f"references {100 * SHORTEST:.0f} to 100 % valid"
    counts = f"{n} inputs, {length} frames, {d} channels, {heads} heads, {fractions}"
    return Case(
        title=f"cross_attention_difference, {MODES[mode]}: {counts}, {str(dtype).removeprefix('torch.')}",
        inputs=(frames, reference, mask, grad),
        truth=lambda: _step(_multihead(precise, False), precise)(
            frames.double(), reference.double(), mask, grad.double()
        ),
        providers=_providers(attention, dtype, device),
        flops=12.0 * d * (d * (n * length + valid) + length * valid),
        nbytes=6.0 * frames.nbytes + 2 * weights,  # input, reference, gradient, and three results
        dtype=dtype,
    )


def _providers(attention: nn.MultiheadAttention, dtype: torch.dtype, device: torch.device) -> list[Provider]:
    """All implementations of the block, `nn.MultiheadAttention(need_weights=False)` first."""
    tolerance = rounded_inputs(dtype, gradient=5e-2)
    blocks = {
        "nn.MultiheadAttention, need_weights=False": _multihead(attention, False),
        "nn.MultiheadAttention, default call": _multihead(attention, True),
        "torch.compile of the first row": torch.compile(_multihead(attention, False), fullgraph=True, dynamic=False),
        "SDPA": _attention(attention),
    }
    providers = [Provider(name, _step(block, attention), tolerance) for name, block in blocks.items()]
    for backend in BACKENDS["cross_attention_difference"]:
        block = atk.nn.CrossAttentionDifference.from_multihead_attention(attention, backend)
        missing = unavailable(backend, device, dtype)
        providers.append(Provider(f"atk {backend}", _step(block, block), tolerance, missing=missing))
    return providers


def _multihead(attention: nn.MultiheadAttention, need_weights: bool) -> Callable[..., Tensor]:
    """The block as a PyTorch user would write it."""

    def call(frames: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        z_sim, _ = attention(frames, reference, reference, key_padding_mask=~mask, need_weights=need_weights)
        return (1 - torch.sigmoid(z_sim)) * frames

    return call


def _attention(attention: nn.MultiheadAttention) -> Callable[..., Tensor]:
    """The block written out: keys and values in one projection, then `F.scaled_dot_product_attention`."""
    d, heads = attention.embed_dim, attention.num_heads

    def call(frames: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        q = F.linear(frames, weight[:d], bias[:d])
        k, v = F.linear(reference, weight[d:], bias[d:]).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return torch.sigmoid(-attention.out_proj(attended.transpose(1, 2).flatten(2))) * frames

    return call


def _step(block: Callable[..., Tensor], module: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    """Forward and backward: the output, and the gradients of the input, the reference, and all weights."""

    def call(frames: Tensor, reference: Tensor, mask: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        frames, reference = frames.detach().requires_grad_(), reference.detach().requires_grad_()
        out = block(frames, reference, mask)
        return out.detach(), *torch.autograd.grad(out, (frames, reference, *module.parameters()), grad)

    return call
