"""The protocols that need times: moment retrieval, and detection of events by PSDS."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atk.data import Clip, open_data
from atk.data.side_files import Event, read_events
from atk.eval.embed import EmbeddingModel
from atk.eval.long_audio import FrameStream
from atk.eval.moment_evaluation import Curve, MomentQuery, calibrate, curves_of, queries_of, spans_of, with_absent
from atk.eval.moment_metrics import LONGEST, moment_metrics
from atk.eval.moment_queries import Phrases
from atk.eval.moments import MomentConfig
from atk.extras import optional_imports

if TYPE_CHECKING:
    import pandas as pd

_PSDS: dict[str, dict[str, Any]] = {  # of DCASE, task 4
    "PSDS1": {"dtc_threshold": 0.7, "gtc_threshold": 0.7, "alpha_ct": 0.0, "alpha_st": 1.0},
    "PSDS2": {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3, "alpha_ct": 0.5, "alpha_st": 1.0},
}
_MAX_FALSE_POSITIVES = 100.0  # per hour
_PHRASES = 5  # of a class


@dataclass(frozen=True)
class TimedEvaluation:
    """What the protocols are computed from: a model, the clips of a split, their events, and how they are read.

    `skipped` receives the files that cannot be decoded.
    """

    model: EmbeddingModel
    files: list[Clip]
    events: list[Event]
    config: MomentConfig
    skipped: list[tuple[str, str]]
    progress: str | None = None
    reading: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        model: EmbeddingModel,
        folder: str | Path,
        split: str,
        config: MomentConfig | None,
        progress: str | None = None,
        **reading: Any,
    ) -> "TimedEvaluation":
        """Read a split and its events.

        Raises:
            ValueError: no event belongs to a clip of the split; and as for `atk.data.read_data` and `read_events`.
        """
        files = open_data(str(folder)).first_with(split).read(split, reading.get("on_error", "skip"))
        listed = {clip.file_name for clip in files.clips}
        path = Path(folder) / "events.csv"
        events = [event for event in read_events(path) if event.file_name in listed]
        if not events:
            raise ValueError(f"{path} lists no event of the {len(listed)} clips of {split}.csv")
        reading = {"clip_seconds": 9.91, "batch_size": 32} | reading
        return cls(model, files.clips, events, config or MomentConfig(), list(files.skipped), progress, reading)

    @property
    def clips(self) -> int:
        """Number of clips of the split."""
        return len(self.files)

    def stream(self, clips: list[Clip]) -> FrameStream:
        """The frames of clips."""
        return FrameStream(self.model, clips, **self.reading)

    def queries(self) -> tuple[list[MomentQuery], list[tuple[str, str]]]:
        """The queries of the events, and the (file name, reason) of the events left out.

        Raises:
            ValueError: all are left out.
        """
        queries, left_out = queries_of(self.events, self.files)
        if not queries:
            name, reason = left_out[0]
            raise ValueError(
                f"events.csv: no event has a length in (0, {LONGEST:g}] s; the first, of {name}, is {reason}"
            )
        return queries, left_out

    def curves(self, queries: list[MomentQuery]) -> list[Curve]:
        """The curves of queries.

        Raises:
            ValueError: none of their clips can be decoded.
        """
        named = {query.file_name for query in queries}
        stream = self.stream([clip for clip in self.files if clip.file_name in named])
        curves = curves_of(self.model, stream, queries, self.progress)
        self.skipped.extend(stream.skipped)
        if not curves:
            raise ValueError(f"none of the {len(named)} clips with events can be decoded")
        return curves


def moments(given: TimedEvaluation) -> dict[str, Any]:
    """R1 and mAP of the spans found for the phrases of events, each in its own clip."""
    queries, left_out = given.queries()
    curves = given.curves(queries)
    spans = [spans_of(curve, given.model.frame_seconds, given.config) for curve in curves]
    metrics = moment_metrics(spans, [curve.query.windows for curve in curves])
    return {"queries": len(curves), "left_out": left_out, "settings": asdict(given.config), "metrics": metrics}


def choose_settings(
    model: EmbeddingModel, folder: str | Path, split: str, config: MomentConfig | None = None, **reading: Any
) -> dict[str, Any]:
    """Choose the threshold and the smoothing of moments on a split (see `calibrate`).

    Args:
        model: embeds the clips and the phrases.
        folder: data folder with an events.csv.
        split: split to use, which should not be the one to be evaluated.
        config: the other settings; None = the defaults.
        reading: further arguments of `embed_split`.

    Returns:
        `"config"`, the chosen `MomentConfig`; `"settings"`, the same as a dict; `"F1"` with them, in percent;
        `"queries"`, the number of phrases, and `"absent"`, of those that do not sound in their clip; `"skipped"` and
        `"left_out"`, the (name, reason) of files and of events that cannot be used.

    Raises:
        ValueError: as for `TimedEvaluation.read`, `queries`, and `curves`.
    """
    given = TimedEvaluation.read(model, folder, split, config, **reading)
    queries, left_out = given.queries()
    curves = given.curves(with_absent(queries))
    chosen, f1 = calibrate(curves, model.frame_seconds, given.config)
    absent = sum(not curve.query.windows for curve in curves)
    counts = {"queries": len(curves) - absent, "absent": absent, "skipped": given.skipped}
    return {"config": chosen, "settings": asdict(chosen), "F1": f1, "left_out": left_out} | counts


def require_psds() -> Any:
    """The package that computes PSDS.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    with optional_imports:
        import sed_scores_eval  # pyrefly: ignore[missing-import]
    return sed_scores_eval


def psds(given: TimedEvaluation) -> dict[str, Any]:
    """PSDS1 and PSDS2 of the classes in events.csv, whose phrases are the queries; with a single class, only PSDS1.

    Classes without an event in the clips that can be decoded are left out.

    Raises:
        ValueError: no class is left.
    """
    package = require_psds()
    phrases = class_phrases(given.events)
    text = Phrases(given.model, [phrase for few in phrases.values() for phrase in few])
    curves: dict[str, np.ndarray] = {}
    edges: dict[str, np.ndarray] = {}
    stream = given.stream(given.files)
    for clip, frames in stream.clips(text.curves, given.progress):
        of_classes = [frames.frames[:, text.columns(few)].mean(1).numpy() for few in phrases.values()]
        curves[clip.file_name] = np.stack(of_classes, 1)
        edges[clip.file_name] = np.arange(len(frames.frames) + 1) * given.model.frame_seconds
        edges[clip.file_name][-1] = max(clip.seconds, edges[clip.file_name][-2] + 1e-3)
    given.skipped.extend(stream.skipped)
    durations = {name: float(times[-1]) for name, times in edges.items()}
    truth, used, left_out = _true_events(given.events, durations)
    heard = {event for events in truth.values() for *_, event in events}
    classes = [(column, name) for column, name in enumerate(phrases) if name in heard]
    if not classes:
        raise ValueError("protocol psds: no clip of the split can be decoded and has an event")
    columns, names = map(list, zip(*classes, strict=True))
    frame_of = package.base_modules.scores.create_score_dataframe
    scores: dict[str, pd.DataFrame] = {
        name: frame_of(values[:, columns], edges[name], names) for name, values in curves.items()
    }
    result: dict[str, Any] = {"classes": len(names), "events": used, "left_out": left_out, "metrics": {}}
    for name, settings in _PSDS.items():
        if len(names) == 1 and "cttc_threshold" in settings:  # cross-triggers need another class
            continue
        value, *_ = package.intersection_based.psds(scores, truth, durations, max_efpr=_MAX_FALSE_POSITIVES, **settings)
        result["metrics"][name] = 100 * float(value)
    return result


def _true_events(
    events: list[Event], durations: dict[str, float]
) -> tuple[dict[str, list[tuple[float, float, str]]], int, list[tuple[str, str]]]:
    """What sounds in clips: (start, end, class), those of a class that touch or overlap as one, as PSDS asks for.

    Args:
        events: the events; those of other clips do not count.
        durations: the length of each clip.

    Returns:
        What sounds in each clip, the number of events in it, and the (file name, reason) of events beyond the end.
    """
    truth: dict[str, list[tuple[float, float, str]]] = {name: [] for name in durations}
    left_out: list[tuple[str, str]] = []
    used = 0
    for event in sorted(events, key=lambda event: (event.event, event.start)):
        if event.file_name not in durations:
            continue
        seconds, spans = durations[event.file_name], truth[event.file_name]
        start, end = event.start, min(event.end, seconds)
        if not start < end:
            reason = f"{event.phrase}: {event.start:g}-{event.end:g} s of a clip of {seconds:g} s"
            left_out.append((event.file_name, reason))
            continue
        used += 1
        if spans and spans[-1][2] == event.event and start <= spans[-1][1]:
            first, before, _ = spans.pop()
            start, end = first, max(before, end)
        spans.append((start, end, event.event))
    return truth, used, left_out


def class_phrases(events: list[Event]) -> dict[str, list[str]]:
    """The most frequent phrases of each class of events, at most five; equally frequent ones in alphabetical order."""
    counts: dict[str, Counter[str]] = {}
    for event in events:
        counts.setdefault(event.event, Counter())[event.phrase] += 1
    return {
        name: sorted(counts[name], key=lambda phrase: (-counts[name][phrase], phrase))[:_PHRASES]
        for name in sorted(counts)
    }
