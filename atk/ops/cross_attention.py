"""Cross-attention difference (4.11), (4.12): the public function `atk.cross_attention_difference`.

The autograd ops and kernels behind it are in `cross_attention_op`.
"""

from torch import Tensor

from atk.ops import checks
from atk.ops.backend import autocast_dtype, choose
from atk.ops.cross_attention_op import dispatch


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
    """Suppress what each clip shares with its reference, with a cross-attention mask (thesis eqs. 4.11, 4.12).

    Takes queries, keys, and values that are already projected, and computes

        Z_sim = concat_h(softmax(q_h k_h^T / sqrt(D / H)) v_h) out_weight^T + out_bias      over valid keys
        out = (1 - sigmoid(Z_sim)) * source = sigmoid(-Z_sim) * source

    Head h of H uses channels `h * D / H` to `(h + 1) * D / H`. Only `"reference"` materializes the `L_a x L_ref`
    attention weights, in the forward or the backward; the one exception is `"sdpa"` in float64 on a GPU, where PyTorch
    has no memory-efficient kernel.

    Args:
        source: frame embeddings Z of the input `[N, L_a, D]`, float32, bfloat16, float16, or float64 (not `"triton"`).
        q: queries from the input `[N, L_a, D]`, same dtype and device.
        k, v: keys and values from the reference `[N, L_ref, D]`; concatenate several references along L_ref.
        out_weight: output projection `[D, D]`, laid out as in `torch.nn.Linear`.
        out_bias: bias of the output projection `[D]`, or None.
        key_mask: boolean `[N, L_ref]`, True = valid reference frame, in any pattern; None = all valid.
        num_heads: H; must divide D.
        backend: `"auto"`, `"triton"`, `"sdpa"`, or `"reference"`; see `atk.backends("cross_attention_difference")`.

    Returns:
        `[N, L_a, D]` in the dtype of the inputs. Padded keys contribute nothing and get zero gradient, whatever values
        k and v hold there. The result for a clip without a valid key (including L_ref = 0) is its source, bit for bit,
        and only the source gets a gradient from it. NaN in a valid position propagates. Under autocast, all inputs are
        cast to the autocast dtype, as for a matrix product, and the result has that dtype.

    Raises:
        ValueError, TypeError: a shape, dtype, device, or mask is invalid; the message names the argument.
        atk.BackendError: the requested backend cannot run here.
        RuntimeError: when a second derivative is taken, except with `"reference"`.
    """
    checks.cross_attention(source, q, k, v, out_weight, out_bias, key_mask, num_heads)
    return difference(source, q, k, v, out_weight, out_bias, key_mask, num_heads, backend)


def difference(
    source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int, backend: str, *, finite_padding: bool = False,
) -> Tensor:  # fmt: skip
    """`cross_attention_difference` on checked arguments.

    `finite_padding` promises that padded positions of k and v hold finite values, which saves a pass to clear them.
    """
    dtype = autocast_dtype(source)
    backend = choose(backend, source.device, dtype, "cross_attention_difference")
    source, q, k, v, out_weight = (value.to(dtype) for value in (source, q, k, v, out_weight))
    out_bias = None if out_bias is None else out_bias.to(dtype)
    return dispatch(source, q, k, v, out_weight, out_bias, key_mask, num_heads, backend, finite_padding)
