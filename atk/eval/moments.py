"""Moments: the times at which curves of scores, one value per frame, say that something sounds."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from atk.ops.checks import at_least

_HEIGHT = 0.4  # of a curve, above which something sounds if there is no threshold


class Span(NamedTuple):
    """A stretch of a recording: `start` and `end` in seconds, and its score."""

    start: float
    end: float
    score: float


class Moment(NamedTuple):
    """What answers a query: from the start of the first to the end of the last of its `parts`, one for each phrase."""

    start: float
    end: float
    score: float
    parts: tuple[Span, ...]


@dataclass(frozen=True)
class MomentConfig:
    """How spans are made from curves.

    Args:
        smooth: width of the moving average, in seconds; 0 = none.
        threshold: a span is where the curve is at least this high; None = 40 % of the way from the lowest tenth of each
            curve to its maximum, so that every recording has a span.
        merge: spans with at most this much time between them are one, in seconds.
        overlap: of two spans with a higher intersection over union than this, only the better one is kept.
        within: longest time between two parts of a query that follow each other, in seconds.
    """

    smooth: float = 0.3
    threshold: float | None = None
    merge: float = 0.3
    overlap: float = 0.5
    within: float = 5.0

    def __post_init__(self) -> None:
        for name in ("smooth", "merge", "within"):
            at_least(name, getattr(self, name), 0)
        if self.smooth == math.inf:
            raise ValueError("smooth must be a finite number, got inf")
        if self.threshold is not None and not -math.inf < self.threshold < math.inf:
            raise ValueError(f"threshold must be a finite number or None, got {self.threshold}")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap must be in [0, 1], got {self.overlap}")


def smoothed(curves: Tensor, frames: int) -> Tensor:
    """Moving average of curves `[..., T]` over `frames` frames, made odd; at the ends, over those that exist."""
    half = min(frames // 2, curves.shape[-1])
    if not half or curves.shape[-1] < 2:
        return curves
    flat = F.avg_pool1d(
        curves.reshape(-1, 1, curves.shape[-1]), 2 * half + 1, stride=1, padding=half, count_include_pad=False
    )
    return flat.reshape(curves.shape)


def level_of(curve: Tensor, config: MomentConfig) -> float:
    """The threshold for a curve `[T]`."""
    if config.threshold is not None:
        return config.threshold
    floor = float(curve.kthvalue(1 + (len(curve) - 1) // 10).values)
    return floor + _HEIGHT * (float(curve.max()) - floor)


def spans_above(curve: Tensor, times: Tensor, frame_seconds: float, threshold: float, merge: float = 0.0) -> list[Span]:
    """The stretches in which a curve is at least as high as a threshold, in the order of time.

    Args:
        curve: scores `[T]`.
        times: centers of the frames `[T]`, in seconds, evenly spaced.
        frame_seconds: duration of a frame; spans reach to the edges of their frames.
        threshold: lowest score inside a span.
        merge: stretches with at most this many seconds between them become one span.

    Returns:
        Spans, each scored by the maximum of the curve in it.

    Raises:
        ValueError: a score is NaN.
    """
    if curve.isnan().any():
        raise ValueError("curve: a score is NaN")
    scores, centers = curve.numpy(), times.numpy()
    above = np.concatenate(([False], scores >= threshold, [False]))
    bounds = np.flatnonzero(above[1:] != above[:-1]).reshape(-1, 2).tolist()
    runs: list[list[int]] = []
    for first, end in bounds:
        if runs and centers[first] - centers[runs[-1][1] - 1] - frame_seconds <= merge + 1e-6:
            runs[-1][1] = end
        else:
            runs.append([first, end])
    half = frame_seconds / 2
    return [
        Span(max(0.0, float(centers[first]) - half), float(centers[end - 1]) + half, float(scores[first:end].max()))
        for first, end in runs
    ]


def overlap_of(first: tuple[Any, ...], second: tuple[Any, ...]) -> float:
    """Intersection over union of two stretches (start, end, ...); 0 if both are empty."""
    shared = min(first[1], second[1]) - max(first[0], second[0])
    union = max(first[1], second[1]) - min(first[0], second[0])  # if they intersect, which is all that counts
    return max(0.0, shared) / union if union > 0 else 0.0


def best_first(moments: Sequence[Moment], overlap: float, top: int | None = None) -> list[Moment]:
    """At most `top` moments by descending score, none of which overlaps with a better one by more than `overlap`."""
    kept: list[Moment] = []
    for moment in sorted(moments, key=lambda moment: (-moment.score, moment.start)):
        if len(kept) == top:
            break
        if all(overlap_of(moment, better) <= overlap for better in kept):
            kept.append(moment)
    return kept


def in_order(parts: Sequence[Sequence[Span]], within: float) -> list[Moment]:
    """The best chain of spans for each span of the last part: one span of every part, each after the one before.

    A span comes after another if its center does, and if it starts at most `within` seconds after the other's end.

    Args:
        parts: the spans of each part of a query, in the order in which the parts must sound. The spans of a part do not
            overlap, and come in the order of time.
        within: seconds.

    Returns:
        Moments, each scored by the mean of its parts.
    """
    chains: list[tuple[Span, ...]] = [(span,) for span in parts[0]]
    for spans in parts[1:]:
        longer: list[tuple[Span, ...]] = []
        ends = [chain[-1].end for chain in chains]
        centers = [chain[-1].start + chain[-1].end for chain in chains]
        for span in spans:
            near = chains[bisect_left(ends, span.start - within) : bisect_left(centers, span.start + span.end)]
            if near:
                longer.append((*max(near, key=_total), span))
        chains = longer
    return [
        Moment(chain[0].start, max(span.end for span in chain), _total(chain) / len(chain), chain) for chain in chains
    ]


def _total(chain: Sequence[Span]) -> float:
    return sum(span.score for span in chain)


def find_moments(
    curves: Tensor, times: Tensor, frame_seconds: float, config: MomentConfig | None = None, top: int | None = None
) -> list[Moment]:
    """The moments at which a query sounds: the spans of its phrase, or chains of the spans of several phrases.

    Args:
        curves: scores `[P, T]` of the frames of a recording for each of the P phrases of a query, in the order in which
            they must sound.
        times: centers of the frames `[T]`, in seconds, evenly spaced.
        frame_seconds: duration of a frame, in seconds.
        config: how spans are made; None = the defaults.
        top: how many moments to return; None = all.

    Returns:
        Moments, best first.

    Raises:
        ValueError: a score is NaN.
    """
    config = config or MomentConfig()
    if not curves.shape[-1]:
        return []
    curves = smoothed(curves, round(config.smooth / frame_seconds))
    parts = [
        spans_above(curve, times, frame_seconds, level_of(curve, config), config.merge) for curve in curves.unbind()
    ]
    return best_first(in_order(parts, config.within), config.overlap, top)
