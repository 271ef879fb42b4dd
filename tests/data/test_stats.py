"""`atk data stats` counts what a data folder contains, and finds what it contains twice."""

import json

import numpy as np
import pytest
import soundfile

from atk.cli.main import main
from atk.data import stats as stats_module
from atk.data.stats import folder_stats

RATE = 8000


def sound(path, seconds, seed, channels=1, rate=RATE):
    path.parent.mkdir(exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, 0.1, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate)


@pytest.fixture
def folder(tmp_path):
    """Names, contents, and captions that occur twice, within and across splits."""
    sound(tmp_path / "a.wav", 1.0, seed=1)
    sound(tmp_path / "b.wav", 1.0, seed=2)  # as long as a.wav
    sound(tmp_path / "copy.wav", 1.0, seed=1)  # the content of a.wav
    sound(tmp_path / "c.flac", 4.0, seed=3, channels=2, rate=44100)
    sound(tmp_path / "test" / "b.wav", 2.0, seed=4)  # the name of b.wav
    sound(tmp_path / "test" / "again.wav", 1.0, seed=1)
    (tmp_path / "train.csv").write_text(
        "file_name,caption_1,caption_2\na.wav,A dog barks!,a dog barks\nb.wav,a dog  barks,rain doesn't fall\n"
        "copy.wav,wind,\nc.flac,a bell,\nnone.wav,gone,\n"
    )
    (tmp_path / "test.csv").write_text("file_name,caption\ntest/b.wav,a Bell\ntest/again.wav,thunder\n")
    return tmp_path


def test_numbers_of_a_folder(folder):
    train = folder_stats(folder).splits["train"]
    assert train.seconds.tolist() == [1.0, 1.0, 1.0, 4.0] and train.skipped == 1
    assert train.words.tolist() == [3, 3, 3, 3, 1, 2] and train.captions_per_clip.tolist() == [2, 2, 1, 1]
    assert train.sample_rates == {RATE: 3, 44100: 1} and train.channels == {1: 3, 2: 1}
    assert train.formats == {".wav": 3, ".flac": 1}
    assert train.vocabulary == len({"a", "dog", "barks", "rain", "doesn't", "fall", "wind", "bell"})
    result = folder_stats(folder).to_dict()
    assert result["vocabulary"] == train.vocabulary + 1
    assert result["splits"]["train"]["seconds"] == {"min": 1.0, "median": 1.0, "mean": 1.75, "max": 4.0}
    assert result["splits"]["test"]["hours"] == round(3 / 3600, 4)


def test_duplicates_within_and_across_splits(folder):
    groups = {(one.by, one.splits): (one.count, one.examples) for one in folder_stats(folder).duplicates}
    assert groups == {
        ("name", ("train", "test")): (1, ["b.wav = test/b.wav"]),
        ("content", ("train",)): (1, ["a.wav = copy.wav"]),
        ("content", ("train", "test")): (1, ["a.wav = test/again.wav"]),
        ("caption", ("train",)): (1, ["a dog barks"]),
        ("caption", ("train", "test")): (1, ["a bell = a Bell"]),
    }


def test_contents_that_differ_only_in_the_middle_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(stats_module, "_EDGE_BYTES", 100)
    contents = [b"x" * 500 + middle + b"x" * 500 for middle in (b"1", b"2", b"1")]
    paths = [tmp_path / f"{index}" for index in range(3)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    first, second, third = stats_module._content_keys([str(path) for path in paths], None)
    assert first == third and first != second
    unlike = stats_module._content_keys([str(paths[0]), str(tmp_path / "none"), str(tmp_path)], None)
    assert unlike == [None] * 3


def test_the_command_prints_tables_or_json_and_draws(folder, capsys):
    out = folder / "figures" / "stats.png"
    main(["data", "stats", str(folder), "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["split", "clips", "hours"] and lines[1].split()[:4] == ["train", "4", "0.00", "1.0"]
    assert "train: 3 x 8000 Hz, 1 x 44100 Hz, 3 x 1 channels, 1 x 2 channels, 3 x .wav, 1 x .flac; 1 skipped" in lines
    assert "1 duplicates by content in train and test; first: a.wav = test/again.wav" in lines
    assert out.read_bytes().startswith(b"\x89PNG")
    main(["data", "stats", str(folder), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(folder_stats(folder).to_dict()))
    with pytest.raises(SystemExit) as stop:
        main(["data", "stats", str(folder), "--out", str(folder / "train.csv")])
    assert stop.value.code == 2 and "train.csv exists and is not a PNG picture" in capsys.readouterr().err


def test_a_folder_without_splits(tmp_path, capsys):
    sound(tmp_path / "a.wav", 1.0, seed=1)
    main(["data", "stats", str(tmp_path), "--out", str(tmp_path / "stats.png")])
    assert capsys.readouterr().out.splitlines()[-1] == "no duplicates by name, content, or caption"
    assert list(folder_stats(tmp_path).splits) == ["all"]
    (tmp_path / "none").mkdir()
    for folder in (tmp_path / "none", tmp_path / "nowhere"):
        with pytest.raises(SystemExit) as stop:
            main(["data", "stats", str(folder)])
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
