"""Folders of recordings: layouts, what is skipped, sources and splits, audible parts, and phrases."""

import itertools

import numpy as np
import pytest
import soundfile
from support.recorded_events import SILENCE, tone, write_tones

from atk.soundscapes.class_phrases import class_forms, phrase_of
from atk.soundscapes.recordings import EventFile, assign_splits, read_event_files, trimmed

RATE = 16000


def event_file(path):
    return EventFile(path.name, path, "bark", path.stem)


def test_one_folder_per_class(tmp_path):
    names = [
        "bark/1234_a.wav",
        "bark/1234-b.wav",
        "bark/other.wav",
        "siren/yard/x.wav",
        "siren/yard/y.wav",
        "stray.wav",
    ]
    files, skipped = read_event_files(write_tones(tmp_path, names))
    sources = {file.name: (file.event, file.source) for file in files}
    assert sources == {
        "bark/1234_a.wav": ("bark", "1234"),
        "bark/1234-b.wav": ("bark", "1234"),
        "bark/other.wav": ("bark", "bark/other"),
        "siren/yard/x.wav": ("siren", "siren/yard"),
        "siren/yard/y.wav": ("siren", "siren/yard"),
    }
    assert skipped == [("stray.wav", "in no class folder")]


def test_esc50(tmp_path):
    names = ["1-77-A-0.wav", "1-77-B-0.wav", "5-9-A-14.wav"]
    write_tones(tmp_path / "audio", names)
    rows = [f"{name},{name[0]},{event}" for name, event in zip(names, ("dog", "dog", "chirping_birds"), strict=True)]
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(["filename,fold,category", *rows, "gone.wav,1,dog", ""]))
    files, skipped = read_event_files(tmp_path)
    assert [(file.event, file.source) for file in files] == [("dog", "77"), ("dog", "77"), ("chirping_birds", "9")]
    assert skipped == [("audio/gone.wav", "no such file")]


def test_fsd50k_keeps_its_splits_and_clips_of_one_class(tmp_path):
    clips = {
        "dev": {"11": "Bark,Dog", "12": "Dog", "13": "Rain", "14": "Bark,Dog,Rain", "15": "Crowd,Speech"},
        "eval": {"21": "Bark,Dog", "22": "Rain", "23": "Dog,Rain"},
    }
    split = {"11": "train", "12": "val", "13": "train", "14": "val", "15": "train"}
    (tmp_path / "FSD50K.ground_truth").mkdir()
    for part, labels in clips.items():
        write_tones(tmp_path / f"FSD50K.{part}_audio", [f"{name}.wav" for name in labels])
        header = "fname,labels,mids,split" if part == "dev" else "fname,labels,mids"
        rows = [f'{name},"{text}",/m/0' + (f",{split[name]}" if part == "dev" else "") for name, text in labels.items()]
        (tmp_path / "FSD50K.ground_truth" / f"{part}.csv").write_text("\n".join([header, *rows, ""]))
    files, skipped = read_event_files(tmp_path)
    assert {(file.path.stem, file.event, file.split) for file in files} == {
        ("11", "Bark", "train"), ("12", "Dog", "val"), ("13", "Rain", "train"), ("21", "Bark", "test"),
        ("22", "Rain", "test"),
    }  # fmt: skip
    assert {name[-6:-4] for name, reason in skipped if reason == "several event classes"} == {"14", "15", "23"}
    assigned, left_out = assign_splits(files, ("train", "test"), 0)
    assert {file.path.stem for group in assigned["train"].values() for file in group} == {"11", "13"}
    assert left_out == {"Dog": 1}
    with (tmp_path / "FSD50K.ground_truth" / "dev.csv").open("a") as file:
        file.write("16,,,train\n17,Rain,/m/0,valid\n")
    with pytest.raises(ValueError, match=r"dev\.csv line 8: split must be train or val, got 'valid'"):
        read_event_files(tmp_path)


@pytest.mark.parametrize("splits", [("train",), ("train", "test"), ("train", "val", "test")])
@pytest.mark.parametrize("seed", range(5))
def test_no_source_is_in_two_splits_and_every_class_in_all(splits, seed):
    rng = np.random.default_rng(seed)
    files = [
        EventFile(f"{event}-{index}", None, event, str(rng.integers(60)))  # sources span classes
        for event in "abcdefgh"
        for index in range(int(rng.integers(1, 25)))
    ]
    assigned, left_out = assign_splits(files, splits, seed)
    sources = [{file.source for group in assigned[split].values() for file in group} for split in splits]
    assert not any(first & second for first, second in itertools.combinations(sources, 2))
    classes = {frozenset(assigned[split]) for split in splits}
    assert len(classes) == 1 and next(iter(classes)) | set(left_out) == {file.event for file in files}
    assert all(group for events in assigned.values() for group in events.values())
    assert assign_splits(files, splits, seed) == (assigned, left_out)


def test_splits_share_the_sources_of_a_class_by_size():
    files = [EventFile(str(index), None, "a", str(index)) for index in range(100)]
    assigned, _ = assign_splits(files, ("train", "val", "test"), 3)
    assert {split: len(events["a"]) for split, events in assigned.items()} == {"train": 70, "val": 10, "test": 20}
    others, _ = assign_splits(files, ("train", "val", "test"), 4)
    assert others["test"] != assigned["test"]


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2), (16000, 3)])
def test_silence_and_noise_around_a_sound_are_trimmed(tmp_path, rate, channels):
    wave = tone(500.0, rate=rate, channels=channels)
    noise = 0.01 * np.random.default_rng(0).standard_normal(wave.shape)  # 26 dB below the tone
    for name, samples in (("clean.wav", wave), ("noisy.wav", wave + noise)):
        soundfile.write(tmp_path / name, samples, rate)
        file, note = trimmed(event_file(tmp_path / name), RATE)
        assert note == ""
        assert file.start == pytest.approx(SILENCE, abs=0.021) and file.seconds == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(8000), "silent"),
        (np.r_[np.zeros(400), np.ones(300)] / 2, "only 24 ms of sound"),
        (None, "not readable"),
    ],
)
def test_recordings_that_cannot_be_used(tmp_path, samples, reason):
    path = tmp_path / "bad.wav"
    if samples is None:
        path.write_text("not audio")
    else:
        soundfile.write(path, samples, RATE)
    file, note = trimmed(event_file(path), RATE)
    assert file is None and note.startswith(reason)


def test_stationary_sounds_and_long_recordings_are_kept(tmp_path):
    rain = 0.1 * np.random.default_rng(0).standard_normal(40 * RATE)
    soundfile.write(tmp_path / "rain.wav", rain, RATE)
    file, _ = trimmed(event_file(tmp_path / "rain.wav"), RATE)
    assert (file.start, file.seconds) == (0.0, 30.0)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("dog_bark", "a dog bark"), ("Engine", "an engine"), ("sea_waves", "sea waves"), ("rain", "rain"),
        ("keyboard_typing", "keyboard typing"), ("pouring_water", "pouring water"), ("PhoneRing", "a phone ring"),
        ("Rattle_(instrument)", "a rattle"), ("hiss", "a hiss"), ("bus", "a bus"), ("ukulele", "a ukulele"),
        ("Bark, woof", "a bark"), ("crying_baby", "a crying baby"), ("umbrella", "an umbrella"),
        ("brushing_teeth", "brushing teeth"), ("European_siren", "a european siren"), ("hourglass", "an hourglass"),
        ("one_man_band", "a one man band"), ("u-turn", "a u-turn"),
    ],
)  # fmt: skip
def test_phrases_from_names(name, phrase):
    assert phrase_of(name) == phrase


def test_phrases_from_a_table(tmp_path):
    table = tmp_path / "phrases.csv"
    table.write_text("class,phrase,clause\ndog,a dog barking,a dog barks\ndog,a {hound},\n")
    forms = class_forms(["dog", "rain"], table)
    assert forms["noun"] == {"dog": ("a dog barking", "a {{hound}}"), "rain": ("rain",)}
    assert forms["clause"] == {"dog": ("a dog barks",)}


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ("dgo,a dog", "line 2: there is no class 'dgo'; the classes are dog, rain"),
        ("dog,", "line 2: class 'dog' has no phrase"),
        ("dog,Rain", "classes 'dog' and 'rain' have the same phrase"),
    ],
)
def test_mistakes_in_the_table_are_named(tmp_path, rows, error):
    table = tmp_path / "phrases.csv"
    table.write_text(f"class,phrase\n{rows}\n")
    with pytest.raises(ValueError, match=error):
        class_forms(["dog", "rain"], table)


def test_a_class_without_letters_needs_a_phrase():
    with pytest.raises(ValueError, match="'007' cannot be named"):
        phrase_of("007")


def test_a_folder_without_classes(tmp_path):
    with pytest.raises(ValueError, match="has no classes"):
        read_event_files(write_tones(tmp_path, ["a.wav"]))
    with pytest.raises(FileNotFoundError):
        read_event_files(tmp_path / "missing")
