"""Scenes made of recordings: splits, true times, twins, wording, backgrounds, and what is reported or refused."""

import dataclasses
import itertools
import shutil
import sys

import numpy as np
import pytest
import soundfile
from support.recorded_events import recorded, write_classes, write_tones
from support.soundscape_cases import contents, rows

from atk.cli.main import main
from atk.data import DataWarning, read_split
from atk.soundscapes import SoundscapeConfig, parallel, write_soundscapes
from atk.soundscapes.captions import describe
from atk.soundscapes.materials import read_materials
from atk.soundscapes.scenes import plan, render

RATE = 16000
PHRASES = {"bark": "a bark", "rain": "rain", "sea_waves": "sea waves", "siren": "a siren"}


def write(folder, config, processes=1):
    return write_soundscapes(folder, config, progress=False, processes=processes)


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("events"), tuple(PHRASES))


@pytest.fixture(scope="module")
def written(events, tmp_path_factory):
    config = recorded(events, train=40, val=4, test=12, captions_per_clip=2)
    return write(tmp_path_factory.mktemp("scenes") / "out", config)


def test_no_source_is_in_two_splits(written):
    takes = {}
    for row in rows(written / "events.csv"):
        event, name = row["recording"].split("/")
        assert row["event"] == event
        takes.setdefault(row["file_name"].split("/")[1], set()).add(name)
    sources = {split: {name.split("_")[0] for name in names} for split, names in takes.items()}
    assert set(sources) == {"train", "val", "test"} and all(len(group) >= 2 for group in sources.values())
    assert len(takes["train"]) > len(sources["train"]), "several takes of a source are in use"
    assert not any(first & second for first, second in itertools.combinations(sources.values(), 2))


def test_tables_agree_and_captions_contain_the_phrases(written):
    captions = {
        row["file_name"]: (row["caption_1"], row["caption_2"])
        for split in ("train", "val", "test")
        for row in rows(written / f"{split}.csv")
    }
    events = rows(written / "events.csv")
    assert len(captions) == 56 and {row["file_name"] for row in events} == set(captions)
    for row in events:
        assert row["phrase"] == PHRASES[row["event"]]
        assert all(row["phrase"] in caption for caption in captions[row["file_name"]])
    for row in rows(written / "tags.csv"):
        tagged = {name for name in PHRASES if row[name] == "1"}
        assert tagged == {event["event"] for event in events if event["file_name"] == row["file_name"]}


def test_twins_have_the_same_recordings_in_the_opposite_order(written):
    events = rows(written / "events.csv")
    for row in rows(written / "twins.csv"):
        first, second = (
            [(event["recording"], event["phrase"]) for event in events if event["file_name"] == row[column]]
            for column in ("file_name", "twin")
        )
        assert first == second[::-1] and len(first) >= 2


@pytest.mark.slow
def test_same_settings_same_bytes_for_any_number_of_processes(events, written, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_ITEMS_PER_PROCESS", 8)
    config = recorded(events, train=40, val=4, test=12, captions_per_clip=2)
    assert contents(write(tmp_path / "again", config, processes=3)) == contents(written)
    other = contents(write(tmp_path / "other", recorded(events, train=40, val=4, test=12, seed=1)))
    assert not {name for name, data in other.items() if contents(written)[name] == data} - {"twins.csv"}


@pytest.mark.parametrize("rate", [16000, 22050])
def test_events_are_heard_exactly_between_their_times(events, rate):
    config = recorded(events, backgrounds=(), sample_rate=rate)
    materials = read_materials(config)
    for scene in itertools.chain.from_iterable(plan(config, materials).values()):
        audio, placed = render(scene, config, materials)
        heard = np.zeros(len(audio), bool)
        for item in placed:
            first, last = round(item.start * rate), round(item.end * rate)
            heard[first:last] = True
            edges = np.abs(audio[first : first + rate // 50]).max(), np.abs(audio[last - rate // 50 : last]).max()
            assert min(edges) > 0.02 * np.abs(audio[first:last]).max()
        assert not audio[~heard].any()


def test_a_recording_that_is_too_long_is_cut_to_its_loudest_part(tmp_path):
    time = np.arange(12 * RATE) / RATE
    wave = 0.1 * np.sin(2 * np.pi * 500 * time)
    wave[9 * RATE : 10 * RATE] = 0.5 * np.sin(2 * np.pi * 2000 * time[:RATE])  # 14 dB louder: the rest is sound, too
    for name in ("a/0.wav", "a/1.wav", "b/0.wav", "b/1.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.roll(wave, len(list(tmp_path.rglob("*.wav")))), RATE)
    config = recorded(tmp_path, train=6, val=0, test=1, twins=0, events=(1, 2), overlap=0.0, backgrounds=())
    materials = read_materials(config)
    for scene in plan(config, materials)["train"]:
        audio, placed = render(scene, config, materials)
        for item in placed:
            sound = audio[round(item.start * RATE) : round(item.end * RATE)]
            assert 0.7 * RATE < len(sound) < len(audio)
            assert np.abs(np.fft.rfft(sound)).argmax() * RATE / len(sound) == pytest.approx(2000, abs=2)


def test_scenes_use_clauses_only_if_all_classes_have_them(tmp_path):
    write_classes(tmp_path, ("bark", "siren", "rain"))
    table = tmp_path / "phrases.csv"
    table.write_text("class,phrase,clause\nbark,a dog barking,a dog barks\nsiren,a siren wailing,a siren wails\n")
    config = recorded(tmp_path, train=60, val=0, test=1, twins=0)
    materials = read_materials(config)
    used = set()
    for scene in plan(config, materials)["train"]:
        (caption,), groups = describe(scene, config, materials)
        phrases = {phrase for group in groups for phrase in group}
        used |= phrases
        assert not {"a dog barks", "a siren wails"} & phrases or not {"rain", "a dog barking"} & phrases, caption
    assert used == {"a dog barks", "a dog barking", "a siren wails", "a siren wailing", "rain"}


def test_what_is_skipped_or_left_out_is_counted_and_named(events, tmp_path):
    folder = shutil.copytree(events, tmp_path / "events")
    (folder / "bark" / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "bark" / "silent.wav", np.zeros(8000), RATE)
    shutil.copy(folder / "rain" / "1010_a.wav", folder / "siren" / "copy.wav")
    write_tones(folder, ["owl/a.wav", "owl/b.wav"], seconds=0.3)
    with pytest.warns(DataWarning) as caught:
        materials = read_materials(recorded(folder))
    lines = [str(warning.message) for warning in caught]
    skipped = (
        "empty.wav (empty file (0 bytes)); bark/silent.wav (silent); siren/copy.wav (same sound as rain/1010_a.wav)"
    )
    assert lines == [
        f"recordings: skipped 3: bark/{skipped}",
        "recordings: left out 1 class without a source for each of train, val, test: owl (2)",
    ]
    assert materials.events.names(None) == tuple(PHRASES)


def test_too_few_classes(tmp_path):
    write_tones(tmp_path, ["a/1.wav", "a/2.wav", "a/3.wav", "b/1.wav", "b/2.wav"])
    error = r"must have at least 3 classes with a source for each of train, val, test, got 1; left out 1 class .*: b"
    with pytest.warns(DataWarning), pytest.raises(ValueError, match=error):
        write(tmp_path / "out", recorded(tmp_path))
    assert not (tmp_path / "out").exists()


def test_backgrounds_from_a_folder(tmp_path):
    time = np.arange(RATE) / RATE
    soundfile.write(tmp_path / "hum.wav", 0.2 * np.sin(2 * np.pi * 1000 * time), RATE)  # repeated to fill a scene
    config = SoundscapeConfig(train=2, test=0, classes=4, backgrounds=str(tmp_path), snr_db=(10.0, 10.0))
    clean = SoundscapeConfig(train=2, test=0, classes=4, backgrounds=())
    materials = read_materials(config)
    for scene in plan(config, materials)["train"]:
        noise = render(scene, config, materials)[0] - render(scene, clean)[0]
        spectrum = np.abs(np.fft.rfft(noise * np.hanning(len(noise)))) ** 2
        peak = spectrum.argmax()
        assert peak * RATE / len(noise) == pytest.approx(1000, abs=1)
        assert spectrum[peak - 9 : peak + 10].sum() > 0.98 * spectrum.sum()


def test_backgrounds_that_cannot_be_decoded_are_left_out_at_the_start(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE)
    for name in ("good.flac", "bad.flac"):
        soundfile.write(tmp_path / name, noise, RATE)
    data = bytearray((tmp_path / "bad.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 1000] = bytes(1000)
    (tmp_path / "bad.flac").write_bytes(data)
    config = SoundscapeConfig(train=1, test=0, backgrounds=str(tmp_path))
    with pytest.warns(DataWarning, match=r"backgrounds: skipped 1: bad\.flac \(damaged"):
        materials = read_materials(config)
    assert materials.backgrounds == {str(tmp_path): (tmp_path / "good.flac",)}
    (tmp_path / "good.flac").unlink()
    with pytest.warns(DataWarning), pytest.raises(ValueError, match=r"has no usable recording; skipped 1: bad\.flac"):
        read_materials(config)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_of_folders_and_recordings_need_not_be_utf8(tmp_path):
    folder = write_classes(tmp_path / "events", ("bark", "rain", "siren"), count=2)
    (folder / "siren").rename(folder / "siren\udce9")
    config = recorded(folder, val=0, events=(2, 3), backgrounds=str(folder.rename(tmp_path / "events\udce9")))
    config = dataclasses.replace(config, recordings=config.backgrounds[0])
    out = write(tmp_path / "out\udce9", config)
    assert write(out, config) == out  # its settings are recognized
    events = rows(out / "events.csv")
    assert {row["event"] for row in events} == {"bark", "rain", r"siren\udce9"}
    assert all(row["recording"].startswith(row["event"]) for row in events)
    assert len(read_split(out, "test").clips) == 6


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"pool": 5}, "pool must be 0 with recordings"),
        ({"backgrounds": "no/such/folder"}, "backgrounds must be among white, .*, or folders, got no/such/folder"),
        ({"rt60": (0.1, 0.5)}, r"rt60 must be in \[0.2, 2\]"),
        ({"drr_db": (5.0, 1.0)}, "drr_db must be"),
        ({"recordings": 3}, "recordings must be of type str"),
    ],
)
def test_bad_settings(events, settings, error):
    with pytest.raises(ValueError, match=error):
        recorded(events, **settings)


def test_a_missing_folder_ends_early(tmp_path):
    for setting in ("recordings", "rirs"):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            write(tmp_path / "out", SoundscapeConfig(train=1, test=0, **{setting: str(tmp_path / "missing")}))
    assert not list(tmp_path.iterdir())


def test_events_may_name_the_folder_of_recordings(events, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(events, "recordings")
    sizes = ["--train", "4", "--test", "2", "--preset", "easy"]
    for flag, out in (("--events", "a"), ("--recordings", "b")):
        main(["soundscapes", out, flag, "recordings", *sizes])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert "recording" in rows(tmp_path / "b" / "events.csv")[0]
    main(["soundscapes", "c", "--events", "[2, 2]", *sizes])
    assert len(rows(tmp_path / "c" / "events.csv")) == 12
    for words, message in (
        (["--events", "nowhere"], "--events must be a pair such as '[1, 3]' (events per scene) or a folder of rec"),
        (["--events", ".", "--recordings", "b"], "--events . is the same setting as --recordings b; give one"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["soundscapes", "d", *words])
        assert stop.value.code == 2 and message in capsys.readouterr().err
