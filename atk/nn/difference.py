"""Difference blocks as modules: the part of a clip that is not in a reference (thesis ch. 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.ops import checks
from atk.ops.cross_attention import difference
from atk.ops.cross_attention_op import zero_rows


class CrossAttentionDifference(nn.Module):
    """`Z_diff = (1 - sigmoid(CrossAttention(Z, Z_ref))) * Z` (4.11), (4.12), including the attention's projections.

    The same mask also gives what both have in common, `Z_common = sigmoid(CrossAttention(Z, Z_ref)) * Z = Z - Z_diff`.

    Parameters have the names, shapes, and initial values of `torch.nn.MultiheadAttention(dim, num_heads,
    batch_first=True)`, so either module loads the `state_dict` of the other.

    Args:
        dim: number of channels D of the frames.
        num_heads: number of attention heads; must divide D.
        bias: whether the input and output projections have a bias.
        backend: as in `atk.cross_attention_difference`.

    Raises:
        ValueError: `num_heads` does not divide D.
    """

    in_proj_bias: nn.Parameter | None

    def __init__(self, dim: int, num_heads: int, bias: bool = True, backend: str = "auto"):
        super().__init__()
        checks.heads(num_heads, dim)
        self.dim = dim
        self.num_heads = num_heads
        self.backend = backend
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * dim)) if bias else None)
        self.out_proj = nn.Linear(dim, dim, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        input: Tensor,  # noqa: A002 as in torch.nn
        reference: Tensor | None = None,
        reference_mask: Tensor | None = None,
        common: bool | Tensor = False,
    ) -> Tensor:
        """`Z_diff` `[N, L_a, D]` of the frames `input` `[N, L_a, D]` and `reference` `[N, L_ref, D]`.

        `reference_mask` is boolean `[N, L_ref]`, True = valid, None = all valid; padding may hold any values. Clips
        without a valid reference frame are returned unchanged, and so is the whole input if `reference` is None.
        `common` asks for `Z_common` instead: of all clips, or of those where a boolean `[N]` is True. It is computed as
        `Z - Z_diff`, so it is 0 for a clip without a valid reference frame.

        Raises:
            ValueError, TypeError: a shape, dtype, device, or mask is invalid; the message names the argument.
            RuntimeError: when a second derivative is taken, except with the backend `"reference"`.
        """
        checks.embeddings("input", input, "N, L_a, D", like=("in_proj_weight", self.in_proj_weight))
        if isinstance(common, Tensor) and (common.dtype != torch.bool or common.shape != input.shape[:1]):
            raise ValueError(
                f"common must be True, False, or boolean with shape [{len(input)}], got {common.dtype} with shape "
                f"{list(common.shape)}"
            )
        remaining = input if reference is None else self._difference(input, reference, reference_mask)
        if isinstance(common, Tensor):
            return torch.where(common[:, None, None], input - remaining, remaining)
        return input - remaining if common else remaining

    def _difference(self, input: Tensor, reference: Tensor, reference_mask: Tensor | None) -> Tensor:  # noqa: A002
        """`Z_diff`; arguments and errors are as in `forward`."""
        _check_reference(input, reference, reference_mask)
        if reference_mask is not None:  # NaN padding would reach the gradient of in_proj_weight
            reference = zero_rows(reference, ~reference_mask)
        query_weight, reference_weight = self.in_proj_weight.split([self.dim, 2 * self.dim])
        query_bias = reference_bias = None
        if self.in_proj_bias is not None:
            query_bias, reference_bias = self.in_proj_bias.split([self.dim, 2 * self.dim])
        q = F.linear(input, query_weight, query_bias)
        k, v = F.linear(reference, reference_weight, reference_bias).chunk(2, -1)
        weight, bias = self.out_proj.weight, self.out_proj.bias
        return difference(
            input, q, k, v, weight, bias, reference_mask, self.num_heads, self.backend, finite_padding=True
        )

    @classmethod
    def from_multihead_attention(
        cls, attention: nn.MultiheadAttention, backend: str = "auto"
    ) -> "CrossAttentionDifference":
        """A block with a copy of the weights of `attention`, on its device and in its dtype.

        Raises:
            ValueError: `attention` has dropout, keys or values of a different width, `add_bias_kv`, or `add_zero_attn`.
        """
        same_width = attention.in_proj_weight is not None
        if attention.dropout or not same_width or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                "attention must have no dropout, kdim, vdim, add_bias_kv, or add_zero_attn to become a difference "
                f"block, got dropout={attention.dropout}, kdim={attention.kdim}, vdim={attention.vdim}, "
                f"add_bias_kv={attention.bias_k is not None}, add_zero_attn={attention.add_zero_attn}"
            )
        weight = attention.in_proj_weight
        block = cls(attention.embed_dim, attention.num_heads, attention.in_proj_bias is not None, backend)
        block.to(weight.device, weight.dtype).load_state_dict(attention.state_dict())
        return block

    def to_multihead_attention(self) -> nn.MultiheadAttention:
        """A batch-first `torch.nn.MultiheadAttention` with a copy of the weights."""
        weight = self.in_proj_weight
        attention = nn.MultiheadAttention(
            self.dim, self.num_heads, bias=self.in_proj_bias is not None, batch_first=True, device=weight.device,
            dtype=weight.dtype,
        )  # fmt: skip
        attention.load_state_dict(self.state_dict())
        return attention

    def extra_repr(self) -> str:
        """The settings shown by `print`."""
        return f"{self.dim}, {self.num_heads}, bias={self.in_proj_bias is not None}, backend={self.backend!r}"


class SubtractionDifference(nn.Module):
    """`Z_diff = Z - Z_ref` (4.10), frame by frame: input and reference have the same length and are aligned in time."""

    def forward(
        self,
        input: Tensor,  # noqa: A002 as in torch.nn
        reference: Tensor | None = None,
        reference_mask: Tensor | None = None,
    ) -> Tensor:
        """`Z_diff` `[N, L, D]` of the frames `input` and `reference` `[N, L, D]`.

        `reference_mask` is boolean `[N, L]`, True = valid, None = all valid. Invalid frames subtract nothing, whatever
        values they hold. If `reference` is None, the input is returned unchanged.

        Raises:
            ValueError, TypeError: a shape, dtype, device, or mask is invalid; the message names the argument.
        """
        checks.embeddings("input", input, "N, L, D")
        if reference is None:
            return input
        _check_reference(input, reference, reference_mask)
        checks.same_shape("reference", reference, "input", input)
        return input - (reference if reference_mask is None else zero_rows(reference, ~reference_mask))


def _check_reference(frames: Tensor, reference: Tensor, reference_mask: Tensor | None) -> None:
    checks.embeddings("reference", reference, "N, L_ref, D", like=("input", frames))
    checks.same_batch("reference", reference, "input", frames)
    checks.mask("reference_mask", reference_mask, "reference", reference)
