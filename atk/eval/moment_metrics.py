"""Metrics of moment retrieval, as Moment-DETR (QVHighlights) and lighthouse define them, and of detection by spans."""

from collections.abc import Sequence

import numpy as np

from atk.eval.moments import Span, overlap_of

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
MOST_WINDOWS = 10  # predictions of a query that mAP uses
LONGEST = 1500.0  # seconds; longer true windows are left out

Window = tuple[float, float]


def moment_metrics(predicted: Sequence[Sequence[Span]], truth: Sequence[Sequence[Window]]) -> dict[str, float]:
    """Recall at 1 and mean average precision of the spans that were found for queries.

    A query's first span counts for R1 if its best intersection over union (IoU) with a true window reaches the
    threshold. For AP, the first 10 spans are matched by descending score, each with the free true window of the highest
    IoU, and precision is interpolated. mAP is the mean over queries, then over the IoU thresholds 0.5, 0.55, ..., 0.95.

    Args:
        predicted: spans of each of Q queries, best first.
        truth: true windows (start, end) of each query, in seconds, at least one.

    Returns:
        `"R1@0.5"`, `"R1@0.7"`, `"mAP@0.5"`, `"mAP@0.75"`, and `"mAP"`, in percent. A query without a span counts as 0.

    Raises:
        ValueError: the numbers of queries differ, there are none, or a query has no true window.
    """
    if len(predicted) != len(truth) or not truth or not all(truth):
        raise ValueError(
            f"every query needs true windows, got spans of {len(predicted)} queries and windows of {len(truth)}, "
            f"{sum(not windows for windows in truth)} of them without any"
        )
    first = np.array(
        [
            max(overlap_of(spans[0], window) for window in windows) if spans else 0.0
            for spans, windows in zip(predicted, truth, strict=True)
        ]
    )
    precision = np.array(
        [
            [average_precision(spans[:MOST_WINDOWS], windows, threshold) for threshold in THRESHOLDS]
            for spans, windows in zip(predicted, truth, strict=True)
        ]
    ).mean(0)
    return {
        "R1@0.5": 100 * float((first >= 0.5).mean()),
        "R1@0.7": 100 * float((first >= 0.7).mean()),
        "mAP@0.5": 100 * float(precision[THRESHOLDS.index(0.5)]),
        "mAP@0.75": 100 * float(precision[THRESHOLDS.index(0.75)]),
        "mAP": 100 * float(precision.mean()),
    }


def matches(spans: Sequence[Span], windows: Sequence[Window], threshold: float) -> list[bool]:
    """Whether each span matches a true window, in this order: the free one of the highest IoU, if it is high enough."""
    free = list(windows)
    matched = []
    for span in spans:
        best = max(free, key=lambda window: overlap_of(span, window), default=None)
        matched.append(best is not None and overlap_of(span, best) >= threshold)
        if matched[-1] and best is not None:
            free.remove(best)
    return matched


def average_precision(spans: Sequence[Span], windows: Sequence[Window], threshold: float) -> float:
    """Interpolated average precision of the spans of a query: the mean over true windows of the best precision from
    there on."""
    matched = np.array(matches(sorted(spans, key=lambda span: -span.score), windows, threshold))
    if not matched.any():
        return 0.0
    precision = matched.cumsum() / np.arange(1, len(matched) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best_from_here[matched].sum() / len(windows))


def detection_f1(
    predicted: Sequence[Sequence[Span]], truth: Sequence[Sequence[Window]], threshold: float = 0.5
) -> float:
    """F1 in percent of all spans found for queries, some of which sound nowhere (no window); 0 without a match."""
    hits = sum(sum(matches(spans, windows, threshold)) for spans, windows in zip(predicted, truth, strict=True))
    total = sum(map(len, predicted)) + sum(map(len, truth))
    return 200 * hits / total if total else 0.0
