"""Audio of synthetic scenes: exact event times, audible attributes, backgrounds, twins, and distinct classes."""

import itertools
import re

import numpy as np
import pytest
from support.soundscape_cases import RATE, small

from atk.soundscapes.captions import describe
from atk.soundscapes.events import EVENTS, MAX_CLASSES, class_names, render_event
from atk.soundscapes.scenes import plan, render


@pytest.mark.parametrize("twins", [0, 10])
def test_event_times_are_exact(twins):
    config = small(train=0, val=0, test=20, twins=twins, backgrounds=())
    for scene in plan(config)["test"]:
        audio, events = render(scene, config)
        outside = np.ones(len(audio), bool)
        for placed in events:
            first, last = round(placed.start * RATE), round(placed.end * RATE)
            assert 0 <= first < last <= len(audio)
            outside[first:last] = False
            # The sound is audible right up to both edges.
            loudest = np.abs(audio[first:last]).max()
            for edge in (audio[first : first + 480], audio[last - 480 : last]):
                assert np.abs(edge).max() > loudest * 10 ** (-50 / 20)
        assert not audio[outside].any()


def test_groups_overlap_and_sequences_do_not():
    config = small(train=40, val=0, test=0, twins=0, overlap=0.5)
    pairs = 0
    for scene in plan(config)["train"]:
        placed = iter(render(scene, config)[1])
        previous_end = 0.0
        for group in scene.groups:
            members = list(itertools.islice(placed, len(group)))
            assert [item.event for item in members] == list(group)
            assert min(item.start for item in members) > previous_end
            previous_end = max(item.end for item in members)
            if len(members) == 2:
                pairs += 1
                shared = min(item.end for item in members) - max(item.start for item in members)
                assert shared == pytest.approx(min(item.end - item.start for item in members))
    assert pairs > 10


def cut_out(audio, placed):
    """The part of a scene where an event sounds."""
    return audio[round(placed.start * RATE) : round(placed.end * RATE)]


def test_twins_are_reversals():
    config = small(train=0, val=0, test=40, twins=20, backgrounds=())
    scenes = plan(config)["test"]
    for first, second in zip(scenes[0::2], scenes[1::2], strict=True):
        assert second.groups == first.groups[::-1] and second.groups != first.groups
        assert all(len(group) == 1 for group in first.groups)
        (audio_1, events_1), (audio_2, events_2) = render(first, config), render(second, config)
        assert len(audio_1) == len(audio_2)
        for placed_1, placed_2 in zip(events_1, reversed(events_2), strict=True):
            assert placed_1.event == placed_2.event
            np.testing.assert_array_equal(cut_out(audio_1, placed_1), cut_out(audio_2, placed_2))
        (caption_1,), phrases_1 = describe(first, config)
        (caption_2,), phrases_2 = describe(second, config)
        assert phrases_1 == phrases_2[::-1] and caption_1 != caption_2
        for (phrase_1,), (phrase_2,) in zip(phrases_1, phrases_2, strict=True):
            caption_1, caption_2 = caption_1.replace(phrase_1, "#"), caption_2.replace(phrase_2, "#")
        assert caption_1 == caption_2
        assert re.search(r"then|before|after|followed|later|preceded", caption_1)


@pytest.mark.parametrize("name", [name for name, event_class in EVENTS.items() if event_class.pitched])
def test_pitch_word_moves_the_spectrum(name):
    def center(semitones):
        wave = render_event(EVENTS[name], np.random.default_rng(5), RATE, 1.0, 2 ** (semitones / 12), 1)
        power = np.abs(np.fft.rfft(wave)) ** 2
        return np.sum(np.log(np.arange(1, len(power))) * power[1:]) / power[1:].sum() + np.log(RATE / len(wave))

    assert center(-9) + 0.1 < center(0) < center(9) - 0.1


@pytest.mark.parametrize("name", [name for name, event_class in EVENTS.items() if event_class.unit])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_count_is_heard(name, count):
    wave = render_event(EVENTS[name], np.random.default_rng(count), RATE, 1.0, 1.0, count)
    assert len(wave) <= RATE
    sounding = np.convolve(np.abs(wave) > 0, np.ones(400), "same") > 0.5  # bridges single zero samples
    calls = np.count_nonzero(np.diff(np.concatenate(([0], sounding.astype(int)))) == 1)
    assert calls == count


def test_loudness_word_moves_the_level():
    config = small(train=60, val=0, test=0, twins=0, backgrounds=(), overlap=0.0)
    levels = {"quiet": [], "": [], "loud": []}
    for scene in plan(config)["train"]:
        audio, events = render(scene, config)
        for placed in events:
            piece = cut_out(audio, placed)
            blocks = np.add.reduceat(piece**2, np.arange(0, len(piece), RATE // 20)) / (RATE // 20)
            levels[placed.event.loudness].append(10 * np.log10(blocks.max()))
    assert max(levels["quiet"]) + 5 < min(levels[""]) and max(levels[""]) < min(levels["loud"])


def test_background_is_below_the_quietest_event():
    quiet, noisy = ({"train": 4, "val": 0, "test": 0, "twins": 0, "snr_db": (snr, snr)} for snr in (30.0, 0.0))
    for low, high, none in zip(*(plan(small(**extra))["train"] for extra in (quiet, noisy, quiet)), strict=True):
        clean = render(none, small(**quiet, backgrounds=()))[0]
        rms = [np.std(render(scene, small(**extra))[0] - clean) for scene, extra in ((low, quiet), (high, noisy))]
        assert 20 * np.log10(rms[1] / rms[0]) == pytest.approx(30.0, abs=0.1)


def spectrum_statistics(wave):
    """Mean and standard deviation over time of 40 log-spaced band levels in dB, relative to the loudest."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (0, 512)), 512)[::256] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.unique(np.geomspace(1, 257, 41).astype(int))
    bands = np.add.reduceat(power, edges[:-1], axis=1)
    level = 10 * np.log10(bands / bands.max() + 1e-5)
    return np.concatenate([level.mean(0), level.std(0)])


def accuracy(names, renderings=8):
    """Nearest-centroid accuracy on single events, with half of the renderings held out."""
    rng = np.random.default_rng(0)
    features = np.stack([
        [
            spectrum_statistics(render_event(EVENTS[name], rng, RATE, 1.5, 2 ** (rng.uniform(-5, 5) / 12)))
            for _ in range(renderings)
        ]
        for name in names
    ])  # fmt: skip
    centroids, held_out = features[:, ::2].mean(1), features[:, 1::2]
    nearest = np.linalg.norm(held_out[:, :, None] - centroids, axis=-1).argmin(-1)
    return np.mean(nearest == np.arange(len(names))[:, None])


@pytest.mark.slow
def test_classes_are_distinct_and_similar_ones_less_so():
    distinct = accuracy(class_names(MAX_CLASSES, similar=False))
    assert len(EVENTS) > MAX_CLASSES >= 24 and distinct >= 0.8
    assert accuracy(class_names(MAX_CLASSES, similar=True)) < distinct


@pytest.mark.parametrize("rate", [8000, 44100])
def test_other_sample_rates(rate):
    config = small(train=4, val=0, test=0, twins=0, sample_rate=rate)
    for scene in plan(config)["train"]:
        audio, events = render(scene, config)
        assert np.isfinite(audio).all() and 0.001 < np.abs(audio).max() <= 1.0
        assert events[-1].end <= len(audio) / rate
