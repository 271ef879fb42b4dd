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
from atk.eval.moment_evaluation import calibrate, curves_of, queries_of, spans_of, with_absent
from atk.eval.moment_metrics import moment_metrics
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


def moments(given: TimedEvaluation) -> dict[str, Any]:
    """R1 and mAP of the spans found for the phrases of events, each in its own clip."""
    queries, left_out = queries_of(given.events, given.files)
    named = {query.file_name for query in queries}
    stream = given.stream([clip for clip in given.files if clip.file_name in named])
    curves = curves_of(given.model, stream, queries, given.progress)
    given.skipped.extend(stream.skipped)
    if not curves:
        raise ValueError(
            f"protocol moments: no event has a length in (0, 1500] s and a clip that can be decoded; {left_out[:3]}"
        )
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
        `"queries"`, the number of phrases, and `"absent"`, of those that do not sound in their clip; `"skipped"`.

    Raises:
        ValueError: as for `TimedEvaluation.read`, or no clip can be decoded.
    """
    given = TimedEvaluation.read(model, folder, split, config, **reading)
    queries, _ = queries_of(given.events, given.files)
    stream = given.stream(given.files)
    curves = curves_of(model, stream, with_absent(queries), given.progress)
    chosen, f1 = calibrate(curves, model.frame_seconds, given.config)
    absent = sum(not curve.query.windows for curve in curves)
    counts = {"queries": len(curves) - absent, "absent": absent, "skipped": given.skipped + stream.skipped}
    return {"config": chosen, "settings": asdict(chosen), "F1": f1} | counts


def require_psds() -> Any:
    """The package that computes PSDS.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    with optional_imports:
        import sed_scores_eval  # pyrefly: ignore[missing-import]
    return sed_scores_eval


def psds(given: TimedEvaluation) -> dict[str, Any]:
    """PSDS1 and PSDS2 of the classes in events.csv, whose phrases are the queries; with a single class, only PSDS1."""
    package = require_psds()
    phrases = class_phrases(given.events)
    text = Phrases(given.model, [phrase for few in phrases.values() for phrase in few])
    columns = {name: text.columns(few) for name, few in phrases.items()}
    scores: dict[str, pd.DataFrame] = {}
    durations: dict[str, float] = {}
    stream = given.stream(given.files)
    for clip, frames in stream.clips(text.curves, given.progress):
        curves = np.stack([frames.frames[:, few].mean(1).numpy() for few in columns.values()], 1)
        edges = np.arange(len(curves) + 1) * given.model.frame_seconds
        edges[-1] = max(clip.seconds, edges[-2] + 1e-3)
        scores[clip.file_name] = package.base_modules.scores.create_score_dataframe(curves, edges, list(columns))
        durations[clip.file_name] = float(edges[-1])
    given.skipped.extend(stream.skipped)
    truth: dict[str, list[tuple[float, float, str]]] = {name: [] for name in scores}
    for event in given.events:
        if event.file_name in truth and event.start < min(event.end, durations[event.file_name]):
            end = min(event.end, durations[event.file_name])
            truth[event.file_name].append((event.start, end, event.event))
    if not scores:
        raise ValueError("protocol psds: no clip of the split can be decoded")
    result: dict[str, Any] = {"classes": len(columns), "events": sum(map(len, truth.values())), "metrics": {}}
    for name, settings in _PSDS.items():
        if len(columns) == 1 and "cttc_threshold" in settings:  # cross-triggers need another class
            continue
        value, *_ = package.intersection_based.psds(scores, truth, durations, max_efpr=_MAX_FALSE_POSITIVES, **settings)
        result["metrics"][name] = 100 * float(value)
    return result


def class_phrases(events: list[Event]) -> dict[str, list[str]]:
    """The most frequent phrases of each class of events, at most five; equally frequent ones in alphabetical order."""
    counts: dict[str, Counter[str]] = {}
    for event in events:
        counts.setdefault(event.event, Counter())[event.phrase] += 1
    return {
        name: sorted(counts[name], key=lambda phrase: (-counts[name][phrase], phrase))[:_PHRASES]
        for name in sorted(counts)
    }
