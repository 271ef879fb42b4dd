"""Metrics of moments, compared with a literal implementation of the published definition, and the timed protocols."""

import csv
import sys
import types

import numpy as np
import pytest
import soundfile
from support.fake_model import RATE, FakeModel, sound

from atk.data.side_files import Event
from atk.eval.moment_metrics import THRESHOLDS, average_precision, detection_f1, moment_metrics
from atk.eval.moments import Span
from atk.eval.protocols import check_protocols, evaluate_protocols
from atk.eval.timed_protocols import choose_settings, class_phrases


def iou(a, b):
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return inter / union if union else 0.0


def literal(predicted, truth):
    """R1 and mAP step by step: for AP, a precision-recall curve, made monotone and summed over changes of recall."""
    aps, firsts = [], []
    for spans, windows in zip(predicted, truth, strict=True):
        firsts.append(max((iou(spans[0], window) for window in windows), default=0.0) if spans else 0.0)
        row = []
        for step in range(10):
            threshold = round(0.5 + 0.05 * step, 2)
            used: set[int] = set()
            hits = []
            for span in sorted(spans[:10], key=lambda span: span.score, reverse=True):
                order = sorted(range(len(windows)), key=lambda index: iou(span, windows[index]), reverse=True)
                hit = next((i for i in order if i not in used and iou(span, windows[i]) >= threshold), None)
                used |= set() if hit is None else {hit}
                hits.append(hit is not None)
            recall, precision = [0.0], [0.0]
            for count in range(1, len(hits) + 1):
                recall.append(sum(hits[:count]) / len(windows))
                precision.append(sum(hits[:count]) / count)
            recall.append(1.0)
            precision.append(0.0)
            ceiling = [max(precision[index:]) for index in range(len(precision))]
            steps = range(1, len(recall))
            row.append(sum((recall[i] - recall[i - 1]) * ceiling[i] for i in steps))
        aps.append(row)
    mean = np.mean(aps, axis=0)
    return {
        "R1@0.5": 100 * np.mean([first >= 0.5 for first in firsts]),
        "R1@0.7": 100 * np.mean([first >= 0.7 for first in firsts]),
        "mAP@0.5": 100 * mean[0],
        "mAP@0.75": 100 * mean[5],
        "mAP": 100 * mean.mean(),
    }


def test_the_published_example():
    spans = [Span(11, 20, 0.9), Span(41, 45, 0.8), Span(40, 50, 0.7)]
    metrics = moment_metrics([spans], [[(10, 20), (40, 50)]])
    assert {name: round(value, 2) for name, value in metrics.items()} == {
        "R1@0.5": 100,
        "R1@0.7": 100,
        "mAP@0.5": 83.33,
        "mAP@0.75": 83.33,
        "mAP": 76.67,
    }


@pytest.mark.parametrize("seed", range(20))
def test_random_spans(seed):
    """Times on a grid make ties and exact thresholds; scores tie, too; some queries have more than 10 spans."""
    draw = np.random.default_rng(seed)

    def windows(count):
        pairs = draw.integers((0, 1), (20, 8), (count, 2)).tolist()
        return [(float(start), float(start + length)) for start, length in pairs]

    truth = [windows(draw.integers(1, 4)) for _ in range(12)]
    predicted = [[Span(*window, float(draw.integers(1, 6))) for window in windows(draw.integers(0, 15))] for _ in truth]
    assert moment_metrics(predicted, truth) == pytest.approx(literal(predicted, truth))


def test_the_first_listed_span_counts_for_r1_and_the_first_ten_for_map():
    right, wrong = Span(0, 1, 0.1), Span(5, 6, 0.9)
    assert moment_metrics([[wrong, right]], [[(0, 1)]])["R1@0.5"] == 0
    assert moment_metrics([[wrong] * 10 + [right]], [[(0, 1)]])["mAP"] == 0
    assert average_precision([right, wrong], [(0, 1)], 0.5) == 0.5  # sorted by score
    with pytest.raises(ValueError, match="every query needs true windows"):
        moment_metrics([[right]], [[]])
    assert THRESHOLDS[0] == 0.5 and THRESHOLDS[-1] == 0.95


def test_f1_counts_spans_of_phrases_that_sound_nowhere():
    span = Span(0, 1, 1)
    assert detection_f1([[span]], [[(0, 1)]]) == 100
    assert detection_f1([[span], [span]], [[(0, 1)], []]) == pytest.approx(100 * 2 / 3)
    assert detection_f1([[], []], [[], []]) == 0


@pytest.fixture
def folder(tmp_path):
    """Three clips with known events; the last one is longer than three windows."""
    clips = {
        "a.wav": [("dog", 3, 6)],
        "b.wav": [("bell", 0, 5), ("dog", 6, 9)],
        "c.wav": [("engine", 20, 31), ("engine", 36, 40)],
    }
    rows = []
    for name, events in clips.items():
        names = [""] * (44 if name == "c.wav" else 10)
        for event, first, end in events:
            names[first:end] = [event] * (end - first)
            rows.append((name, event, event, first / 10, end / 10))
        soundfile.write(tmp_path / name, sound(*names), RATE)
    for table, header, lines in (
        ("test.csv", ("file_name", "caption"), [(name, "x") for name in clips]),
        ("events.csv", Event._fields, rows),
    ):
        with (tmp_path / table).open("w", newline="") as file:
            csv.writer(file).writerows([header, *lines])
    return tmp_path


def test_moments_of_a_model_that_knows_the_sounds(folder):
    options = {"clip_seconds": 1.0, "batch_size": 2}
    result = evaluate_protocols(FakeModel(), folder, ["moments"], **options)["moments"]
    assert (result["queries"], result["clips"], result["skipped"], result["left_out"]) == (4, 3, [], [])
    assert result["settings"]["smooth"] == 0.3 and result["split"] == "test"
    assert result["metrics"]["R1@0.5"] == result["metrics"]["mAP@0.5"] == 100
    (folder / "b.wav").write_bytes((folder / "b.wav").read_bytes()[:5000])
    result = evaluate_protocols(FakeModel(), folder, ["moments"], **options)["moments"]
    assert result["queries"] == 2 and [name for name, _ in result["skipped"]] == ["b.wav"]


def spoil(path):
    soundfile.write(path, np.full(8000, np.nan, dtype=np.float32), RATE, subtype="FLOAT")


def test_settings_are_chosen_from_the_clips_with_usable_events(folder):
    with (folder / "events.csv").open("a") as file:
        file.write("a.wav,bell,ding,0.5,0.5\n")
    soundfile.write(folder / "d.wav", sound("dog"), RATE)  # without an event
    (folder / "val.csv").write_text((folder / "test.csv").read_text() + "d.wav,x\n")
    spoil(folder / "c.wav")
    model = FakeModel()
    chosen = choose_settings(model, folder, "val", clip_seconds=1.0, batch_size=1)
    assert chosen["F1"] == 100 and chosen["config"].threshold is not None
    assert (chosen["queries"], chosen["absent"]) == (3, 3)
    assert [name for name, _ in chosen["skipped"]] == ["c.wav"]
    assert chosen["left_out"] == [("a.wav", "ding: 0 s long")]
    assert model.calls == 2  # for a.wav and b.wav


def evaluate_moments(model, folder, split):
    return evaluate_protocols(model, folder, ["moments"], split=split)


@pytest.mark.parametrize("run", [evaluate_moments, choose_settings])
def test_events_that_cannot_be_used_are_named(folder, run):
    (folder / "events.csv").write_text("file_name,event,phrase,start,end\na.wav,dog,a dog,1,1\n")
    with pytest.raises(
        ValueError, match=r"no event has a length in \(0, 1500\] s; the first, of a\.wav, is a dog: 0 s"
    ):
        run(FakeModel(), folder, "test")
    (folder / "events.csv").write_text("file_name,event,phrase,start,end\na.wav,dog,a dog,0,1\n")
    spoil(folder / "a.wav")
    with pytest.raises(ValueError, match="none of the 1 clips with events can be decoded"):
        run(FakeModel(), folder, "test")


def test_timed_protocols_name_what_is_missing(folder):
    with pytest.raises(ValueError, match="protocol moments needs clip_seconds, got null"):
        check_protocols(["moments"], folder, clip_seconds=None)
    (folder / "events.csv").write_text("file_name,event,phrase,start,end\nz.wav,dog,dog,0,1\n")
    with pytest.raises(ValueError, match=r"events\.csv lists no event of the 3 clips of test\.csv"):
        evaluate_protocols(FakeModel(), folder, ["moments"])
    (folder / "events.csv").unlink()
    with pytest.raises(ValueError, match=r"protocol moments needs .*events\.csv, which is missing"):
        check_protocols(["moments"], folder)


def test_psds_of_a_model_that_knows_the_sounds(folder):
    pytest.importorskip("sed_scores_eval", exc_type=ImportError, reason="needs the extra psds")
    result = evaluate_protocols(FakeModel(), folder, ["psds"], clip_seconds=1.0)["psds"]
    assert result["metrics"] == pytest.approx({"PSDS1": 100, "PSDS2": 100})
    assert (result["classes"], result["events"]) == (3, 5)


def psds_package(monkeypatch, calls):
    """A stand-in for sed_scores_eval, which records what PSDS is computed from."""

    def psds(scores, truth, durations, **settings):
        calls.append((scores, truth, durations, settings))
        return 0.25 * len(calls), {}

    scores = types.SimpleNamespace(create_score_dataframe=lambda *parts: parts)
    package = types.SimpleNamespace(
        base_modules=types.SimpleNamespace(scores=scores), intersection_based=types.SimpleNamespace(psds=psds)
    )
    monkeypatch.setitem(sys.modules, "sed_scores_eval", package)


def test_psds_gets_the_scores_of_classes_and_the_events_in_each_clip(folder, monkeypatch):
    psds_package(monkeypatch, calls := [])
    with (folder / "events.csv").open("a") as file:
        file.write("a.wav,dog,a dog,0.9,5\nb.wav,bell,bell,3,4\n")  # cut at the end of the clip, and after it
    spoil(folder / "c.wav")
    result = evaluate_protocols(FakeModel(), folder, ["psds"], clip_seconds=1.0)["psds"]
    assert result["metrics"] == {"PSDS1": 25, "PSDS2": 50} and (result["classes"], result["events"]) == (2, 4)
    assert result["left_out"] == [("b.wav", "bell: 3-4 s of a clip of 1 s")]
    assert [name for name, _ in result["skipped"]] == ["c.wav"]
    (scores, truth, durations, settings), (*_, cross) = calls
    assert truth == {
        "a.wav": [(pytest.approx(0.3), pytest.approx(0.6), "dog"), (0.9, pytest.approx(1), "dog")],
        "b.wav": [(0, 0.5, "bell"), (pytest.approx(0.6), pytest.approx(0.9), "dog")],
    }
    assert durations == {"a.wav": pytest.approx(1), "b.wav": pytest.approx(1)}
    assert settings["max_efpr"] == cross["max_efpr"] == 100
    assert (settings["dtc_threshold"], settings["alpha_ct"]) == (0.7, 0) and "cttc_threshold" not in settings
    assert (cross["dtc_threshold"], cross["cttc_threshold"], cross["alpha_ct"]) == (0.1, 0.3, 0.5)
    heard, edges, classes = scores["b.wav"]
    assert classes == ["bell", "dog"] and edges.tolist() == pytest.approx([i / 10 for i in range(11)])
    assert heard[:, 0].tolist() == pytest.approx([1] * 5 + [0] * 5)


def test_psds_of_one_class_and_of_no_clip(folder, monkeypatch):
    psds_package(monkeypatch, [])
    (folder / "events.csv").write_text("file_name,event,phrase,start,end\na.wav,dog,dog,0.3,0.6\n")
    result = evaluate_protocols(FakeModel(), folder, ["psds"], clip_seconds=1.0)["psds"]
    assert result["metrics"].keys() == {"PSDS1"}  # there is no other class to be confused with
    for name in ("a.wav", "b.wav", "c.wav"):
        spoil(folder / name)
    with pytest.raises(ValueError, match="protocol psds: no clip of the split can be decoded"):
        evaluate_protocols(FakeModel(), folder, ["psds"], clip_seconds=1.0)


def test_psds_joins_events_that_overlap_and_leaves_out_classes_that_sound_nowhere(folder):
    pytest.importorskip("sed_scores_eval", exc_type=ImportError, reason="needs the extra psds")
    rows = [line.split(",") for line in (folder / "events.csv").read_text().split()[1:]]
    file, event, phrase, start, end = next(row for row in rows if row[1] == "dog")
    middle = (float(start) + float(end)) / 2
    with (folder / "events.csv").open("a", newline="") as table:
        csv.writer(table).writerows(
            [(file, event, phrase, start, middle), (file, event, phrase, middle, end), ("a.wav", "train", "x", 90, 91)]
        )
    result = evaluate_protocols(FakeModel(), folder, ["psds"], clip_seconds=1.0)["psds"]
    assert result["metrics"] == pytest.approx({"PSDS1": 100, "PSDS2": 100})
    assert (result["classes"], result["events"]) == (3, 7)
    assert [name for name, _ in result["left_out"]] == ["a.wav"]


def test_the_phrases_of_a_class():
    counts = {"f": 1, "b": 2, "a": 1, "c": 1, "d": 1, "e": 1}
    events = [Event("a.wav", "dog", phrase, 0, 1) for phrase, count in counts.items() for _ in range(count)]
    assert class_phrases([*events, Event("a.wav", "bell", "ding", 0, 1)]) == {
        "bell": ["ding"],
        "dog": ["b", "a", "c", "d", "e"],
    }
