"""The objectives and blocks as modules: InfoNCE, aligned InfoNCE, the difference of input and reference, mappers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk import checks
from atk.cross_attention import difference
from atk.cross_attention_op import zero_rows
from atk.distributed import GATHERS, aligned_info_nce, info_nce
from atk.info_nce import BACKENDS, REDUCTIONS, check_vectors
from atk.mappers import MLPMapper, TransformerMapper
from atk.max_mean import DIRECTIONS
from atk.reference import normalize

__all__ = [
    "AlignedContrastiveLoss",
    "CrossAttentionDifference",
    "InfoNCELoss",
    "MLPMapper",
    "SubtractionDifference",
    "TransformerMapper",
]

MAX_LOGIT_SCALE = 100.0  # as in CLIP: a learnable temperature stays above 0.01


class _Temperature(nn.Module):
    """A temperature, fixed or learnt as the logarithm of its inverse, and over which pairs a loss is taken."""

    def __init__(self, temperature: float, learnable: bool, reduction: str, gather: str | None):
        super().__init__()
        checks.one_of("reduction", reduction, REDUCTIONS)
        if gather is not None:
            checks.one_of("gather", gather, GATHERS)
        self.reduction, self.gather = reduction, gather
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        value = torch.tensor(math.log(1 / temperature))
        if learnable:
            self.log_logit_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_logit_scale", value)

    @property
    def logit_scale(self) -> Tensor:
        """`1 / temperature`, at most 100 when learnt."""
        if isinstance(self.log_logit_scale, nn.Parameter):
            with torch.no_grad():  # the parameter itself, as in CLIP: a clamped result would have no gradient
                self.log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        return self.log_logit_scale.exp()


class InfoNCELoss(_Temperature):
    """Symmetric InfoNCE (3.3)-(3.5) on the cosine of global vectors.

    Args:
        temperature: `tau` of the thesis (0.2 there); the logit scale is its inverse.
        learnable: learn the temperature (kept above 0.01).
        reduction: `"sum"` of the two directions or their `"mean"`.
        backend: as in `atk.info_nce`.
        gather: `"all"` or `"ring"`: this rank's share of the loss over the pairs of all ranks, see
            `atk.distributed.info_nce`; the same as None, the loss of these pairs alone, where there is one rank.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        learnable: bool = False,
        reduction: str = "sum",
        *,
        backend: str = "auto",
        gather: str | None = None,
    ):
        super().__init__(temperature, learnable, reduction, gather)
        self.backend = backend

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Loss, a scalar, of clips `[N, D]` and their captions `[N, D]`; vectors of any length, normalised here.

        Raises: as `atk.info_nce`.
        """
        scale = self.logit_scale
        check_vectors(audio, text, scale)
        options = {"reduction": self.reduction, "backend": self.backend, "gather": self.gather}
        return info_nce(normalize(audio), normalize(text), scale, **options)


class AlignedContrastiveLoss(_Temperature):
    """`L_total = L_global + L_align` (3.7): InfoNCE on global cosine plus InfoNCE on max-mean similarity (3.6).

    Args:
        temperature, learnable, reduction: as in `InfoNCELoss`; one temperature serves both terms.
        global_weight, aligned_weight: factors of the two terms; a term of weight 0 is not computed.
        direction, skip_below, backend: as in `atk.aligned_info_nce`; the global term takes the same backend where
            `atk.info_nce` has it, else `"auto"`.
        gather: as in `InfoNCELoss`, for both terms.

    Raises:
        ValueError: an option is unknown or out of range, or both weights are 0.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        learnable: bool = False,
        reduction: str = "sum",
        *,
        global_weight: float = 1.0,
        aligned_weight: float = 1.0,
        direction: str = "audio",
        skip_below: float = 0.0,
        backend: str = "auto",
        gather: str | None = None,
    ):
        super().__init__(temperature, learnable, reduction, gather)
        checks.one_of("direction", direction, DIRECTIONS)
        if min(global_weight, aligned_weight) < 0 or global_weight + aligned_weight == 0:
            raise ValueError(
                f"global_weight and aligned_weight must be >= 0 and not both 0, got {global_weight}, {aligned_weight}"
            )
        self.direction, self.skip_below, self.backend = direction, skip_below, backend
        self.global_weight, self.aligned_weight = global_weight, aligned_weight

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        frames: Tensor | None = None,
        tokens: Tensor | None = None,
        frame_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """`L_total` (3.7), a scalar: the weighted total of `terms(...)`, which has the same arguments and errors."""
        return self.total(self.terms(audio, text, frames, tokens, frame_mask, token_mask))

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """`L_total` (3.7) of what `terms` returned."""
        weights = {"global": self.global_weight, "aligned": self.aligned_weight}
        return sum(weights[name] * value for name, value in terms.items())

    def terms(
        self,
        audio: Tensor,
        text: Tensor,
        frames: Tensor | None = None,
        tokens: Tensor | None = None,
        frame_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted losses `"global"` and `"aligned"` (those with a weight), for logging.

        Args:
            audio, text: global vectors `[N, D]`, normalised here.
            frames, tokens: `[N, L_a, D]`, `[N, L_t, D]`, normalised here; needed where the aligned term has a weight.
            frame_mask, token_mask: boolean `[N, L_a]` and `[N, L_t]`, True = valid, None = all.

        Raises: as `atk.info_nce` and `atk.aligned_info_nce`.
        """
        terms, scale, options = {}, self.logit_scale, {"reduction": self.reduction, "gather": self.gather}
        if self.global_weight:
            check_vectors(audio, text, scale)
            backend = self.backend if self.backend in BACKENDS else "auto"
            terms["global"] = info_nce(normalize(audio), normalize(text), scale, backend=backend, **options)
        if self.aligned_weight:
            checks.embeddings("frames", frames, "N, L_a, D")
            checks.embeddings("tokens", tokens, "N, L_t, D", like=("frames", frames))
            checks.mask("frame_mask", frame_mask, "frames", frames)
            checks.mask("token_mask", token_mask, "tokens", tokens)
            terms["aligned"] = aligned_info_nce(
                frames,
                tokens,
                scale,
                frame_mask,
                token_mask,
                normalize=True,
                direction=self.direction,
                skip_below=self.skip_below,
                backend=self.backend,
                **options,
            )
        return terms


class CrossAttentionDifference(nn.Module):
    """`Z_diff = (1 - sigmoid(CrossAttention(Z, Z_ref))) * Z` (4.11), (4.12), with the projections of the attention.

    Parameters have the names, shapes and initial values of `torch.nn.MultiheadAttention(dim, num_heads,
    batch_first=True)`, so a `state_dict` of either loads into the other.

    Args:
        dim: channels D of the frames.
        num_heads: attention heads, which divide D.
        bias: of the input and output projections.
        backend: as in `atk.cross_attention_difference`.

    Raises:
        ValueError: `num_heads` does not divide D.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool = True, backend: str = "auto"):
        super().__init__()
        checks.heads(num_heads, dim)
        self.dim, self.num_heads, self.backend = dim, num_heads, backend
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * dim)) if bias else None)
        self.out_proj = nn.Linear(dim, dim, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def forward(self, input: Tensor, reference: Tensor | None = None, reference_mask: Tensor | None = None) -> Tensor:
        """`Z_diff` `[N, L_a, D]` of the frames `input` `[N, L_a, D]` and `reference` `[N, L_ref, D]`.

        `reference_mask` is boolean `[N, L_ref]`, True = valid, None = all; what padding holds does not matter. Clips
        without a valid reference frame come back unchanged, and so does the input when `reference` is None.

        Raises:
            ValueError, TypeError: a shape, dtype, device or mask does not fit; the message names the argument.
            RuntimeError: when a second derivative is taken, except with the backend `"reference"`.
        """
        checks.embeddings("input", input, "N, L_a, D", like=("in_proj_weight", self.in_proj_weight))
        if reference is None:
            return input
        _check_reference(input, reference, reference_mask)
        if reference_mask is not None:  # NaN there would reach the gradient of in_proj_weight
            reference = zero_rows(reference, ~reference_mask)
        query_weight, reference_weight = self.in_proj_weight.split([self.dim, 2 * self.dim])
        query_bias = reference_bias = None
        if self.in_proj_bias is not None:
            query_bias, reference_bias = self.in_proj_bias.split([self.dim, 2 * self.dim])
        q = F.linear(input, query_weight, query_bias)
        k, v = F.linear(reference, reference_weight, reference_bias).chunk(2, -1)
        out = self.out_proj.weight, self.out_proj.bias
        return difference(input, q, k, v, *out, reference_mask, self.num_heads, self.backend, finite_padding=True)

    @classmethod
    def from_multihead_attention(
        cls, attention: nn.MultiheadAttention, backend: str = "auto"
    ) -> "CrossAttentionDifference":
        """A block with a copy of the weights of `attention`, on its device and in its dtype.

        Raises:
            ValueError: it has dropout, keys or values of other widths, `add_bias_kv` or `add_zero_attn`.
        """
        same_width = attention.in_proj_weight is not None
        if attention.dropout or not same_width or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                "attention must have no dropout, kdim, vdim, add_bias_kv or add_zero_attn to be a difference, "
                f"got dropout={attention.dropout}, kdim={attention.kdim}, vdim={attention.vdim}, "
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
        """What `print` shows beside the projections."""
        return f"{self.dim}, {self.num_heads}, bias={self.in_proj_bias is not None}, backend={self.backend!r}"


class SubtractionDifference(nn.Module):
    """`Z_diff = Z - Z_ref` (4.10), frame by frame: input and reference must be as long and aligned in time."""

    def forward(self, input: Tensor, reference: Tensor | None = None, reference_mask: Tensor | None = None) -> Tensor:
        """`Z_diff` `[N, L, D]` of the frames `input` and `reference` `[N, L, D]`.

        Frames that the boolean `reference_mask` `[N, L]` (True = valid, None = all) leaves out subtract nothing,
        whatever they hold; with `reference` None the input comes back unchanged.

        Raises:
            ValueError, TypeError: a shape, dtype, device or mask does not fit; the message names the argument.
        """
        checks.embeddings("input", input, "N, L, D")
        if reference is None:
            return input
        _check_reference(input, reference, reference_mask)
        checks.same_shape("reference", reference, "input", input)
        return input - (reference if reference_mask is None else zero_rows(reference, ~reference_mask))


def _check_reference(input: Tensor, reference: Tensor, reference_mask: Tensor | None) -> None:
    checks.embeddings("reference", reference, "N, L_ref, D", like=("input", input))
    checks.same_batch("reference", reference, "input", input)
    checks.mask("reference_mask", reference_mask, "reference", reference)
