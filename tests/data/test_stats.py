"""`atk data stats` counts what a data folder contains, and finds what it contains twice."""

import json
import os

import numpy as np
import pytest
import soundfile
from support.pair_shards import shards_of

from atk.cli.main import main
from atk.data import Clip, contents, read_split
from atk.data.check import check_data
from atk.data.published import import_set
from atk.data.stats import data_stats, draw_stats, folder_stats

RATE = 8000


def sound(path, seconds, seed, channels=1, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, 0.1, (round(seconds * rate), channels))
    soundfile.write(os.fsencode(path), samples, rate)


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
    monkeypatch.setattr(contents, "_EDGE_BYTES", 100)
    paths = [tmp_path / f"{index}" for index in range(3)]
    for path, middle in zip(paths, (b"1", b"2", b"1"), strict=True):
        path.write_bytes(b"x" * 500 + middle + b"x" * 500)
    clips = [Clip(path.name, path, (), 1.0) for path in (*paths, tmp_path / "none", tmp_path)]
    first, second, third, *unreadable = contents.content_keys(clips, [1] * len(clips))
    assert first == third and first != second and unreadable == [None] * 2
    assert contents.size_of(clips[0]) == 1001 and contents.size_of(clips[3]) is None


def test_the_command_prints_tables_or_json_and_draws(folder, capsys):
    out = folder / "figures" / "stats.png"
    main(["data", "stats", str(folder), "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["split", "clips", "hours"] and lines[1].split()[:4] == ["train", "4", "0.00", "1.0"]
    assert "train: 3 x 8000 Hz, 1 x 44100 Hz, 3 x mono, 1 x stereo, 3 x .wav, 1 x .flac; 1 skipped" in lines
    assert "1 duplicate by content in train and test; first: a.wav = test/again.wav" in lines
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


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """Two splits with one caption per clip, which every layout can hold; a training clip is in test, too."""
    monkeypatch.setenv("ATK_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "plain"
    for index, name in enumerate(("a", "b", "c", "d")):
        sound(root / f"{name}.wav", 1.0, seed=index, channels=1 + (name == "d"), rate=RATE * (1 + (name == "a")))
    (root / "sub").mkdir()
    (root / "sub" / "b.wav").write_bytes((root / "b.wav").read_bytes())
    (root / "train.csv").write_text("file_name,caption\na.wav,A dog\nb.wav,rain falls\nc.wav,rain  falls\n")
    (root / "val.csv").write_text("file_name,caption\nd.wav,a bell\n")
    (root / "test.csv").write_text("file_name,caption\nsub/b.wav,a dog\n")
    return root


def as_shards(plain, out, monkeypatch):
    return shards_of(plain, out)


def as_remote_shards(plain, out, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").put(str(shards_of(plain, out)), "/stats", recursive=True)
    return "memory://stats"


def as_audiofolder(plain, out, monkeypatch):
    for split in ("train", "val", "test"):
        for clip in read_split(plain, split).clips:
            (out / split / clip.path.name).parent.mkdir(parents=True, exist_ok=True)
            (out / split / clip.path.name).write_bytes(clip.path.read_bytes())
            with (out / split / "metadata.jsonl").open("a") as file:
                file.write(json.dumps({"file_name": clip.path.name, "text": clip.captions[0]}) + "\n")
    return out


def hub_tables(plain, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", plain.parent / "hub")
    monkeypatch.setattr(datasets.builder.config, "HF_DATASETS_CACHE", plain.parent / "hub")
    tables = {}
    for split in ("train", "val", "test"):
        clips = read_split(plain, split).clips
        audio = [{"bytes": clip.path.read_bytes(), "path": clip.path.name} for clip in clips]
        tables[split] = datasets.Dataset.from_dict({"audio": audio, "text": [clip.captions[0] for clip in clips]})
    return datasets, datasets.DatasetDict(tables)


def as_saved(plain, out, monkeypatch):
    hub_tables(plain, monkeypatch)[1].save_to_disk(str(out))
    return out


def as_parquet(plain, out, monkeypatch):
    for split, table in hub_tables(plain, monkeypatch)[1].items():
        table.to_parquet(str(out / "data" / f"{split}-00000-of-00001.parquet"))
    return out


def on_the_hub(plain, out, monkeypatch):
    datasets, tables = hub_tables(plain, monkeypatch)
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: tables)
    return "hf://datasets/me/sounds"


LAYOUTS = (as_shards, as_remote_shards, as_audiofolder, as_saved, as_parquet, on_the_hub)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_numbers_of_a_folder(plain, tmp_path, monkeypatch, layout):
    data = layout(plain, tmp_path / "other", monkeypatch)
    expected, stats = folder_stats(plain), data_stats(data, "text")
    assert stats.to_dict()["splits"] == expected.to_dict()["splits"] and stats.vocabulary == expected.vocabulary == 5
    assert list(stats.splits) == ["train", "val", "test"] and stats.splits["train"].sample_rates == {RATE: 2, 16000: 1}
    duplicates = [(one.by, one.splits, one.count) for one in stats.duplicates]
    assert duplicates == [(one.by, one.splits, one.count) for one in expected.duplicates]
    assert ("content", ("train", "test"), 1) in duplicates and ("name", ("train", "test"), 1) in duplicates
    notes = {problem.reason for problem in check_data([str(data)]).problems}
    assert notes == {"in train and test"}  # in a folder, only one and the same file is in two splits


def test_tables_may_lack_the_names_of_files(plain, tmp_path, monkeypatch, capsys):
    _, tables = hub_tables(plain, monkeypatch)
    unnamed = tables.map(lambda row: {"audio": row["audio"]["bytes"]})
    unnamed.save_to_disk(str(tmp_path / "saved"))
    main(["data", "stats", str(tmp_path / "saved")])
    lines = capsys.readouterr().out.splitlines()
    assert "train: 2 x 8000 Hz, 1 x 16000 Hz, 3 x mono, 3 x without a file name" in lines
    assert "1 duplicate by content in train and test; first: train/1 = test/0" in lines
    assert not [line for line in lines if "by name" in line]
    assert [one.name for one in check_data([str(tmp_path / "saved")]).problems] == ["train/1"]


def test_several_data_sets_are_compared(plain, tmp_path, capsys):
    shards = shards_of(plain, tmp_path / "shards", count=1)
    main(["data", "stats", str(plain), f"{shards}/train/{{0..0}}.tar", str(plain)])
    lines = capsys.readouterr().out.splitlines()
    splits = [f"{plain}/train", f"{plain}/val", f"{plain}/test", f"{shards}/train/{{0..0}}.tar/train"]
    assert [line.split()[0] for line in lines[1:5]] == splits
    example = f"{plain}/a.wav = {shards}/train/0.tar:data/set/a.wav"
    assert f"3 duplicates by content in {splits[0]} and {splits[3]}; first: {example}" in lines
    with pytest.raises(SystemExit) as stop:
        main(["data", "stats", str(plain), "--caption-column", "text"])
    assert stop.value.code == 2 and "caption_column is for shards" in capsys.readouterr().err


def test_names_that_are_hard_to_draw(plain, tmp_path):
    odd = tmp_path / "o$d\udcff$" / ("long" * 40)
    sound(odd / "e.wav", 2.0, seed=9)
    stats = data_stats([plain, odd])
    assert list(stats.splits)[-1] == f"{odd}/all"
    draw_stats(stats, tmp_path / "stats.png")  # without a warning
    assert (tmp_path / "stats.png").read_bytes().startswith(b"\x89PNG")


def test_an_imported_folder(tmp_path):
    for split, seed in (("development", 1), ("evaluation", 2)):
        sound(tmp_path / "set" / split / "x.wav", 1.0, seed=seed)
        row = ",".join(["x.wav", *(f"caption {index}" for index in range(5))])
        header = ",".join(["file_name", *(f"caption_{index}" for index in range(1, 6))])
        (tmp_path / "set" / f"clotho_captions_{split}.csv").write_text(f"{header}\n{row}\n")
    import_set("clotho", tmp_path / "set", tmp_path / "out")
    stats = data_stats(tmp_path / "out")
    assert {name: len(split.words) for name, split in stats.splits.items()} == {"train": 5, "test": 5}
    assert [(one.by, one.count) for one in stats.duplicates] == [("name", 1), ("caption", 5)]
    place = tmp_path / "set"  # absolute names are not put below the name of the data set
    examples = data_stats([tmp_path / "out", place / "development"]).duplicates[0].examples
    assert examples == [f"{place}/development/x.wav = {place}/evaluation/x.wav"]
