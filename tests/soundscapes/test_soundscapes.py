"""The synthetic data set: files that repeat, events where the tables say, words that are true, twins, refusals."""

import csv
import itertools
import re

import numpy as np
import pytest
import soundfile
import yaml

from atk.soundscapes import SoundscapeConfig, write, write_soundscapes
from atk.soundscapes.captions import describe, name_event
from atk.soundscapes.config import PRESETS
from atk.soundscapes.events import EVENTS, MAX_CLASSES, class_names, render_event
from atk.soundscapes.phrases import CLAUSES, NOUNS
from atk.soundscapes.scenes import Event, plan, render

RATE = 16000


def small(**overrides) -> SoundscapeConfig:
    return SoundscapeConfig.preset("hard", **{"train": 6, "val": 3, "test": 8, "twins": 2, **overrides})


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    config = small(captions_per_clip=5)
    return config, write_soundscapes(tmp_path_factory.mktemp("data") / "set", config, progress=False, processes=1)


def test_same_seed_same_bytes_for_any_number_of_processes(written, tmp_path, monkeypatch):
    config, folder = written
    monkeypatch.setattr(write, "_SCENES_A_PROCESS", 4)
    again = write_soundscapes(tmp_path / "again", config, progress=False, processes=3)
    assert contents(again) == contents(folder)
    other = write_soundscapes(tmp_path / "other", small(captions_per_clip=5, seed=1), progress=False, processes=1)
    same = {name for name, data in contents(other).items() if contents(folder).get(name) == data}
    assert same == {"twins.csv"}


def test_files_hold_what_the_settings_ask_for(written):
    config, folder = written
    for split in ("train", "val", "test"):
        table = rows(folder / f"{split}.csv")
        assert len(table) == getattr(config, split)
        assert list(table[0]) == ["file_name", *(f"caption_{number}" for number in range(1, 6))]
        for row in table:
            info = soundfile.info(folder / row["file_name"])
            assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
            assert config.seconds[0] <= info.duration <= config.seconds[1]
    settings = yaml.safe_load((folder / "soundscapes.yaml").read_text())
    assert SoundscapeConfig(**{name: value for name, value in settings.items() if name != "format"}) == config


def test_tables_agree_and_every_caption_holds_every_phrase(written):
    config, folder = written
    captions = {
        row["file_name"]: [text for key, text in row.items() if key != "file_name"]
        for split in ("train", "val", "test")
        for row in rows(folder / f"{split}.csv")
    }
    events = rows(folder / "events.csv")
    assert {event["file_name"] for event in events} == set(captions)
    for event in events:
        assert len(set(captions[event["file_name"]])) == config.captions_per_clip
        assert all(event["phrase"] in caption for caption in captions[event["file_name"]])
    for row in rows(folder / "tags.csv"):
        tagged = {name for name in class_names(config.classes, config.similar) if row[name] == "1"}
        assert tagged == {event["event"] for event in events if event["file_name"] == row["file_name"]}


def test_single_caption_column_and_no_val(tmp_path):
    folder = write_soundscapes(tmp_path / "set", SoundscapeConfig(train=2, test=2), progress=False)
    assert list(rows(folder / "test.csv")[0]) == ["file_name", "caption"]
    assert not (folder / "val.csv").exists() and not (folder / "twins.csv").exists()


@pytest.mark.parametrize("twins", [0, 10])
def test_event_times_are_true(twins):
    config = small(train=0, val=0, test=20, twins=twins, backgrounds=())
    for scene in plan(config)["test"]:
        audio, events = render(scene, config)
        outside = np.ones(len(audio), bool)
        for placed in events:
            first, last = round(placed.start * RATE), round(placed.end * RATE)
            assert 0 <= first < last <= len(audio)
            outside[first:last] = False
            # The edges are where the sound begins and ends, not somewhere around it.
            loudest = np.abs(audio[first:last]).max()
            for edge in (audio[first : first + 480], audio[last - 480 : last]):
                assert np.abs(edge).max() > loudest * 10 ** (-50 / 20)
        assert not audio[outside].any()


def test_groups_overlap_and_sequences_do_not():
    config = small(train=40, val=0, test=0, twins=0, overlap=0.5)
    seen = 0
    for scene in plan(config)["train"]:
        placed = iter(render(scene, config)[1])
        edge = 0.0
        for group in scene.groups:
            members = list(itertools.islice(placed, len(group)))
            assert [item.event for item in members] == list(group)
            assert min(item.start for item in members) > edge
            edge = max(item.end for item in members)
            if len(members) == 2:
                seen += 1
                shared = min(item.end for item in members) - max(item.start for item in members)
                assert shared == pytest.approx(min(item.end - item.start for item in members))
    assert seen > 10


def test_twins_are_reversals():
    config = small(train=0, val=0, test=40, twins=20, backgrounds=())
    scenes = plan(config)["test"]
    for first, second in zip(scenes[0::2], scenes[1::2], strict=True):
        assert second.groups == first.groups[::-1] and second.groups != first.groups
        assert all(len(group) == 1 for group in first.groups)
        (audio_1, events_1), (audio_2, events_2) = render(first, config), render(second, config)
        assert len(audio_1) == len(audio_2)
        for one, two in zip(events_1, reversed(events_2), strict=True):
            assert one.event == two.event
            pieces = [
                audio[round(item.start * RATE) : round(item.end * RATE)]
                for audio, item in ((audio_1, one), (audio_2, two))
            ]
            np.testing.assert_array_equal(*pieces)
        (caption_1,), phrases_1 = describe(first, config)
        (caption_2,), phrases_2 = describe(second, config)
        assert phrases_1 == phrases_2[::-1] and caption_1 != caption_2
        for (phrase_1,), (phrase_2,) in zip(phrases_1, phrases_2, strict=True):
            caption_1, caption_2 = caption_1.replace(phrase_1, "#"), caption_2.replace(phrase_2, "#")
        assert caption_1 == caption_2
        assert re.search(r"then|before|after|followed|later|preceded", caption_1)


def test_no_two_held_out_scenes_have_one_description():
    config = SoundscapeConfig.preset("easy", train=0, val=100, test=300, twins=30)
    scenes = plan(config)
    held_out = scenes["val"] + scenes["test"]
    assert len({scene.description for scene in held_out}) == 400
    captions = {caption for scene in held_out for caption in describe(scene, config)[0]}
    assert len(captions) == 400


def test_too_few_different_scenes():
    with pytest.raises(ValueError, match=r"test.*classes"):
        plan(SoundscapeConfig(train=0, test=50, classes=4, events=(1, 1)))


@pytest.mark.parametrize("name", [name for name, kind in EVENTS.items() if kind.pitched])
def test_pitch_word_moves_the_spectrum(name):
    def centre(semitones):
        wave = render_event(EVENTS[name], np.random.default_rng(5), RATE, 1.0, 2 ** (semitones / 12), 1)
        power = np.abs(np.fft.rfft(wave)) ** 2
        return np.sum(np.log(np.arange(1, len(power))) * power[1:]) / power[1:].sum() + np.log(RATE / len(wave))

    assert centre(-9) + 0.1 < centre(0) < centre(9) - 0.1


@pytest.mark.parametrize("name", [name for name, kind in EVENTS.items() if kind.unit])
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
            piece = audio[round(placed.start * RATE) : round(placed.end * RATE)]
            blocks = np.add.reduceat(piece**2, np.arange(0, len(piece), RATE // 20)) / (RATE // 20)
            levels[placed.event.loudness].append(10 * np.log10(blocks.max()))
    assert max(levels["quiet"]) + 5 < min(levels[""]) and max(levels[""]) < min(levels["loud"])


def test_background_lies_below_the_quietest_event():
    quiet, noisy = ({**dict(train=4, val=0, test=0, twins=0), "snr_db": (snr, snr)} for snr in (30.0, 0.0))
    for low, high, none in zip(*(plan(small(**extra))["train"] for extra in (quiet, noisy, quiet)), strict=True):
        clean = render(none, small(**quiet, backgrounds=()))[0]
        rms = [np.std(render(scene, small(**extra))[0] - clean) for scene, extra in ((low, quiet), (high, noisy))]
        assert 20 * np.log10(rms[1] / rms[0]) == pytest.approx(30.0, abs=0.1)


def test_every_class_can_be_named_in_every_way():
    assert set(CLAUSES) == set(NOUNS) == set(EVENTS)
    owner = {}
    for style, table in (("clause", CLAUSES), ("noun", NOUNS)):
        for name, forms in table.items():
            for form in forms:
                assert owner.setdefault(form, name) == name, f"{form!r} names two classes"
            kind = EVENTS[name]
            for pitch in ("", "low", "high") if kind.pitched else ("",):
                for loudness, count in itertools.product(("", "quiet", "loud"), (1, 2, 3) if kind.unit else (None,)):
                    phrase = name_event(Event(name, pitch, loudness, count), style, np.random.default_rng(0))
                    assert bool(re.search(r"twice|times", phrase)) == (count in (2, 3))
                    assert bool(re.search(r"\b(low|deep|high|shrill)\b", phrase)) == bool(pitch)
                    assert bool(re.search(r"quiet|soft|faint|loud|nois", phrase)) == bool(loudness)
                    assert not re.search(r"\ba [aeiou]|  |[{}]", phrase)


def spectrum_statistics(wave):
    """Mean and deviation over time of 40 log-spaced band levels in dB, relative to the mean level."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (0, 512)), 512)[::256] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.unique(np.geomspace(1, 257, 41).astype(int))
    bands = np.add.reduceat(power, edges[:-1], axis=1)
    level = 10 * np.log10(bands / bands.max() + 1e-5)
    return np.concatenate([level.mean(0), level.std(0)])


def accuracy(names, renderings=8):
    """Nearest-centroid accuracy of single events, half of the renderings held out."""
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


def test_classes_are_distinct_and_similar_ones_less_so():
    distinct = accuracy(class_names(MAX_CLASSES, similar=False))
    assert len(EVENTS) > MAX_CLASSES >= 24 and distinct >= 0.8
    assert accuracy(class_names(MAX_CLASSES, similar=True)) < distinct


def test_presets_grow_harder_and_take_overrides():
    easy, medium, hard = (SoundscapeConfig.preset(name) for name in PRESETS)
    assert easy.snr_db > medium.snr_db > hard.snr_db and easy.events < medium.events < hard.events
    assert SoundscapeConfig.preset("hard", seconds=[5, 7]).seconds == (5, 7)


@pytest.mark.parametrize(
    "bad",
    [
        {"train": -1}, {"test": 1.5}, {"twins": 101}, {"seed": -1}, {"sample_rate": 100}, {"seconds": (6.0, 4.0)},
        {"seconds": (1.0, 2.0)}, {"captions_per_clip": 6}, {"classes": 37}, {"classes": True}, {"similar": 1},
        {"events": (0, 1)}, {"events": (2, 5)}, {"events": 3}, {"overlap": 1.1}, {"snr_db": ("a", "b")},
        {"snr_db": (float("nan"), 1.0)}, {"backgrounds": ("jungle",)}, {"pitch": "yes"}, {"attribute_rate": -0.1},
        {"later_first": 2}, {"train": 0, "test": 0},
    ],
)  # fmt: skip
def test_bad_settings_name_the_field(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SoundscapeConfig(**bad)


def test_bad_preset_and_unknown_setting():
    with pytest.raises(ValueError, match="preset"):
        SoundscapeConfig.preset("harder")
    with pytest.raises(ValueError, match="colour"):
        SoundscapeConfig.preset("hard", colour=1)


def test_folder_is_reused_for_the_same_settings_only(written, tmp_path, capsys):
    config, folder = written
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_soundscapes(folder, config) == folder
    assert "already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(FileExistsError, match="seed"):
        write_soundscapes(folder, small(captions_per_clip=5, seed=9), progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        write_soundscapes(tmp_path / "mine", config, progress=False)
    with pytest.raises(FileExistsError):
        write_soundscapes(tmp_path / "mine" / "notes.txt", config, progress=False)
    assert contents(tmp_path) == {"mine/notes.txt": b"keep"}


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_write_tables", stop)
    with pytest.raises(KeyboardInterrupt):
        write_soundscapes(tmp_path / "set", small(), progress=False, processes=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [8000, 44100])
def test_other_sample_rates(rate):
    config = small(train=4, val=0, test=0, twins=0, sample_rate=rate)
    for scene in plan(config)["train"]:
        audio, events = render(scene, config)
        assert np.isfinite(audio).all() and 0.001 < np.abs(audio).max() <= 1.0
        assert events[-1].end <= len(audio) / rate
