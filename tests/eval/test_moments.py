"""Spans and moments from hand-made curves, queries that are sequences, search in recordings, and its figures."""

import json
import math
import re
import time

import pytest
import soundfile
import torch
from support.fake_model import FRAME, RATE, FakeModel, sound

from atk.data import AudioError
from atk.data.captions import Clip
from atk.data.side_files import Event
from atk.eval.moment_evaluation import Curve, MomentQuery, calibrate, queries_of, spans_of, with_absent
from atk.eval.moment_figure import draw_moment
from atk.eval.moment_queries import Phrases, phrases_of
from atk.eval.moment_search import MomentHit, search_moments
from atk.eval.moment_settings import save_moments, saved_moments
from atk.eval.moments import (
    Moment,
    MomentConfig,
    Span,
    best_first,
    find_moments,
    in_order,
    overlap_of,
    smoothed,
    spans_above,
)

PLAIN = MomentConfig(smooth=0, threshold=0.5, merge=0)


def times(count):
    return (torch.arange(count, dtype=torch.float64) + 0.5) * 0.1


def curve(text):
    """One digit per frame of 0.1 s, in tenths."""
    return torch.tensor([int(digit) / 10 for digit in text])


def moments_of(text, *more, **settings):
    """(start, end, score) of the moments of curves, in tenths."""
    curves = torch.stack([curve(row) for row in (text, *more)])
    config = MomentConfig(**{"smooth": 0, "threshold": 0.5, "merge": 0} | settings)
    moments = find_moments(curves, times(len(text)), 0.1, config)
    return [tuple(round(10 * value, 3) for value in moment[:3]) for moment in moments]


@pytest.mark.parametrize(
    ("text", "merge", "spans"),
    [
        ("0000000", 0, []),
        ("0550670", 0, [(1, 3, 5), (4, 6, 7)]),
        ("0550670", 0.1, [(1, 6, 7)]),
        ("5000005", 0.4, [(0, 1, 5), (6, 7, 5)]),
        ("5000005", 0.5, [(0, 7, 5)]),
        ("9999999", 0, [(0, 7, 9)]),
    ],
)
def test_spans_reach_to_the_edges_of_their_frames(text, merge, spans):
    got = spans_above(curve(text), times(len(text)), 0.1, 0.5, merge)
    assert [tuple(round(10 * value, 3) for value in span) for span in got] == spans


def test_spans_keep_times_far_from_the_start():
    hours = times(40) + 7200
    [span] = spans_above(curve("0" * 10 + "7" * 20 + "0" * 10), hours, 0.1, 0.5)
    assert span[:2] == pytest.approx((7201, 7203), abs=1e-6)


def test_smoothing_averages_what_exists():
    torch.testing.assert_close(smoothed(curve("0900"), 3), torch.tensor([0.45, 0.3, 0.3, 0.0]))
    torch.testing.assert_close(smoothed(curve("0900")[None], 2)[0], smoothed(curve("0900"), 3))
    assert torch.equal(smoothed(curve("0900"), 1), curve("0900"))
    torch.testing.assert_close(smoothed(curve("0900"), 10**12), torch.full((4,), 0.225))
    assert moments_of("0090990", smooth=0.3, threshold=0.55) == [(3, 6, 6)]


def test_without_a_threshold_half_of_the_height_counts():
    assert moments_of("1111311", threshold=None) == [(4, 5, 3)]
    assert moments_of("1111111", threshold=None) == [(0, 7, 1)]


def test_of_overlapping_moments_the_best_remains():
    spans = [Moment(*values, ()) for values in ((0, 10, 0.5), (0, 6, 0.9), (5, 10, 0.7), (20, 30, 0.1))]
    assert [moment.score for moment in best_first(spans, 0.4)] == [0.9, 0.7, 0.1]
    assert [moment.score for moment in best_first(spans, 0.05)] == [0.9, 0.1]
    assert [moment.score for moment in best_first(spans, 0.4, 2)] == [0.9, 0.7]
    assert overlap_of((0, 4), (2, 6)) == pytest.approx(1 / 3)
    assert overlap_of((0, 1), (2, 3)) == overlap_of((1, 1), (1, 1)) == 0


def test_a_sequence_is_found_only_in_its_order():
    first, second = "0090000000900", "0000080600000"
    assert moments_of(first, second, overlap=0.7) == [(2, 6, 8.5), (2, 8, 7.5)]
    assert moments_of(first, second) == [(2, 6, 8.5)]
    assert moments_of(second, first) == [(5, 11, 8.5)]  # of both chains that end there, the better one
    assert moments_of(first, second, within=0.25) == [(2, 6, 8.5)]
    assert moments_of(first, "0800000000000") == []


def test_a_sequence_of_three_takes_the_best_chain():
    parts = [[Span(0, 1, 0.6), Span(2, 3, 0.9)], [Span(1.5, 1.8, 0.8), Span(4, 5, 0.6)], [Span(6, 7, 0.9)]]
    [moment] = in_order(parts, 10)
    assert moment.parts == (parts[0][1], parts[1][1], parts[2][0])
    assert moment[:3] == pytest.approx((2, 7, 0.8))
    assert in_order(parts, 0.5) == []


@pytest.mark.parametrize("within", [0.3, 5.0, 1e9])
def test_the_best_chain_is_that_of_an_exhaustive_search(within):
    random = torch.Generator().manual_seed(0)
    parts = [
        [Span(*map(float, row), float(torch.rand((), generator=random))) for row in edges.sort().values.view(-1, 2)]
        for edges in torch.rand(3, 60, generator=random, dtype=torch.float64) * 60
    ]
    chains = [(span,) for span in parts[0]]
    for spans in parts[1:]:
        options = [
            [
                (*chain, span)
                for chain in chains
                if sum(chain[-1][:2]) < sum(span[:2]) and span.start - chain[-1].end <= within
            ]
            for span in spans
        ]
        chains = [max(few, key=lambda chain: sum(span.score for span in chain)) for few in options if few]
    assert [moment.parts for moment in in_order(parts, within)] == chains
    assert chains


def test_a_day_is_searched_in_seconds():
    """A day at 0.1 s per frame has 16,000 spans for each phrase, whose pairs would take minutes."""
    curves = torch.rand(2, 864_000, generator=torch.Generator().manual_seed(0))
    begin = time.process_time()
    assert len(find_moments(curves, times(864_000), 0.1, MomentConfig(threshold=0.8, merge=0), 10)) == 10
    assert time.process_time() - begin < 20


def test_a_score_of_nan_is_an_error():
    with pytest.raises(ValueError, match="a score is NaN"):
        find_moments(torch.full((1, 4), torch.nan), times(4), 0.1, PLAIN)
    assert find_moments(torch.zeros(1, 0), times(0), 0.1, PLAIN) == []


@pytest.mark.parametrize(
    ("query", "phrases"),
    [
        ("a dog barks", ["a dog barks"]),
        ("Glass breaks, then a dog barks.", ["Glass breaks", "a dog barks"]),
        ("glass breaks and then a dog barks", ["glass breaks", "a dog barks"]),
        ("rain followed by thunder, then wind", ["rain", "thunder", "wind"]),
        ("first a bell, after that a dog", ["a bell", "a dog"]),
        ("a bell before a dog", ["a bell", "a dog"]),
        ("a bell after a dog", ["a dog", "a bell"]),
        ("a bell preceded by a dog", ["a dog", "a bell"]),
        ("a strengthening wind, beforehand", ["a strengthening wind, beforehand"]),
        ("then", ["then"]),
        ("Before dawn, a bird sings.", ["Before dawn, a bird sings"]),
    ],
)
def test_the_phrases_of_a_query(query, phrases):
    assert list(phrases_of(query)) == phrases


def test_the_curve_of_a_phrase_is_that_of_its_best_token():
    model = FakeModel()
    audio = torch.from_numpy(sound("dog", "", "bell"))[None]
    with torch.no_grad():
        frames = model.eval().embed_audio(audio, torch.tensor([3 * FRAME])).frames[0]
    phrases = Phrases(model, ["dog", "a bell", "dog"])
    assert phrases.curves(frames).T.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert phrases.columns(["a bell", "dog"]) == [1, 0]
    assert phrases.curves(frames, ["a bell"]).shape == (3, 1) and phrases.curves(frames, []).shape == (3, 0)


@pytest.fixture
def recordings(tmp_path):
    """Two recordings of 6 s, in which a dog barks before a bell, and after it; and one that is not audio."""
    scenes = {
        "a.wav": [""] * 20 + ["dog"] * 5 + [""] * 3 + ["bell"] * 4 + [""] * 28,
        "b.wav": [""] * 40 + ["bell"] * 5 + ["dog"] * 5 + [""] * 10,
    }
    for name, names in scenes.items():
        soundfile.write(tmp_path / name, sound(*names), RATE)
    (tmp_path / "c.wav").write_text("not audio")
    return tmp_path


def test_search_finds_moments_in_all_recordings(recordings):
    options = {"config": PLAIN, "clip_seconds": 1.0, "batch_size": 2}
    result = search_moments(FakeModel(), recordings, ["dog", "dog then bell", "bell then dog", "engine"], **options)
    hits = [[(hit.path.name, *(round(v, 3) for v in hit.moment[:3])) for hit in hits] for hits in result.hits]
    assert hits == [
        [("a.wav", 2.0, 2.5, 1), ("b.wav", 4.5, 5.0, 1)],
        [("a.wav", 2.0, 3.2, 1)],
        [("b.wav", 4.0, 5.0, 1)],
        [],
    ]
    assert result.phrases[1] == ("dog", "bell") and [name for name, _ in result.skipped] == ["c.wav"]
    assert [len(hits) for hits in search_moments(FakeModel(), recordings, ["dog"], top=1, **options).hits] == [1]
    hit = result.hits[1][0]
    assert hit.curves.shape == (2, len(hit.times)) and hit.times[0] == pytest.approx(0.05)
    with pytest.raises(AudioError, match=r"c\.wav"):
        search_moments(FakeModel(), recordings, ["dog"], on_error="raise", **options)
    with pytest.raises(ValueError, match="at least one word"):
        search_moments(FakeModel(), recordings, [], **options)
    soundfile.write(recordings / "n.wav", torch.full((RATE,), math.nan).numpy(), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match="none of its 1 audio files can be decoded"):
        search_moments(FakeModel(), recordings / "n.wav", ["dog"], **options)


def test_search_in_a_single_file(recordings):
    result = search_moments(FakeModel(), recordings / "b.wav", ["dog"], config=PLAIN, clip_seconds=1.0)
    assert [hit.path.name for hit in result.hits[0]] == ["b.wav"]


@pytest.mark.slow
def test_a_moment_is_drawn(recordings):
    [hits] = search_moments(FakeModel(), recordings, ["dog, then bell"], config=PLAIN, clip_seconds=1.0).hits
    events = [Event("a.wav", "dog", "a $dog", 2.0, 2.5), Event("a.wav", "far", "far", 50, 51)]
    path = draw_moment(recordings / "p.png", FakeModel().eval(), hits[0], ("dog", "b$ell"), "dog, then b$ell", events)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_settings_are_chosen_by_f1_and_stored(tmp_path):
    """The curve of what sounds reaches 0.8, and that of what does not 0.5."""
    query = MomentQuery("a.wav", "dog", ((1.0, 2.0),))
    curves = [
        Curve(query, curve("0" * 10 + "8" * 10 + "0" * 10), times(30)),
        Curve(query._replace(windows=()), curve("5" * 30), times(30)),
    ]
    config, f1 = calibrate(curves, 0.1)
    assert f1 == 100 and 0.5 < config.threshold <= 0.8
    with pytest.raises(ValueError, match="not a run folder"):
        save_moments(tmp_path, config)
    assert saved_moments(tmp_path) == MomentConfig()
    (tmp_path / "config.yaml").write_text("{}")
    path = save_moments(tmp_path, config)
    assert saved_moments(tmp_path / "checkpoints" / "last") == saved_moments(tmp_path) == config
    path.write_text(json.dumps({"smooth": 1}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: not the settings of moments")):
        saved_moments(tmp_path)


def test_queries_of_events(tmp_path):
    clips = [Clip(name, tmp_path / name, (), 10.0) for name in ("a.wav", "b.wav")]
    events = [
        Event("a.wav", "x_1", "a saw", 4, 9),
        Event("a.wav", "x_1", "a saw", 40, 55),
        Event("a.wav", "x_2", "a saw", 1, 2),
        Event("a.wav", "x_3", "hiss", 3, 3),
        Event("b.wav", "y", "hiss", 0, 2000),
        Event("b.wav", "z", "rain", 0, 2),
        Event("c.wav", "z", "rain", 0, 2),
    ]
    queries, left_out = queries_of(events, clips)
    assert [(query.phrase, query.windows) for query in queries] == [
        ("a saw", ((4, 9), (40, 55))),
        ("a saw", ((1, 2),)),
        ("rain", ((0, 2),)),
    ]
    assert left_out == [("a.wav", "hiss: 0 s long"), ("b.wav", "hiss: 2000 s long")]
    absent = with_absent(queries)[3:]
    assert absent == [MomentQuery("a.wav", "rain", ()), MomentQuery("b.wav", "a saw", ())]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibrate([], 0.1), "curves: at least one is needed to choose a threshold, got none"),
        (lambda: phrases_of("..."), "query must contain at least one word, got an empty text"),
        (lambda: Phrases(FakeModel(), ["dog", "..."]), "query: the tokenizer leaves nothing of '...'"),
        (
            lambda: draw_moment("p.png", FakeModel(), MomentHit("a.tar: b.wav", None, None, None), ("dog",), "dog"),
            "inside a larger",
        ),
    ],
)
def test_errors_name_what_is_missing(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_a_peak_above_the_threshold_the_best_span_is_taken():
    flat = Curve(MomentQuery("a.wav", "dog", ()), curve("0330"), times(4))
    assert spans_of(flat, 0.1, PLAIN, at_least_one=False) == []
    (span,) = spans_of(flat, 0.1, PLAIN)
    assert (span.start, span.end) == (pytest.approx(0.1), pytest.approx(0.3))


@pytest.mark.parametrize("name", ["smooth", "merge", "within", "overlap", "threshold"])
def test_settings_have_ranges(name):
    for value in {"smooth": (-1, math.inf), "overlap": (1.5,), "threshold": (math.nan,)}.get(name, (-0.1,)):
        with pytest.raises(ValueError, match=name):
            MomentConfig(**{name: value})
