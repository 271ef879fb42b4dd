"""Evaluate how well a model finds the moments of phrases, and choose the settings that find them best."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from atk.data import Clip
from atk.data.side_files import Event
from atk.eval.embed import EmbeddingModel
from atk.eval.long_audio import FrameStream
from atk.eval.moment_metrics import LONGEST, Window, detection_f1
from atk.eval.moment_queries import Phrases
from atk.eval.moments import MomentConfig, Span, find_moments, smoothed

_ABSENT = 4  # phrases of other clips for each phrase of a clip, when settings are chosen
_SMOOTH = (0.0, 0.2, 0.3, 0.5, 0.8)  # seconds
_LEVELS = 25  # thresholds to try


class MomentQuery(NamedTuple):
    """A phrase, and the `windows` of `file_name` in which it sounds; none if it sounds nowhere."""

    file_name: str
    phrase: str
    windows: tuple[Window, ...]


class Curve(NamedTuple):
    """The curve `[T]` of a query, with the `times [T]` of its frames."""

    query: MomentQuery
    curve: Tensor
    times: Tensor


def queries_of(events: Iterable[Event], clips: Sequence[Clip]) -> tuple[list[MomentQuery], list[tuple[str, str]]]:
    """One query for the events of a clip with the same name and phrase, and the (file name, reason) of those left out.

    As in lighthouse, windows are used as listed, except those without any length or longer than 1500 s.
    """
    listed = {clip.file_name for clip in clips}
    windows: dict[tuple[str, str, str], list[Window]] = {}
    left_out: list[tuple[str, str]] = []
    for event in events:
        if event.file_name not in listed:
            continue
        if 0 < event.end - event.start <= LONGEST:
            windows.setdefault((event.file_name, event.event, event.phrase), []).append((event.start, event.end))
        else:
            left_out.append((event.file_name, f"{event.phrase}: {event.end - event.start:g} s long"))
    return [MomentQuery(file, phrase, tuple(times)) for (file, _, phrase), times in windows.items()], left_out


def with_absent(queries: Sequence[MomentQuery]) -> list[MomentQuery]:
    """The queries, and for each of them phrases of the clips that follow, which sound nowhere in its clip."""
    phrases: dict[str, set[str]] = {}
    for query in queries:
        phrases.setdefault(query.file_name, set()).add(query.phrase)
    absent = []
    for index, query in enumerate(queries):
        following = itertools.islice(itertools.cycle(queries), index + 1, index + len(queries))
        others = (other.phrase for other in following if other.phrase not in phrases[query.file_name])
        absent += [MomentQuery(query.file_name, phrase, ()) for phrase in itertools.islice(others, _ABSENT)]
    return [*queries, *dict.fromkeys(absent)]


def curves_of(
    model: EmbeddingModel, stream: FrameStream, queries: Sequence[MomentQuery], progress: str | None = None
) -> list[Curve]:
    """The curves of queries, clip by clip; those of clips that cannot be decoded are missing."""
    phrases = Phrases(model, [query.phrase for query in queries])
    by_file: dict[str, list[MomentQuery]] = {}
    for query in queries:
        by_file.setdefault(query.file_name, []).append(query)
    curves = []
    for clip, frames in stream.clips(progress=progress):
        mine = by_file.get(clip.file_name, [])
        scores = phrases.curves(frames.frames, [query.phrase for query in mine])
        curves += [Curve(query, curve, frames.times) for query, curve in zip(mine, scores.T, strict=True)]
    return curves


def spans_of(curve: Curve, frame_seconds: float, config: MomentConfig, at_least_one: bool = True) -> list[Span]:
    """The spans of a query, best first; if nothing reaches the threshold, those above half the curve's height."""
    moments = find_moments(curve.curve[None], curve.times, frame_seconds, config)
    if not moments and at_least_one:
        moments = find_moments(curve.curve[None], curve.times, frame_seconds, replace(config, threshold=None))
    return [moment.parts[0] for moment in moments]


def calibrate(
    curves: Sequence[Curve], frame_seconds: float, config: MomentConfig | None = None
) -> tuple[MomentConfig, float]:
    """Choose the width of smoothing and the threshold with the highest F1 of spans, which must have an IoU of 0.5.

    Args:
        curves: curves of queries, some of which should sound nowhere (see `with_absent`).
        frame_seconds: duration of a frame, in seconds.
        config: the other settings; None = the defaults.

    Returns:
        The settings, and their F1 in percent.

    Raises:
        ValueError: there is no curve.
    """
    if not curves:
        raise ValueError("curves: at least one is needed to choose a threshold, got none")
    config = config or MomentConfig()
    truth = [curve.query.windows for curve in curves]

    def score(candidate: MomentConfig) -> float:
        return detection_f1([spans_of(curve, frame_seconds, candidate, False) for curve in curves], truth)

    candidates = []
    for smooth in _SMOOTH:
        peaks = torch.stack([smoothed(curve.curve, round(smooth / frame_seconds)).max() for curve in curves])
        levels = torch.linspace(float(peaks.quantile(0.02)) / 2, float(peaks.quantile(0.98)), _LEVELS)
        candidates += [replace(config, smooth=smooth, threshold=round(level, 4)) for level in levels.tolist()]
    f1, _, best = max((score(candidate), -index, candidate) for index, candidate in enumerate(candidates))
    return best, f1
