"""Contrastive losses as modules: InfoNCE and the sigmoid loss on global vectors, alone or with aligned sequences."""

import functools
import math
import operator
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from atk.distributed import GATHERS, aligned_info_nce, aligned_sigmoid_loss, info_nce, sigmoid_loss
from atk.distributed.collectives import world_size
from atk.ops import checks
from atk.ops.backend import BACKENDS
from atk.ops.info_nce import REDUCTIONS, check_vectors
from atk.ops.max_mean import DIRECTIONS
from atk.ops.reference import normalize

MAX_LOGIT_SCALE = 100.0  # as in CLIP: InfoNCE's learnable temperature stays above 0.01
PairLoss = Literal["info_nce", "sigmoid"]
PAIR_LOSSES = get_args(PairLoss)


class _ContrastiveLoss(nn.Module):
    """Options shared by the losses: temperature (fixed or learnable), and gathering of other ranks' pairs.

    A learnable temperature is stored as the logarithm of its inverse, as in CLIP and SigLIP.
    """

    log_logit_scale: Tensor
    logit_bias: Tensor
    loss: str  # one of PAIR_LOSSES

    def __init__(self, loss: str, temperature: float, bias: float, learnable: bool, gather: str | None):
        super().__init__()
        checks.one_of("loss", loss, PAIR_LOSSES)
        if gather is not None:
            checks.one_of("gather", gather, GATHERS)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.loss = loss
        self.gather = gather
        values = {"log_logit_scale": math.log(1 / temperature)}
        if loss == "sigmoid":
            values["logit_bias"] = float(bias)
        for name, value in values.items():
            if learnable:
                self.register_parameter(name, nn.Parameter(torch.tensor(value)))
            else:
                self.register_buffer(name, torch.tensor(value))

    @property
    def logit_scale(self) -> Tensor:
        """`1 / temperature`, at most 100 if InfoNCE learns it."""
        if isinstance(self.log_logit_scale, nn.Parameter) and self.loss == "info_nce":
            with torch.no_grad():  # clamp the parameter, as CLIP does: a clamped result would have no gradient
                self.log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        return self.log_logit_scale.exp()

    def _warn_of_one_pair(self, pairs: int) -> None:
        alone = self.gather is None or world_size() == 1
        if pairs == 1 and alone and self.training and not torch.compiler.is_compiling():
            warnings.warn("a batch of one pair has nothing to contrast: its loss is always 0", stacklevel=3)


class InfoNCELoss(_ContrastiveLoss):
    """Symmetric InfoNCE (3.3)-(3.5) on the cosine similarity of global vectors.

    Args:
        temperature: `tau` of the thesis (0.2 there); the logit scale is its inverse.
        learnable: whether to learn the temperature (kept above 0.01).
        reduction: `"sum"` of the two directions or their `"mean"`.
        backend: as in `atk.info_nce`.
        gather: `"all"` or `"ring"` gives this rank's share of the loss over the pairs of all ranks; see
            `atk.distributed.info_nce`. None gives the loss of this rank's pairs. With one rank, all three are the same.

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
        super().__init__("info_nce", temperature, 0.0, learnable, gather)
        checks.one_of("reduction", reduction, REDUCTIONS)
        self.reduction = reduction
        self.backend = backend

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Scalar loss of clips `[N, D]` and their captions `[N, D]`; vectors are normalized here.

        Raises: as in `atk.info_nce`.
        """
        scale = self.logit_scale
        check_vectors(audio, text, scale)
        self._warn_of_one_pair(len(audio))
        return info_nce(
            normalize(audio), normalize(text), scale, gather=self.gather, reduction=self.reduction, backend=self.backend
        )


class SigmoidLoss(_ContrastiveLoss):
    """The sigmoid loss (Zhai et al. 2023, "SigLIP") on the cosine similarity of global vectors.

    Args:
        temperature: inverse of the factor of the cosines, at the start if it is learned; SigLIP starts at 0.1.
        bias: added to the logits, at the start if it is learned; SigLIP starts at -10.
        learnable: whether to learn both. The temperature has no lower bound.
        backend: as in `atk.sigmoid_loss`.
        gather: as in `InfoNCELoss`.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        bias: float = -10.0,
        learnable: bool = True,
        *,
        backend: str = "auto",
        gather: str | None = None,
    ):
        super().__init__("sigmoid", temperature, bias, learnable, gather)
        self.backend = backend

    def forward(self, audio: Tensor, text: Tensor) -> Tensor:
        """Scalar loss of clips `[N, D]` and their captions `[N, D]`; vectors are normalized here.

        Raises: as in `atk.sigmoid_loss`.
        """
        scale = self.logit_scale
        check_vectors(audio, text, scale)
        return sigmoid_loss(
            normalize(audio), normalize(text), scale, self.logit_bias, gather=self.gather, backend=self.backend
        )


class AlignedContrastiveLoss(_ContrastiveLoss):
    """`L_total = L_global + L_align` (3.7): InfoNCE on global cosine plus InfoNCE on max-mean similarity (3.6).

    Args:
        temperature, learnable, reduction: as in `InfoNCELoss`; both terms share the temperature. With
            `loss="sigmoid"`, `learnable` includes the bias, the temperature has no lower bound, and there is no
            reduction, since the loss has no two directions.
        global_weight, aligned_weight: weights of the two terms; a term with weight 0 is not computed.
        direction, skip_below, backend: as in `atk.aligned_info_nce`. The global term uses the same backend if
            `atk.info_nce` has it, else `"auto"`.
        gather: as in `InfoNCELoss`, for both terms.
        loss: `"info_nce"`, or `"sigmoid"` for the sigmoid loss on both similarities (SigLIP starts with a temperature
            of 0.1 and learns it).
        bias: of the sigmoid loss, as in `SigmoidLoss`; both terms share it.

    Raises:
        ValueError: an option is unknown or out of range, both weights are 0, or the sigmoid loss gets a reduction.
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
        loss: str = "info_nce",
        bias: float = -10.0,
    ):
        super().__init__(loss, temperature, bias, learnable, gather)
        checks.one_of("reduction", reduction, REDUCTIONS)
        check_reduction(loss, reduction)
        checks.one_of("direction", direction, DIRECTIONS)
        if min(global_weight, aligned_weight) < 0 or global_weight + aligned_weight == 0:
            raise ValueError(
                f"global_weight and aligned_weight must be >= 0 and not both 0, got {global_weight}, {aligned_weight}"
            )
        self.reduction = reduction
        self.direction = direction
        self.skip_below = skip_below
        self.backend = backend
        self.global_weight = global_weight
        self.aligned_weight = aligned_weight

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        frames: Tensor | None = None,
        tokens: Tensor | None = None,
        frame_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """`L_total` (3.7), a scalar: the weighted sum of `terms(...)`, which has the same arguments and errors."""
        return self.total(self.terms(audio, text, frames, tokens, frame_mask, token_mask))

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """`L_total` (3.7): the weighted sum of what `terms` returned."""
        weights = {"global": self.global_weight, "aligned": self.aligned_weight}
        return functools.reduce(operator.add, (weights[name] * value for name, value in terms.items()))

    def terms(
        self,
        audio: Tensor,
        text: Tensor,
        frames: Tensor | None = None,
        tokens: Tensor | None = None,
        frame_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted losses `"global"` and `"aligned"`, except those with weight 0.

        Args:
            audio, text: global vectors `[N, D]`, normalized here.
            frames, tokens: `[N, L_a, D]` and `[N, L_t, D]`, normalized here; required if `aligned_weight` is not 0.
            frame_mask, token_mask: boolean `[N, L_a]` and `[N, L_t]`, True = valid, None = all valid.

        Raises: as in `atk.info_nce` and `atk.aligned_info_nce`.
        """
        if self.loss == "info_nce":
            self._warn_of_one_pair(len(audio))
        terms = {}
        if self.global_weight:
            terms["global"] = self.global_term(audio, text)
        if self.aligned_weight:
            terms["aligned"] = self.aligned_term(frames, tokens, frame_mask, token_mask)
        return terms

    def global_term(self, audio: Tensor, text: Tensor) -> Tensor:
        """The unweighted loss on the cosine of global vectors `[N, D]`; arguments and errors are those of `terms`."""
        scale = self.logit_scale
        check_vectors(audio, text, scale)
        backend = self.backend if self.backend in BACKENDS["info_nce"] else "auto"
        vectors = normalize(audio), normalize(text)
        if self.loss == "sigmoid":
            return sigmoid_loss(*vectors, scale, self.logit_bias, gather=self.gather, backend=backend)
        return info_nce(*vectors, scale, gather=self.gather, reduction=self.reduction, backend=backend)

    def aligned_term(
        self,
        frames: Tensor | None,
        tokens: Tensor | None,
        frame_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """The unweighted loss on the max-mean similarity; arguments and errors are those of `terms`."""
        scale = self.logit_scale
        frames = checks.embeddings("frames", frames, "N, L_a, D")
        tokens = checks.embeddings("tokens", tokens, "N, L_t, D", like=("frames", frames))
        checks.mask("frame_mask", frame_mask, "frames", frames)
        checks.mask("token_mask", token_mask, "tokens", tokens)
        masks = frame_mask, token_mask
        options = {
            "gather": self.gather,
            "normalize": True,
            "direction": self.direction,
            "skip_below": self.skip_below,
            "backend": self.backend,
        }
        if self.loss == "sigmoid":
            return aligned_sigmoid_loss(frames, tokens, scale, self.logit_bias, *masks, **options)
        return aligned_info_nce(frames, tokens, scale, *masks, reduction=self.reduction, **options)


def check_reduction(loss: str, reduction: str) -> None:
    """The sigmoid loss is a sum over pairs, without directions to average."""
    if loss == "sigmoid" and reduction != "sum":
        raise ValueError(
            f"reduction must be 'sum' for the sigmoid loss, which has no two directions, got {reduction!r}"
        )
