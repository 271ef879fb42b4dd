"""The triplet loss on the cosine similarity of global vectors (the baselines of thesis ch. 3)."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.distributed.losses import gather as gather_rows
from atk.ops import checks
from atk.ops.info_nce import REDUCTIONS, check_vectors
from atk.ops.reference import normalize

Negatives = Literal["weighted", "semi-hard", "random"]
NEGATIVES = get_args(Negatives)


class TripletLoss(nn.Module):
    """Clips and captions as anchors a, each with its positive p and one negative n.

        mean over anchors of relu(margin - cos(a, p) + cos(a, n)),   clips and captions added up

    Args:
        margin: 0.4 in TTMR.
        negatives: how the negative of an anchor is chosen among the other modality: "weighted" draws one with
            probability proportional to `1 + cos(a, n)`, as in TTMR; "random" draws any; "semi-hard" takes the most
            similar one that is less similar than the positive or, without any, the least similar one.
        reduction: "sum" of the two directions or their "mean"; TTMR takes the mean.
        gather: None, or "all" for the negatives of all ranks; the loss is then this rank's share, as in `InfoNCELoss`.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        margin: float = 0.4,
        negatives: Negatives = "weighted",
        reduction: str = "sum",
        *,
        gather: str | None = None,
    ):
        super().__init__()
        if not margin > 0:
            raise ValueError(f"margin must be above 0, got {margin}")
        checks.one_of("negatives", negatives, NEGATIVES)
        checks.one_of("reduction", reduction, REDUCTIONS)
        if gather not in (None, "all"):
            raise ValueError(f"gather must be 'all' or None for the triplet loss, got {gather!r}")
        self.margin = margin
        self.negatives = negatives
        self.reduction = reduction
        self.gather = gather

    def forward(self, audio: Tensor, text: Tensor, captions: Tensor | None = None) -> Tensor:
        """Scalar loss; an anchor without a negative adds 0.

        Args:
            audio, text: vectors of N clips and their captions `[N, D]`, normalized here.
            captions: integers below 2^53 `[N]`, equal for equal captions: a clip whose caption is equal to that of the
                anchor is no negative. None: all captions differ.

        Raises: as in `atk.info_nce`, or `captions` has another shape.
        """
        check_vectors(audio, text, 1.0)
        dtype = torch.promote_types(audio.dtype, torch.float32)
        audio, text = normalize(audio.to(dtype)), normalize(text.to(dtype))
        if captions is not None and captions.shape != audio.shape[:1]:
            raise ValueError(f"captions must have shape {list(audio.shape[:1])}, got {list(captions.shape)}")
        all_audio, all_text, others = self._candidates(audio, text, captions)
        positive = (audio * text).sum(1)
        losses = [self._losses(scores, positive, others) for scores in (audio @ all_text.T, text @ all_audio.T)]
        loss = (losses[0] + losses[1]).sum() / max(1, len(all_audio))
        return loss / 2 if self.reduction == "mean" else loss

    def _candidates(self, audio: Tensor, text: Tensor, captions: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Clips and captions to choose from, `[N, D]` each, and whether they are negatives, boolean `[N_r, N]`."""
        ids = None if captions is None else captions.detach().double()[:, None]
        if self.gather is None:
            rows = slice(0, len(audio))
            all_ids = ids
        else:
            audio, rows = gather_rows(audio)
            text, _ = gather_rows(text)
            all_ids = None if ids is None else gather_rows(ids)[0]
        if ids is None or all_ids is None:
            index = torch.arange(len(audio), device=audio.device)
            return audio, text, index[rows, None] != index
        return audio, text, ids != all_ids.T

    def _losses(self, scores: Tensor, positive: Tensor, others: Tensor) -> Tensor:
        """The loss of each anchor `[N_r]`, from its similarity to all candidates `[N_r, N]`."""
        if not scores.numel():
            return scores.sum(1)
        with torch.no_grad():
            chosen = self._choose(scores, positive, others)
        loss = F.relu(self.margin - positive + scores.gather(1, chosen[:, None])[:, 0])
        return torch.where(others.any(1), loss, 0.0)

    def _choose(self, scores: Tensor, positive: Tensor, others: Tensor) -> Tensor:
        """The index of the negative of each anchor `[N_r]`; any index if it has none."""
        if self.negatives == "semi-hard":
            easier = others & (scores < positive[:, None])
            hardest = scores.masked_fill(~easier, -torch.inf).argmax(1)
            easiest = scores.masked_fill(~others, torch.inf).argmin(1)
            return torch.where(easier.any(1), hardest, easiest)
        weights = (1 + scores).clamp(min=1e-6) if self.negatives == "weighted" else torch.ones_like(scores)
        weights = torch.where(others.any(1, keepdim=True), weights * others, 1.0)
        return torch.multinomial(weights, 1)[:, 0]
