"""Retrieval, tagging, and classification metrics of score matrices. All but ranks and counts are in percent."""

import math

import numpy as np
import torch
from torch import Tensor

from atk.extras import optional_imports

RECALL_AT = (1, 5, 10)
_AP_AT = 10
_ROWS = 1024  # queries to rank at a time, which bounds the memory of sorting


def retrieval_metrics(similarity: Tensor, relevant: Tensor) -> dict[str, float]:
    """Retrieval metrics of queries and candidates.

    With `R` relevant candidates of a query and `rel(k) = 1` if the candidate at rank `k` is relevant:

        R@k    = 1 if any of the first k candidates is relevant
        AP@10  = 1 / min(R, 10) * sum_{k=1..10} rel(k) * (relevant candidates in the first k) / k
        MedR   = median over queries of the rank of the best relevant candidate (1 = first)

    Ties are pessimistic: an irrelevant candidate ranks ahead of a relevant one with the same score, so constant scores
    give 0. With one relevant candidate, as in text-to-audio retrieval, AP@10 is `1 / rank` within the first 10. With
    several, as in audio-to-text retrieval, it divides by `min(R, 10)`, like the truncated average precision of DCASE
    and TREC. `RetrievalMAP(top_k=10)` of torchmetrics divides by the number of relevant candidates in the first 10
    instead, so one of five captions at rank 1 gives the full score. Both agree if `R = 1` or if all relevant candidates
    are in the first 10.

    Args:
        similarity: scores `[Q, C]`, higher = better, floating point.
        relevant: boolean `[Q, C]`, at least one True per row.

    Returns:
        `"R@1"`, `"R@5"`, `"R@10"`, `"mAP@10"` in percent, averaged over queries, and `"MedR"`, a rank.

    Raises:
        ValueError: shapes differ, there is no query, a score is NaN, or a query has no relevant candidate.
        TypeError: `relevant` is not boolean.
    """
    _check_relevant(relevant)
    if similarity.shape != relevant.shape:
        raise ValueError(
            f"similarity and relevant must have the same shape [Q, C], got {list(similarity.shape)} and "
            f"{list(relevant.shape)}"
        )
    if similarity.isnan().any():
        raise ValueError(f"similarity is NaN in {int(similarity.isnan().sum())} of {similarity.numel()} scores")
    ranks = []
    precisions = []
    for scores, truth in zip(similarity.split(_ROWS), relevant.split(_ROWS), strict=True):
        hits = _ranked(scores, truth)
        ranks.append(hits.int().argmax(1) + 1)
        precisions.append(_average_precision(hits[:, :_AP_AT], truth.sum(1)))
    rank = torch.cat(ranks).double().cpu()
    metrics = {f"R@{k}": 100 * (rank <= k).double().mean().item() for k in RECALL_AT}
    metrics[f"mAP@{_AP_AT}"] = 100 * torch.cat(precisions).mean().item()
    return metrics | {"MedR": float(np.median(rank.numpy()))}


def _check_relevant(relevant: Tensor) -> None:
    if relevant.dtype != torch.bool:
        raise TypeError(f"relevant must be a boolean tensor [Q, C], got {relevant.dtype}")
    if relevant.dim() != 2 or not relevant.numel():
        raise ValueError(f"relevant must have shape [Q, C] with Q, C >= 1, got {list(relevant.shape)}")
    empty = (~relevant.any(1)).nonzero()
    if len(empty):
        raise ValueError(f"relevant: {len(empty)} queries have no relevant candidate; the first is row {empty[0, 0]}")


def _ranked(scores: Tensor, relevant: Tensor) -> Tensor:
    """`relevant` sorted by descending score; irrelevant candidates come first among equal scores."""
    first_irrelevant = relevant.int().argsort(dim=1, stable=True)
    scores = scores.gather(1, first_irrelevant)
    relevant = relevant.gather(1, first_irrelevant)
    return relevant.gather(1, scores.argsort(dim=1, descending=True, stable=True))


def _average_precision(hits: Tensor, total: Tensor) -> Tensor:
    """Average precision, in [0, 1], of ranked `hits [Q, k]` and `total [Q]` relevant candidates."""
    hits = hits.double()
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return (hits * hits.cumsum(1) / rank).sum(1) / total.clamp(max=_AP_AT)


def chance_metrics(relevant: Tensor) -> dict[str, float]:
    """Expected `retrieval_metrics` of a random order, computed exactly.

    With `R` of `C` candidates relevant: `R@k = 1 - binom(C - R, k) / binom(C, k)`,
    `AP@10 = R / (min(R, 10) C) * sum_k (1 + (k-1)(R-1)/(C-1)) / k`, and MedR is the median of the distribution of the
    best rank over all queries, `(C + 1) / 2` with one relevant candidate each.

    Args:
        relevant: boolean `[Q, C]`, at least one True per row.

    Returns:
        The keys of `retrieval_metrics`.

    Raises:
        ValueError, TypeError: as `retrieval_metrics`.
    """
    _check_relevant(relevant)
    candidates = relevant.shape[1]
    totals, counts = np.unique(relevant.sum(1).cpu().numpy(), return_counts=True)
    share = counts / counts.sum()
    rank = np.arange(1, candidates + 1)
    hit = np.zeros(candidates)  # hit[k - 1]: probability that one of the first k candidates is relevant
    precision = 0.0
    for total, weight in zip(totals, share, strict=True):
        # The first k are all irrelevant with probability prod_{i<k} (C - R - i) / (C - i).
        hit += weight * (1 - np.cumprod(np.maximum(candidates - total - rank + 1, 0) / (candidates - rank + 1)))
        first = rank[:_AP_AT]
        others = (first - 1) * (total - 1) / max(candidates - 1, 1)
        precision += weight * total / (min(total, _AP_AT) * candidates) * ((1 + others) / first).sum()
    metrics = {f"R@{k}": 100 * float(hit[min(k, candidates) - 1]) for k in RECALL_AT}
    lower = int(np.argmax(hit >= 0.5 - 1e-9)) + 1
    upper = int(np.argmax(hit > 0.5 + 1e-9)) + 1
    return metrics | {f"mAP@{_AP_AT}": 100 * float(precision), "MedR": (lower + upper) / 2}


def tag_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Macro ROC-AUC and PR-AUC (average precision) over tags, from scikit-learn.

    Args:
        scores: score of each clip for each tag `[N, T]`.
        labels: boolean `[N, T]`.

    Returns:
        `"ROC-AUC"` and `"PR-AUC"` in percent, averaged over the tags with both a positive and a negative clip;
        `"tags"`, the number of these tags; `"left_out"`, the number of other tags, for which the areas are undefined.

    Raises:
        ValueError: shapes differ, a score is NaN, or no tag has both a positive and a negative clip.
        TypeError: `labels` is not boolean.
    """
    with optional_imports:
        from sklearn.metrics import average_precision_score, roc_auc_score

    if labels.dtype != torch.bool:
        raise TypeError(f"labels must be a boolean tensor [N, T], got {labels.dtype}")
    if scores.shape != labels.shape or scores.dim() != 2:
        raise ValueError(
            f"scores and labels must have the same shape [N, T], got {list(scores.shape)} and {list(labels.shape)}"
        )
    if scores.isnan().any():
        raise ValueError(f"scores are NaN in {int(scores.isnan().sum())} of {scores.numel()} places")
    usable = labels.any(0) & ~labels.all(0)
    kept = int(usable.sum())
    if not kept:
        raise ValueError(f"labels: none of {labels.shape[1]} tags has both a positive and a negative clip")
    truth = labels[:, usable].cpu().numpy()
    score = scores[:, usable].double().cpu().numpy()
    return {
        "ROC-AUC": 100 * float(roc_auc_score(truth, score, average="macro")),
        "PR-AUC": 100 * float(average_precision_score(truth, score, average="macro")),
        "tags": kept,
        "left_out": labels.shape[1] - kept,
    }


def label_ranking(scores: Tensor, labels: Tensor) -> float:
    """Label ranking average precision in percent, from scikit-learn: how far up the tags of each clip rank.

    Args:
        scores: score of each clip for each tag `[N, T]`.
        labels: boolean `[N, T]`; a clip with all tags or none counts as 100.
    """
    with optional_imports:
        from sklearn.metrics import label_ranking_average_precision_score

    return 100 * float(label_ranking_average_precision_score(labels.cpu().numpy(), scores.double().cpu().numpy()))


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Percentage of clips that score highest for their true class; a tie counts as wrong.

    Args:
        scores: score of each clip for each class `[N, K]`.
        labels: true class of each clip `[N]`, int64 in `0..K-1`.

    Raises:
        ValueError: shapes do not match, there is no clip, a score is NaN, or a label is out of range.
    """
    if scores.dim() != 2 or labels.shape != scores.shape[:1] or not scores.numel():
        raise ValueError(
            f"scores must be [N, K] and labels [N] with N, K >= 1, got {list(scores.shape)} and {list(labels.shape)}"
        )
    if scores.isnan().any():
        raise ValueError(f"scores are NaN in {int(scores.isnan().sum())} of {scores.numel()} places")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels must be in 0..{scores.shape[1] - 1}, got {int(labels.min())} to {int(labels.max())}")
    right = scores.gather(1, labels[:, None])
    others = scores.scatter(1, labels[:, None], -math.inf)
    return 100 * (right > others).sum(1).eq(scores.shape[1]).double().mean().item()
