"""Losses as modules: InfoNCE on global vectors, and the thesis's sum of global and aligned InfoNCE."""

import math

import torch
from torch import Tensor, nn

from atk import checks
from atk.info_nce import REDUCTIONS, aligned_info_nce, info_nce
from atk.max_mean import DIRECTIONS
from atk.reference import normalize

MAX_LOGIT_SCALE = 100.0  # as in CLIP: a learnable temperature stays above 0.01


class _Temperature(nn.Module):
    """A temperature, fixed or learnt as the logarithm of its inverse."""

    def __init__(self, temperature: float, learnable: bool, reduction: str):
        super().__init__()
        checks.one_of("reduction", reduction, REDUCTIONS)
        self.reduction = reduction
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
    """

    def __init__(self, temperature: float = 0.2, learnable: bool = False, reduction: str = "sum"):
        super().__init__(temperature, learnable, reduction)

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Loss of clips `[N, D]` and their captions `[N, D]`; vectors of any length, normalised here."""
        return info_nce(normalize(audio), normalize(text), self.logit_scale, reduction=self.reduction)


class AlignedContrastiveLoss(_Temperature):
    """`L_total = L_global + L_align` (3.7): InfoNCE on global cosine plus InfoNCE on max-mean similarity (3.6).

    Args:
        temperature, learnable, reduction: as in `InfoNCELoss`; one temperature serves both terms.
        global_weight, aligned_weight: factors of the two terms; a term of weight 0 is not computed.
        direction, skip_below, backend: as in `atk.aligned_info_nce`.
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
    ):
        super().__init__(temperature, learnable, reduction)
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
        frames: Tensor,
        tokens: Tensor,
        frame_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """Weighted total of `terms(...)`, a scalar."""
        return self.total(self.terms(audio, text, frames, tokens, frame_mask, token_mask))

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """`L_total` (3.7) of what `terms` returned."""
        weights = {"global": self.global_weight, "aligned": self.aligned_weight}
        return sum(weights[name] * value for name, value in terms.items())

    def terms(
        self,
        audio: Tensor,
        text: Tensor,
        frames: Tensor,
        tokens: Tensor,
        frame_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted losses `"global"` and `"aligned"` (those with a weight), for logging.

        Args:
            audio, text: global vectors `[N, D]`, normalised here.
            frames: `[N, L_a, D]`, tokens: `[N, L_t, D]`, normalised here; masks boolean `[N, L_a]`, `[N, L_t]`.
        """
        terms = {}
        if self.global_weight:
            pair = normalize(audio), normalize(text)
            terms["global"] = info_nce(*pair, self.logit_scale, reduction=self.reduction)
        if self.aligned_weight:
            terms["aligned"] = aligned_info_nce(
                frames,
                tokens,
                self.logit_scale,
                frame_mask,
                token_mask,
                reduction=self.reduction,
                normalize=True,
                direction=self.direction,
                skip_below=self.skip_below,
                backend=self.backend,
            )
        return terms
