"""The autograd ops behind `atk.cross_attention_difference`: PyTorch's attention with an epilogue op, and a Triton op.

N clips, L_a frames, L_ref reference frames (keys), D channels, H heads. Z_sim is the projected attention (4.11); the
gate `sigmoid(-Z_sim)` is the mask M of (4.12). Memory saved for the backward is linear in L_a and L_ref.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atk.ops import reference
from atk.ops.custom_op import contiguous, custom_op
from atk.ops.once_differentiable import once_differentiable, raising_backward

TRIMMED_WORK = 1 << 22  # multiply-adds per clip; below this, one call per clip costs more than trimming saves
_NO_SECOND_DERIVATIVE = (
    "atk.cross_attention_difference has no second derivative: use backend='reference', which has one"
)


def dispatch(
    source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int, backend: str, finite_padding: bool,
) -> Tensor:  # fmt: skip
    """`sigmoid(-Z_sim) * source` [N, L_a, D]. With `finite_padding`, padded positions of k and v hold finite values."""
    if backend == "reference":
        return reference.cross_attention_difference(source, q, k, v, out_weight, out_bias, key_mask, num_heads)
    if backend == "triton":
        return _forward(source, q, k, v, out_weight, out_bias, key_mask, num_heads)[0]
    if not torch.compiler.is_compiling():  # a compiled graph rejects second derivatives itself
        # PyTorch's attention reads lazy zeros as if they had memory.
        q, k, v = (value.clone() if value._is_zerotensor() else value for value in (q, k, v))
        q, k, v = (once_differentiable(value, _NO_SECOND_DERIVATIVE) for value in (q, k, v))
    if k.shape[1] == 0:  # one padded key keeps every input in the graph
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        key_mask = torch.zeros(k.shape[:2], dtype=torch.bool, device=k.device)
        finite_padding = True
    absent = None
    if key_mask is not None:
        absent = ~key_mask.any(1)  # [N]: clips without a valid key
        q = zero_rows(q, absent[:, None].expand(q.shape[:2]))
        if not finite_padding:
            k, v = zero_rows(k, ~key_mask), zero_rows(v, ~key_mask)
        # A softmax over no keys is NaN: clips without keys attend to a padded one; the epilogue discards the result.
        key_mask = torch.cat([key_mask[:, :1] | absent[:, None], key_mask[:, 1:]], 1)
    return _epilogue(attend(q, k, v, key_mask, num_heads), out_weight, out_bias, source, absent)[0]


def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, num_heads: int) -> Tensor:
    """`concat_h(softmax(q_h k_h^T / sqrt(D / H)) v_h)` [N, L_a, D] by PyTorch's attention.

    The mask stays [N, 1, 1, L_ref]. On the CPU, the flash kernel takes it for every dtype and head width; on a GPU, the
    memory-efficient kernel does, and PyTorch pads it to the required alignment. For long batches on the CPU, trailing
    padding is trimmed clip by clip.
    """
    if key_mask is not None:
        lengths = _worth_trimming(q, key_mask)
        if lengths is not None:
            clips = zip(q.split(1), k.split(1), v.split(1), key_mask.split(1), lengths, strict=True)
            return torch.cat([attend(q, k[:, :n], v[:, :n], mask[:, :n], num_heads) for q, k, v, mask, n in clips])
    q, k, v = (value.unflatten(-1, (num_heads, -1)).transpose(1, 2) for value in (q, k, v))  # [N, H, L, D / H]
    mask = None if key_mask is None else key_mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def _worth_trimming(q: Tensor, key_mask: Tensor) -> list[int] | None:
    """Number of keys of each clip up to the last valid one; None if trimming saves less than a call per clip costs."""
    clips, frames, width = q.shape
    if clips == 0 or q.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    keys = key_mask.shape[1]
    lengths = (key_mask * torch.arange(1, keys + 1)).amax(1).tolist()
    saved = (clips * keys - sum(lengths)) * frames * width  # multiply-adds of q k^T
    return lengths if saved > clips * TRIMMED_WORK else None


def zero_rows(value: Tensor, where: Tensor) -> Tensor:
    """`value` `[N, L, D]` with zeros, and zero gradients, in the rows selected by the boolean `where` `[N, L]`."""
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return value.masked_fill(where[..., None], 0)
    rows = where.flatten().nonzero().squeeze(1)
    if len(rows) == 0:
        return value
    return value.flatten(0, 1).index_fill(0, rows, 0).view(value.shape)  # 4x faster than masked_fill on the CPU


@custom_op("difference_epilogue")
def _epilogue(
    attended: Tensor, out_weight: Tensor, out_bias: Tensor | None, source: Tensor, absent: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`gate * source` and the gate `sigmoid(-(attended out_weight^T + out_bias))`, both [N, L_a, D].

    absent [N] marks clips without a reference: their gate is 1 and passes no gradient.
    """
    # Negating the small weights saves a pass over the frames.
    gate = F.linear(attended.contiguous(), -out_weight, None if out_bias is None else -out_bias).sigmoid_()
    if absent is not None:
        gate.masked_fill_(absent[:, None, None], 1)
    out = torch.empty_like(gate)
    return torch.mul(gate, source, out=out), gate


@_epilogue.register_fake
def _empty_epilogue(
    attended: Tensor, out_weight: Tensor, out_bias: Tensor | None, source: Tensor, absent: Tensor | None
) -> tuple[Tensor, Tensor]:
    return source.new_empty(source.shape), source.new_empty(source.shape)


@custom_op("difference_epilogue_backward")
def _epilogue_backward(
    grad: Tensor, attended: Tensor, out_weight: Tensor, source: Tensor, gate: Tensor, absent: Tensor | None,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of attended, out_weight, out_bias (shape [0] if there is none), and source.

    With `d = grad * source * gate * (1 - gate)`, the gradient of -Z_sim, they are `-d out_weight`, `-d^T attended`,
    `-sum d`, and `grad * gate`.
    """
    d = torch.empty_like(gate)  # [N, L_a, D]
    torch.mul(grad, source, out=d)
    torch.ops.aten.sigmoid_backward.grad_input(d, gate, grad_input=d)
    if absent is not None:
        d.masked_fill_(absent[:, None, None], 0)
    rows = d.flatten(0, 1)  # [N * L_a, D]
    grad_attended = (rows @ -out_weight).view(d.shape)
    grad_weight = (rows.T @ attended.flatten(0, 1)).neg_()
    grad_bias = rows.sum(0).neg_() if has_bias else d.new_empty(0)
    return grad_attended, grad_weight, grad_bias, torch.mul(grad, gate, out=torch.empty_like(gate))


@_epilogue_backward.register_fake
def _empty_epilogue_gradients(
    grad: Tensor, attended: Tensor, out_weight: Tensor, source: Tensor, gate: Tensor, absent: Tensor | None,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    width = source.shape[-1]
    return (
        gate.new_empty(gate.shape),
        gate.new_empty(width, width),
        gate.new_empty(width if has_bias else 0),
        gate.new_empty(gate.shape),
    )


@custom_op("cross_attention_difference_forward")
def _forward(
    source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """out, gate, and attended (before the projection) [N, L_a, D]; the base-2 log-sum-exp of the logits [N, H, L_a]."""
    from atk.kernels import cross_attention

    source, q, k, v, out_weight = (value.contiguous() for value in (source, q, k, v, out_weight))
    out_bias, key_mask = contiguous(out_bias), contiguous(key_mask)
    return cross_attention.forward(source, q, k, v, out_weight, out_bias, key_mask, num_heads)


@_forward.register_fake
def _empty_outputs(
    source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    out, gate, attended = (source.new_empty(source.shape) for _ in range(3))
    lse = source.new_empty((source.shape[0], num_heads, source.shape[1]), dtype=torch.float32)
    return out, gate, attended, lse


@custom_op("cross_attention_difference_backward")
def _backward(
    grad: Tensor, source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int, gate: Tensor, attended: Tensor, lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of source, q, k, v, out_weight, and out_bias (shape [0] if there is none)."""
    from atk.kernels import cross_attention

    grad, source, q, k, v, out_weight = (value.contiguous() for value in (grad, source, q, k, v, out_weight))
    out_bias, key_mask = contiguous(out_bias), contiguous(key_mask)
    grad_source, grad_q, grad_k, grad_v, grad_weight, grad_bias = cross_attention.backward(
        grad, source, q, k, v, out_weight, out_bias, key_mask, num_heads, gate, attended, lse
    )
    if grad_bias is None:
        grad_bias = source.new_empty(0)
    return grad_source, grad_q, grad_k, grad_v, grad_weight, grad_bias


@_backward.register_fake
def _empty_gradients(
    grad: Tensor, source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int, gate: Tensor, attended: Tensor, lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_source, grad_q, grad_k, grad_v, grad_weight = (
        source.new_empty(value.shape) for value in (source, q, k, v, out_weight)
    )
    grad_bias = source.new_empty(0 if out_bias is None else len(out_bias))
    return grad_source, grad_q, grad_k, grad_v, grad_weight, grad_bias


def _save_epilogue(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    attended, out_weight, out_bias, source, absent = inputs
    _, gate = output
    ctx.has_bias = out_bias is not None
    ctx.save_for_backward(attended, out_weight, source, gate, absent)
    ctx.mark_non_differentiable(gate)


def _differentiate_epilogue(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_attended, grad_weight, grad_bias, grad_source = _epilogue_backward(grad, *ctx.saved_tensors, ctx.has_bias)
    return grad_attended, grad_weight, grad_bias if ctx.has_bias else None, grad_source, None


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.num_heads = inputs
    _, *intermediates = output
    ctx.save_for_backward(*tensors, *intermediates)
    ctx.mark_non_differentiable(*intermediates)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, gate, attended, lse = ctx.saved_tensors
    *grads, grad_bias = _backward(grad, *inputs, ctx.num_heads, gate, attended, lse)
    out_bias = inputs[5]
    return *grads, None if out_bias is None else grad_bias, None, None


_epilogue.register_autograd(_differentiate_epilogue, _save_epilogue)
_forward.register_autograd(_differentiate, _save_inputs)
_epilogue_backward.register_autograd(raising_backward(_NO_SECOND_DERIVATIVE))
_backward.register_autograd(raising_backward(_NO_SECOND_DERIVATIVE))
