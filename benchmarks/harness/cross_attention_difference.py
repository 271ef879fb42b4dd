"""Cross-attention difference of N inputs and their references: `nn.MultiheadAttention` plus the mask, and the fused op.

Forward and backward of the whole block, input projections included, with one set of weights and a key mask.
Operations are those of the projections and the attention over valid frames alone, three times the forward's.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import atk
from atk.bench.measure import Case, Provider
from atk.bench.sizes import Attention
from atk.ops.backend import OPS, unavailable

KINDS = {"step": "forward and backward"}
SHORTEST = 0.5  # valid share of the shortest reference; the others lie evenly between it and the whole length


def case(shape: Attention, kind: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The table of one shape."""
    n, length, d, heads = shape
    attention = nn.MultiheadAttention(d, heads, batch_first=True, device=device, dtype=dtype)
    nn.init.normal_(attention.in_proj_bias, std=0.1)
    with torch.device(device):
        frames, reference, grad = (torch.randn(n, length, d).to(dtype) for _ in range(3))
        mask = torch.arange(length) < torch.linspace(SHORTEST * length, length, n).long()[:, None]
    valid = int(mask.sum())
    precise = copy.deepcopy(attention).double()
    weights = sum(parameter.nbytes for parameter in attention.parameters())
    shares = f"references {100 * SHORTEST:.0f} to 100 % valid"
    counts = f"{n} inputs, {length} frames, {d} channels, {heads} heads, {shares}"
    return Case(
        title=f"cross_attention_difference, {KINDS[kind]}: {counts}, {str(dtype).removeprefix('torch.')}",
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
    """Who computes the block, `nn.MultiheadAttention(need_weights=False)` first."""
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    blocks = {
        "nn.MultiheadAttention, need_weights=False": _multihead(attention, False),
        "nn.MultiheadAttention, default call": _multihead(attention, True),
        "torch.compile of the first": torch.compile(_multihead(attention, False), fullgraph=True, dynamic=False),
        "SDPA": _attention(attention),
    }
    providers = [Provider(name, _step(block, attention), tolerance) for name, block in blocks.items()]
    for backend in OPS["cross_attention_difference"]:
        block = atk.nn.CrossAttentionDifference.from_multihead_attention(attention, backend)
        missing = unavailable(backend, device, dtype)
        providers.append(Provider(f"atk {backend}", _step(block, block), tolerance, missing=missing))
    return providers


def _multihead(attention: nn.MultiheadAttention, need_weights: bool) -> Callable[..., Tensor]:
    """The block as a user of PyTorch writes it."""

    def call(frames, reference, mask):
        similar, _ = attention(frames, reference, reference, key_padding_mask=~mask, need_weights=need_weights)
        return (1 - torch.sigmoid(similar)) * frames

    return call


def _attention(attention: nn.MultiheadAttention) -> Callable[..., Tensor]:
    """The same by hand: keys and values in one projection, `F.scaled_dot_product_attention`."""
    d, heads = attention.embed_dim, attention.num_heads

    def call(frames, reference, mask):
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        q = F.linear(frames, weight[:d], bias[:d])
        k, v = F.linear(reference, weight[d:], bias[d:]).chunk(2, -1)
        q, k, v = (side.unflatten(-1, (heads, -1)).transpose(1, 2) for side in (q, k, v))
        similar = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return torch.sigmoid(-attention.out_proj(similar.transpose(1, 2).flatten(2))) * frames

    return call


def _step(block: Callable[..., Tensor], module: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    """Forward and backward: the result, and the gradients of input, reference and all weights."""

    def call(frames, reference, mask, grad):
        frames, reference = frames.detach().requires_grad_(), reference.detach().requires_grad_()
        out = block(frames, reference, mask)
        return out.detach(), *torch.autograd.grad(out, (frames, reference, *module.parameters()), grad)

    return call
