"""The cross-attention difference (4.11)-(4.12) in Triton: what launches the kernels. Results repeat bit for bit.

Shapes: N clips of L_a frames, L_ref reference frames, D channels, H heads. Memory is linear in both lengths.
"""

import torch
import triton
from torch import Tensor

from atk.kernels.cross_attention_gate import gate_backward_kernel, gate_kernel
from atk.kernels.cross_attention_kernels import attend_kernel, grad_key_kernel, grad_query_kernel, key_end_kernel
from atk.kernels.launch import (
    MAX_HEAD_WIDTH,
    Device,
    cross_attention_launch,
    head_channels,
    key_end_launch,
    on_device,
    pointwise_launch,
    unavailable,
)
from atk.kernels.pack import as_bytes

__all__ = ["MAX_HEAD_WIDTH", "backward", "forward", "unavailable"]


class _Problem:
    """Projected inputs, and the launches of the kernels on them."""

    def __init__(self, source: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, heads: int):
        (self.N, self.L_a, self.D), self.L_ref, self.heads = source.shape, k.shape[1], heads
        self.width = self.D // heads if heads > 0 else 0
        if not 1 <= self.width <= MAX_HEAD_WIDTH or heads * self.width != self.D:
            raise ValueError(
                f"num_heads must divide D into heads of 1 to {MAX_HEAD_WIDTH} channels, got {heads} for D = {self.D}"
            )
        self.source, self.q, self.k, self.v = source, q, k, v
        self.device = Device.of(source.device)
        self.sizes = self.L_a, self.L_ref, self.D, heads
        self.mask = self.key_end = None
        if key_mask is not None:
            self.mask = as_bytes(key_mask)
            self.key_end = torch.empty(self.N, dtype=torch.int32, device=source.device)
            if self.N > 0:
                key_end_kernel[(self.N,)](self.mask, self.key_end, self.L_ref, **key_end_launch())

    def _meta(self, kernel: str) -> dict[str, int]:
        return cross_attention_launch(kernel, self.source.dtype, self.D, self.heads, self.device).meta()

    def _grid(self, L: int, meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(L, meta["ROWS"]) * self.N * self.heads,)

    def _head(self) -> dict[str, int]:
        return {"WIDTH": self.width, "HEAD": head_channels(self.width)}

    def attend(self, attended: Tensor, lse: Tensor) -> None:
        meta = self._meta("attend")
        attend_kernel[self._grid(self.L_a, meta)](
            self.q, self.k, self.v, self.mask, self.key_end, attended, lse, *self.sizes, **self._head(), **meta
        )

    def gate(self, attended: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, gate: Tensor) -> None:
        meta, T = self._meta("gate"), self.N * self.L_a
        grid = (triton.cdiv(T, meta["ROWS"]) * triton.cdiv(self.D, meta["COLUMNS"]),)
        gate_kernel[grid](
            attended, weight, bias, self.source, self.key_end, out, gate, T, self.L_a, self.L_ref, self.D, **meta
        )

    def gate_backward(self, grad: Tensor, gate: Tensor, grad_source: Tensor, grad_sim: Tensor) -> None:
        meta = pointwise_launch()
        grid = (triton.cdiv(self.L_a * self.D, meta["SIZE"]) * self.N,)
        gate_backward_kernel[grid](
            grad, self.source, gate, self.key_end, grad_source, grad_sim, self.L_a, self.L_ref, self.D, **meta
        )

    def grad_query(self, grad: Tensor, attended: Tensor, lse: Tensor, delta: Tensor, grad_q: Tensor) -> None:
        meta = self._meta("grad_query")
        grad_query_kernel[self._grid(self.L_a, meta)](
            grad, self.q, self.k, self.v, self.mask, self.key_end, attended, lse, delta, grad_q,
            *self.sizes, **self._head(), **meta,
        )  # fmt: skip

    def grad_key(self, grad: Tensor, lse: Tensor, delta: Tensor, grad_k: Tensor, grad_v: Tensor) -> None:
        meta = self._meta("grad_key")
        grad_key_kernel[self._grid(self.L_ref, meta)](
            grad, self.q, self.k, self.v, self.mask, self.key_end, lse, delta, grad_k, grad_v,
            *self.sizes, **self._head(), **meta,
        )  # fmt: skip


def forward(
    source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """out = sigmoid(-Z_sim) * source, Z_sim = concat_heads(softmax(q k^T / sqrt(D / H)) v) @ out_weight^T + out_bias.

    Padded keys contribute nothing, whatever k and v hold there; a clip without a valid key returns its source bitwise.

    Args:
        source, q: [N, L_a, D], contiguous, float32, bfloat16 or float16, as every tensor here but the mask.
        k, v: [N, L_ref, D].
        out_weight, out_bias: [D, D], and [D] or None.
        key_mask: [N, L_ref] boolean, True = valid; None: all are.
        num_heads: H, heads of up to 256 channels.

    Returns:
        out, gate = sigmoid(-Z_sim) and attended, the input of the output projection, each [N, L_a, D] of the inputs'
        dtype; lse [N, H, L_a] float32, the binary logarithm of the sum over valid keys of e^logit, for `backward`.

    Raises:
        ValueError: num_heads does not divide D, or its heads are too wide.
    """
    with on_device(source.device):
        problem = _Problem(source, q, k, v, key_mask, num_heads)
        out, gate, attended = (torch.empty_like(source) for _ in range(3))
        lse = source.new_empty(problem.N, num_heads, problem.L_a, dtype=torch.float32)
        if source.numel() > 0:
            problem.attend(attended, lse)
            problem.gate(attended, out_weight, out_bias, out, gate)
    return out, gate, attended, lse


def backward(
    grad: Tensor, source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int, gate: Tensor, attended: Tensor, lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """The gradients of source, q, k, v, out_weight and out_bias (None without one), of their shapes and dtypes.

    Zeros at padded keys; for a clip without a valid key `grad` is the gradient of its source, and there is no other.

    Args:
        grad: [N, L_a, D], the gradient of out, contiguous, of the inputs' dtype.
        source, q, k, v, out_weight, out_bias, key_mask, num_heads: as handed to `forward`.
        gate, attended, lse: as `forward` returned them.

    Raises:
        ValueError: num_heads does not divide D, or its heads are too wide.
    """
    with on_device(source.device):
        problem = _Problem(source, q, k, v, key_mask, num_heads)
        grad_source, grad_sim, grad_q = (torch.empty_like(source) for _ in range(3))
        grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
        delta = torch.empty_like(lse)
        rows = grad_sim.view(-1, problem.D)
        if source.numel() > 0:
            problem.gate_backward(grad, gate, grad_source, grad_sim)
        grad_attended = (rows @ out_weight).view_as(source)
        if source.numel() > 0:
            problem.grad_query(grad_attended, attended, lse, delta, grad_q)
        if k.numel() > 0:
            problem.grad_key(grad_attended, lse, delta, grad_k, grad_v)
        grad_weight = rows.T @ attended.view(-1, problem.D)
        grad_bias = None if out_bias is None else rows.sum(0, dtype=torch.float32).to(out_bias.dtype)
    return grad_source, grad_q, grad_k, grad_v, grad_weight, grad_bias
