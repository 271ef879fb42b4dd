"""Cross-attention difference (4.11), (4.12): the public call, for queries, keys and values already projected."""

import torch
from torch import Tensor

from atk.ops import checks
from atk.ops.backend import OPS, choose
from atk.ops.cross_attention_op import dispatch

BACKENDS = OPS["cross_attention_difference"]


def cross_attention_difference(
    source: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out_weight: Tensor,
    out_bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    *,
    num_heads: int,
    backend: str = "auto",
) -> Tensor:
    """Take out of every clip what its reference holds, by a mask from cross-attention (thesis eq. 4.11, 4.12).

    `Z_sim = concat_h(softmax(q_h k_h^T / sqrt(D / H)) v_h) out_weight^T + out_bias`, over valid keys, and the result
    is `(1 - sigmoid(Z_sim)) * source = sigmoid(-Z_sim) * source`. Head h of H owns channels `h * D / H` up to
    `(h + 1) * D / H`. No backend but `"reference"` ever holds `L_a x L_ref` attention weights, in the forward or the
    backward; one exception: `"sdpa"` in float64 on a GPU, where PyTorch has no such kernel.

    Args:
        source: frame embeddings Z of the input `[N, L_a, D]`, float32, bfloat16, float16, or float64 (not `"triton"`).
        q: queries from the input `[N, L_a, D]`, same dtype and device.
        k, v: keys and values from the reference `[N, L_ref, D]`; several references are concatenated along L_ref.
        out_weight: output projection `[D, D]`, as `torch.nn.Linear` keeps it.
        out_bias: its bias `[D]`, or None.
        key_mask: boolean `[N, L_ref]`, True = valid reference frame; None = all. Holes are allowed.
        num_heads: H, which divides D.
        backend: `"auto"`, `"triton"`, `"sdpa"` or `"reference"`; see `atk.backends("cross_attention_difference")`.

    Returns:
        `[N, L_a, D]` in the dtype of the inputs. Padded keys contribute nothing and get gradient 0, whatever k and v
        hold there; a clip without a valid key (L_ref = 0 too) returns its source bit for bit, and only the source
        gets a gradient from it; NaN in a valid place propagates. Under autocast all inputs are cast to its dtype, as
        for a matrix product, and the result has that dtype.

    Raises:
        ValueError, TypeError: a shape, dtype, device or mask does not fit; the message names the argument.
        atk.BackendError: the backend asked for cannot run here.
        RuntimeError: when a second derivative is taken, except with `"reference"`.
    """
    checks.cross_attention(source, q, k, v, out_weight, out_bias, key_mask, num_heads)
    return difference(source, q, k, v, out_weight, out_bias, key_mask, num_heads, backend)


def difference(
    source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int, backend: str, *, finite_padding: bool = False,
) -> Tensor:  # fmt: skip
    """The op on checked arguments; `finite_padding`: padded k and v are known to hold ordinary numbers."""
    backend = choose(backend, source.device, source.dtype, among=BACKENDS)
    tensors = source, q, k, v, out_weight, out_bias
    if source.dtype != torch.float64 and torch.is_autocast_enabled(source.device.type):
        dtype = torch.get_autocast_dtype(source.device.type)
        tensors = tuple(None if value is None else value.to(dtype) for value in tensors)
    return dispatch(*tensors, key_mask, num_heads, backend, finite_padding)
