"""Synthetic datasets: reproducible files, consistent tables, correct captions, and rejected settings."""

import itertools
import re

import numpy as np
import pytest
import soundfile
import yaml
from support.soundscape_cases import RATE, contents, rows, small

from atk.soundscapes import SoundscapeConfig, parallel, write, write_soundscapes
from atk.soundscapes.captions import describe, name_event
from atk.soundscapes.config import PRESETS
from atk.soundscapes.events import EVENTS, class_names
from atk.soundscapes.phrases import CLAUSES, NOUNS
from atk.soundscapes.scenes import plan
from atk.soundscapes.sounds import Event


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    config = small(captions_per_clip=5)
    return config, write_soundscapes(tmp_path_factory.mktemp("data") / "set", config, progress=False, processes=1)


@pytest.mark.slow
def test_same_seed_same_bytes_for_any_number_of_processes(written, tmp_path, monkeypatch):
    config, folder = written
    monkeypatch.setattr(parallel, "_ITEMS_PER_PROCESS", 4)
    again = write_soundscapes(tmp_path / "again", config, progress=False, processes=3)
    assert contents(again) == contents(folder)
    reseeded = write_soundscapes(tmp_path / "reseeded", small(captions_per_clip=5, seed=1), progress=False, processes=1)
    same = {name for name, data in contents(reseeded).items() if contents(folder).get(name) == data}
    assert same == {"twins.csv"}


def test_files_match_the_settings(written):
    config, folder = written
    for split in ("train", "val", "test"):
        table = rows(folder / f"{split}.csv")
        assert len(table) == getattr(config, split)
        assert list(table[0]) == ["file_name", *(f"caption_{column}" for column in range(1, 6))]
        for row in table:
            info = soundfile.info(folder / row["file_name"])
            assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
            assert config.seconds[0] <= info.duration <= config.seconds[1]
    settings = yaml.safe_load((folder / "soundscapes.yaml").read_text())
    assert SoundscapeConfig(**{name: value for name, value in settings.items() if name != "format"}) == config


def test_tables_agree_and_every_caption_has_every_phrase(written):
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


def test_no_two_held_out_scenes_have_the_same_description():
    config = SoundscapeConfig.preset("easy", train=0, val=100, test=300, twins=30)
    scenes = plan(config)
    held_out = scenes["val"] + scenes["test"]
    assert len({scene.description for scene in held_out}) == 400
    captions = {caption for scene in held_out for caption in describe(scene, config)[0]}
    assert len(captions) == 400


def test_too_few_different_scenes():
    with pytest.raises(ValueError, match=r"test.*classes"):
        plan(SoundscapeConfig(train=0, test=50, classes=4, events=(1, 1)))


def test_every_class_can_be_named_in_every_way():
    assert set(CLAUSES) == set(NOUNS) == set(EVENTS)
    owner = {}
    for style, table in (("clause", CLAUSES), ("noun", NOUNS)):
        for name, forms in table.items():
            for form in forms:
                assert owner.setdefault(form, name) == name, f"{form!r} names two classes"
            event_class = EVENTS[name]
            counts = (1, 2, 3) if event_class.unit else (None,)
            for pitch in ("", "low", "high") if event_class.pitched else ("",):
                for loudness, count in itertools.product(("", "quiet", "loud"), counts):
                    phrase = name_event(Event(name, pitch, loudness, count), style, np.random.default_rng(0))
                    assert bool(re.search(r"twice|times", phrase)) == (count in (2, 3))
                    assert bool(re.search(r"\b(low|deep|high|shrill)\b", phrase)) == bool(pitch)
                    assert bool(re.search(r"quiet|soft|faint|loud|nois", phrase)) == bool(loudness)
                    assert not re.search(r"\ba [aeiou]|  |[{}]", phrase)


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
        {"twins": 1, "events": (1, 1)},
    ],
)  # fmt: skip
def test_bad_settings_name_the_field(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SoundscapeConfig(**bad)


def test_bad_preset_and_unknown_setting():
    with pytest.raises(ValueError, match="preset"):
        SoundscapeConfig.preset("harder")
    with pytest.raises(ValueError, match="color"):
        SoundscapeConfig.preset("hard", color=1)


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
