"""Launchers for the cross-attention difference (4.11)-(4.12) in Triton. Results are bitwise reproducible.

Shapes: N clips of L_a frames, L_ref reference frames, D channels, H heads. Memory is linear in both lengths.
"""

import torch
from torch import Tensor

from atk.kernels.availability import unavailable
from atk.kernels.cross_attention_gate import gate_backward_kernel, gate_kernel
from atk.kernels.cross_attention_kernels import attend_kernel, grad_key_kernel, grad_query_kernel, key_end_kernel
from atk.kernels.launch import UNFUSED, Device, cdiv, on_device
from atk.kernels.launch_attention import (
    MAX_HEAD_WIDTH,
    cross_attention_launch,
    head_channels,
    key_end_launch,
    pointwise_launch,
)
from atk.kernels.pack import as_bytes

__all__ = ["MAX_HEAD_WIDTH", "backward", "forward", "unavailable"]


class _Problem:
    """Projected inputs and the kernel launches on them.

    Tensors have the dtype of the inputs unless noted; lse and delta are [N, H, L_a] float32.
    """

    source: Tensor  # [N, L_a, D]
    q: Tensor  # [N, L_a, D]
    k: Tensor  # [N, L_ref, D]
    v: Tensor  # [N, L_ref, D]
    mask: Tensor | None  # [N, L_ref] uint8, nonzero = valid; None: every key is valid
    key_end: Tensor | None  # [N] int32: one past the last valid key; None: every key is valid

    def __init__(self, source: Tensor, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, heads: int) -> None:
        self.N, self.L_a, self.D = source.shape
        self.L_ref = k.shape[1]
        self.heads = heads
        self.width = self.D // heads if heads > 0 else 0
        if not 1 <= self.width <= MAX_HEAD_WIDTH or heads * self.width != self.D:
            raise ValueError(
                f"num_heads must divide D into heads of 1 to {MAX_HEAD_WIDTH} channels, got {heads} for D = {self.D}"
            )
        self.source = source
        self.q = q
        self.k = k
        self.v = v
        self.device = Device.of(source.device)
        self.sizes = (self.L_a, self.L_ref, self.D, heads)
        self.mask = None
        self.key_end = None
        if key_mask is not None:
            self.mask = as_bytes(key_mask)
            self.key_end = torch.empty(self.N, dtype=torch.int32, device=source.device)
            if self.N > 0:
                key_end_kernel[(self.N,)](self.mask, self.key_end, self.L_ref, **key_end_launch())

    def _meta(self, kernel: str) -> dict[str, int]:
        return cross_attention_launch(kernel, self.source.dtype, self.D, self.heads, self.device).meta()

    def _grid(self, L: int, meta: dict[str, int]) -> tuple[int]:
        return (cdiv(L, meta["ROWS"]) * self.N * self.heads,)

    def _head(self) -> dict[str, int]:
        return {"WIDTH": self.width, "HEAD": head_channels(self.width)}

    def attend(self, attended: Tensor, lse: Tensor) -> None:
        """Writes `attended` [N, L_a, D] and `lse`."""
        meta = self._meta("attend")
        attend_kernel[self._grid(self.L_a, meta)](
            self.q, self.k, self.v, self.mask, self.key_end, attended, lse, *self.sizes, **self._head(), **meta
        )

    def gate(self, attended: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, gate: Tensor) -> None:
        """Writes `out` and `gate`, both [N, L_a, D], from `attended` [N, L_a, D], `weight` [D, D], and `bias` [D]."""
        meta = self._meta("gate")
        T = self.N * self.L_a
        grid = (cdiv(T, meta["ROWS"]) * cdiv(self.D, meta["COLUMNS"]),)
        gate_kernel[grid](
            attended, weight, bias, self.source, self.key_end, out, gate, T, self.L_a, self.L_ref, self.D, **meta
        )

    def gate_backward(self, grad: Tensor, gate: Tensor, grad_source: Tensor, grad_sim: Tensor) -> None:
        """Writes `grad_source` and `grad_sim` from `grad` and `gate`, all [N, L_a, D]."""
        meta = pointwise_launch()
        grid = (cdiv(self.L_a * self.D, meta["SIZE"]) * self.N,)
        gate_backward_kernel[grid](
            grad, self.source, gate, self.key_end, grad_source, grad_sim, self.L_a, self.L_ref, self.D, **meta
        )

    def grad_query(self, grad: Tensor, attended: Tensor, lse: Tensor, delta: Tensor, grad_q: Tensor) -> None:
        """Writes `grad_q` [N, L_a, D] and `delta` [N, H, L_a] from `attended` and its gradient, both [N, L_a, D]."""
        meta = self._meta("grad_query")
        grad_query_kernel[self._grid(self.L_a, meta)](
            grad, self.q, self.k, self.v, self.mask, self.key_end, attended, lse, delta, grad_q,
            *self.sizes, **self._head(), **meta | UNFUSED,
        )  # fmt: skip

    def grad_key(self, grad: Tensor, lse: Tensor, delta: Tensor, grad_k: Tensor, grad_v: Tensor) -> None:
        """Writes `grad_k` and `grad_v`, both [N, L_ref, D], from the gradient `grad` [N, L_a, D] of `attended`."""
        meta = self._meta("grad_key")
        grad_key_kernel[self._grid(self.L_ref, meta)](
            grad, self.q, self.k, self.v, self.mask, self.key_end, lse, delta, grad_k, grad_v,
            *self.sizes, **self._head(), **meta | UNFUSED,
        )  # fmt: skip


def forward(
    source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """out = sigmoid(-Z_sim) * source, Z_sim = concat_heads(softmax(q k^T / sqrt(D / H)) v) @ out_weight^T + out_bias.

    Padded keys contribute nothing, even if k or v are not finite there. For a clip without a valid key, `out` is
    bitwise equal to `source`.

    Args:
        source: [N, L_a, D] float32, bfloat16, or float16, contiguous. All tensors but the mask have the same dtype.
        q: [N, L_a, D], contiguous.
        k: [N, L_ref, D], contiguous.
        v: [N, L_ref, D], contiguous.
        out_weight: [D, D], contiguous.
        out_bias: [D], contiguous. None: no bias.
        key_mask: [N, L_ref] bool, True = valid, contiguous. None: every key is valid.
        num_heads: H; a head has at most 256 channels.

    Returns:
        out, gate = sigmoid(-Z_sim), and attended (the input of the output projection), each [N, L_a, D] in the dtype of
        the inputs; and lse [N, H, L_a] float32, the binary logarithm of the sum over valid keys of e^logit.

    Raises:
        ValueError: num_heads does not divide D, or the heads are too wide.
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
    """The gradients of source, q, k, v, out_weight, and out_bias, given the gradient `grad` of out.

    The gradients are 0 at padded keys. A clip without a valid key passes `grad` on to its source and contributes to no
    other gradient.

    Args:
        grad: [N, L_a, D] in the dtype of the inputs, contiguous.
        source, q, k, v, out_weight, out_bias, key_mask, num_heads: as passed to `forward`.
        gate, attended, lse: as returned by `forward`.

    Returns:
        Gradients of source, q, k, v, out_weight, and out_bias, in their shapes and dtypes. The last is None without a
        bias.

    Raises:
        ValueError: num_heads does not divide D, or the heads are too wide.
    """
    with on_device(source.device):
        problem = _Problem(source, q, k, v, key_mask, num_heads)
        grad_source, grad_sim, grad_q = (torch.empty_like(source) for _ in range(3))
        grad_k = torch.empty_like(k)
        grad_v = torch.empty_like(v)
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
