"""Soundscapes for difference learning: pools of single events, rephrased captions, and classes named in captions."""

import hashlib
import re

import numpy as np
import pytest
import soundfile
import yaml
from support.soundscape_cases import contents, rows

from atk.soundscapes import PRESETS, SoundscapeConfig, parallel, write_soundscapes
from atk.soundscapes.captions import describe
from atk.soundscapes.events import EVENTS, class_names
from atk.soundscapes.phrases import CLAUSES, HEADS, NOUNS, classes_named, name_by_stems
from atk.soundscapes.pool import ESC50_COLUMNS, plan_pool, render_recording
from atk.soundscapes.scenes import plan

SMALL = {"train": 6, "val": 3, "test": 8, "twins": 2, "captions_per_clip": 3, "classes": 24, "seconds": (4.0, 5.0)}
# SHA-256 of all tables, as written before pools and rephrasing existed.
EARLIER = {
    "easy": "1701c36892435f0404887a9c8a3763654b72e7fe1ac2e9ff5c682dec7dae680b",
    "medium": "e3800c298d53631bf857be70596d1c732a385e97f198c074804f46290957fd49",
    "hard": "a6424db859d1cb2f18b71c8e0255eb8e2d2b2c0e4c5aba512e7030c4b388b4a5",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    config = SoundscapeConfig.preset("hard", **SMALL, pool=7)
    return config, write_soundscapes(tmp_path_factory.mktemp("data") / "set", config, progress=False, processes=1)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_scenes_are_unchanged_with_and_without_a_pool(preset, tmp_path):
    without, pooled = (
        contents(write_soundscapes(tmp_path / str(pool), config, progress=False, processes=1))
        for pool in (0, 5)
        for config in [SoundscapeConfig.preset(preset, **SMALL, pool=pool)]
    )
    tables = b"".join(data for name, data in without.items() if name.endswith(".csv"))
    assert hashlib.sha256(tables).hexdigest() == EARLIER[preset]
    for files in (without, pooled):
        del files["soundscapes.yaml"]
    assert without == {name: data for name, data in pooled.items() if not name.startswith("pool/")} != pooled


def test_pool_has_the_layout_of_esc50(written):
    config, folder = written
    names = class_names(config.classes, config.similar)
    table = rows(folder / "pool" / "meta" / "esc50.csv")
    assert tuple(table[0]) == ESC50_COLUMNS and len(table) == 7 * len(names)
    assert {path.name for path in (folder / "pool" / "audio").iterdir()} == {row["filename"] for row in table}
    assert len({row["src_file"] for row in table}) == len(table)
    tags = list(rows(folder / "tags.csv")[0])[1:]
    for row in table:
        name = f"{row['fold']}-{row['src_file']}-{row['take']}-{row['target']}.wav"
        assert row["filename"] == name and tags[int(row["target"])] == row["category"]
    for fold in "12345":
        count = 2 if fold in "12" else 1
        assert [row["category"] for row in table if row["fold"] == fold] == [n for n in names for _ in range(count)]


def test_pool_is_a_captioned_folder_whose_captions_name_the_class(written):
    _, folder = written
    table = rows(folder / "pool" / "train.csv")
    category = {f"audio/{row['filename']}": row["category"] for row in rows(folder / "pool" / "meta" / "esc50.csv")}
    assert list(table[0]) == ["file_name", "caption"] and len(table) == len(category)
    assert all(classes_named(row["caption"]) == {category[row["file_name"]]} for row in table)
    assert len({row["caption"] for row in table if "dog" in row["caption"]}) > 3


def test_pool_recordings_have_only_the_event_and_vary(written):
    config, folder = written
    sounds = {}
    for row in rows(folder / "pool" / "meta" / "esc50.csv"):
        audio, rate = soundfile.read(folder / "pool" / "audio" / row["filename"])
        assert rate == config.sample_rate and 0 < len(audio) <= config.seconds[1] * rate
        peak = np.abs(audio).max()
        assert 0.003 < peak <= 0.9 + 1e-3
        for edge in (audio[:480], audio[-480:]):  # no silence around the event
            assert np.abs(edge).max() > peak * 10 ** (-50 / 20)
        sounds.setdefault(row["category"], set()).add(audio.tobytes())
    assert all(len(different) == 7 for different in sounds.values())


def test_words_of_pool_captions_match_the_sound():
    config = SoundscapeConfig.preset("hard", pool=60, classes=2, similar=False, events=(2, 2))
    levels = {"quiet": [], "": [], "loud": []}
    for recording in plan_pool(config):
        wave, phrase = render_recording(recording, config)
        power = np.add.reduceat(wave**2, np.arange(0, len(wave), 800)) / 800
        loud, quiet = re.search("loud|nois", phrase), re.search("quiet|soft|faint", phrase)
        levels["loud" if loud else "quiet" if quiet else ""].append(10 * np.log10(power.max()))
        calls = np.convolve(np.abs(wave) > 0, np.ones(400), "same") > 0.5
        count = np.count_nonzero(np.diff(np.concatenate(([0], calls.astype(int)))) == 1)
        assert count == (3 if "three times" in phrase else 2 if re.search("twice|two times", phrase) else 1)
    assert max(levels["quiet"]) + 5 < min(levels[""]) and max(levels[""]) < min(levels["loud"])


@pytest.mark.slow
def test_pool_repeats_for_any_number_of_processes(written, tmp_path, monkeypatch):
    config, folder = written
    monkeypatch.setattr(parallel, "_ITEMS_PER_PROCESS", 8)
    again = write_soundscapes(tmp_path / "again", config, progress=False, processes=2)
    assert contents(again) == contents(folder)


def test_pool_of_other_seeds_and_sizes():
    config = SoundscapeConfig(pool=5, classes=3)
    waves = [render_recording(recording, config)[0] for recording in plan_pool(config)]
    larger = SoundscapeConfig(pool=6, classes=3)
    expected = [render_recording(item, larger)[0] for item in plan_pool(larger) if item.index < 5]
    assert all(np.array_equal(wave, same) for wave, same in zip(waves, expected, strict=True))
    seeded = SoundscapeConfig(pool=5, classes=3, seed=1)
    different = [render_recording(recording, seeded)[0] for recording in plan_pool(seeded)]
    assert not any(np.array_equal(wave, reseeded) for wave, reseeded in zip(waves, different, strict=True))


@pytest.mark.parametrize("bad", [{"pool": 4}, {"pool": -1}, {"pool": 10**5}, {"pool": True}, {"rephrase": 1}])
def test_bad_settings_name_the_field(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SoundscapeConfig(**bad)


def test_a_folder_written_before_a_setting_existed_has_its_default(written, tmp_path):
    config, folder = written
    path = tmp_path / "set"
    path.mkdir()
    settings = yaml.safe_load((folder / "soundscapes.yaml").read_text())
    del settings["rephrase"]
    (path / "soundscapes.yaml").write_text(yaml.safe_dump(settings))
    assert write_soundscapes(path, config, progress=False) == path
    assert [item.name for item in path.iterdir()] == ["soundscapes.yaml"]
    del settings["pool"]
    (path / "soundscapes.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(FileExistsError, match=r"\(pool\)"):
        write_soundscapes(path, config, progress=False)
    (path / "soundscapes.yaml").write_text("{}")
    with pytest.raises(FileExistsError, match="format"):
        write_soundscapes(path, config, progress=False)


def test_rephrased_captions_vary_and_keep_the_first_caption():
    plain = SoundscapeConfig.preset("hard", train=60, test=0, captions_per_clip=5)
    rephrased = SoundscapeConfig.preset("hard", train=60, test=0, captions_per_clip=5, rephrase=True)
    fixed = 0
    varied = 0
    for scene in plan(plain)["train"]:
        captions, phrases = describe(scene, plain)
        others, other_phrases = describe(scene, rephrased)
        assert others[0] == captions[0] and other_phrases == phrases and len(set(others)) == 5
        events = [event for group in scene.groups for event in group]
        truth = {event.name for event in events}
        assert all(classes_named(caption) == truth for caption in others)
        for caption in others:  # the attributes stay correct
            for words, attributes in (
                (r"\b(low|deep|high|shrill)\b", [event.pitch for event in events if event.pitch]),
                (r"quiet|soft|faint|loud|nois", [event.loudness for event in events if event.loudness]),
                (r"twice|two times|three times", [event for event in events if event.count in (2, 3)]),
            ):
                assert len(re.findall(words, caption)) == len(attributes)
        names = [phrase for group in phrases for phrase in group]
        fixed += sum(name in caption for caption in captions[1:] for name in names) / len(names)
        varied += sum(name in caption for caption in others[1:] for name in names) / len(names)
    assert fixed == pytest.approx(240) and varied < 0.4 * 240


def test_rephrased_twins_differ_in_order_only():
    config = SoundscapeConfig.preset("hard", train=0, test=40, twins=20, captions_per_clip=5, rephrase=True)
    scenes = plan(config)["test"]
    for first, second in zip(scenes[0::2], scenes[1::2], strict=True):
        captions_1, phrases_1 = describe(first, config)
        captions_2, phrases_2 = describe(second, config)
        assert phrases_1 == phrases_2[::-1]
        for caption_1, caption_2 in zip(captions_1, captions_2, strict=True):
            assert caption_1 != caption_2
            assert sorted(re.findall(r"\w+", caption_1)) == sorted(re.findall(r"\w+", caption_2))


EVERYTHING = {"classes": 36, "similar": True, "pitch": True, "loudness": True, "count": True, "later_first": 0.5}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("extra", [pytest.param({}, marks=pytest.mark.slow), EVERYTHING])
def test_every_caption_names_the_classes_of_its_scene(preset, extra):
    config = SoundscapeConfig.preset(preset, train=600, test=0, captions_per_clip=5, rephrase=True, **extra)
    seen = set()
    for scene in plan(config)["train"]:
        truth = {event.name for group in scene.groups for event in group}
        seen |= truth
        for caption in describe(scene, config)[0]:
            assert classes_named(caption) == truth, caption
    assert seen == set(class_names(config.classes, config.similar))


def test_every_form_and_head_names_its_class():
    assert set(HEADS) == set(EVENTS) and set(name_by_stems().values()) == set(EVENTS)
    for table in (CLAUSES, NOUNS, HEADS):
        for name, forms in table.items():
            for form in forms:
                for words in ({"a": "", "b": ""}, {"a": "deep loud ", "b": " faintly three times"}):
                    text = form.format(**words)
                    assert classes_named(text) == {name}, text
                    assert classes_named(f"Then the {text.upper()}.") == {name}, text


def test_no_two_classes_share_a_name(monkeypatch):
    monkeypatch.setitem(HEADS, "gong", ("gong", "bells"))
    with pytest.raises(ValueError, match=r"'bells' names both 'church bell' and 'gong'"):
        name_by_stems.__wrapped__()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ""),
        ("someone sounds at the same time", ""),
        ("a car, a horn and a phone by the door", ""),
        ("two dogs and a bell", "church bell, dog bark"),
        ("a dog bark and a dogs barking", "dog bark"),
        ("a barking", ""),
        ("a sea lion is by the sea", "seal bark, waves"),
        ("claps of thunder, then hand claps", "clapping, thunder"),
        ("a car engine and an horn of a car", "car horn, engine"),
        ("a horn honks before a horn blows", "car horn, train horn"),
        ("a car horn honks as a train sound its horn", "car horn, train horn"),
        ("an alarm clock rings", "alarm clock"),
        ("an alarm, a clock", "alarm, clock"),
        ("an alarm goes off while a clock rings", "alarm, alarm clock"),
        ("a wind - up clock and the wind", "alarm clock, wind"),
        ("a phone rings and someone dials on a phone", "phone keypad, telephone ring"),
        ("a motorcycle engine", "motorcycle"),
        ("a doorbell chimes, a door chime, a bell chimes", "church bell, doorbell"),
        ("a kitten mew", "cat meow"),
        ("a recording of a recorder", "recorder"),
        ("a bell\nrings — 犬", "church bell"),
    ],
)
def test_partial_and_wrong_captions(text, names):
    assert classes_named(text) == set(filter(None, names.split(", ")))
