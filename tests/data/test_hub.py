"""Data sets of the `datasets` library, in every form in which it keeps audio."""

import itertools
import json
import shutil

import pytest
import soundfile
import torch
from support.unlabeled_cases import audio_bytes

from atk.data import AudioError, audio_info, read_data, read_split, train_loader
from atk.data.headers import collecting, taking_from
from atk.data.hub import _Header
from atk.data.sets import read_all
from atk.ops.user_cache import cache_folder

datasets = pytest.importorskip("datasets", reason="needs the extra hub")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FORMATS = ("FLAC", "WAV", "OGG", "MP3")
CONTENTS = [audio_bytes(index, file_format) for index, file_format in enumerate(FORMATS)]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("ATK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(datasets.builder.config, "HF_DATASETS_CACHE", tmp_path / "hub")


def table(contents=CONTENTS, **columns):
    columns = columns or {"caption": [f"a sound number {index}" for index in range(len(contents))]}
    audio = [{"bytes": content, "path": f"{index}.x"} for index, content in enumerate(contents)]
    return pa.table({"id": list(range(len(contents))), "audio": audio, **columns})


def parquet(folder, **splits):
    """Write Parquet files as they lie in a repository on the hub."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, content in splits.items():
        pq.write_table(content, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def clips_of(path, split="train", **options):
    return read_data(path, split, **options).clips


def as_audio(split):
    """A table of the library with a feature for audio, which it would decode."""
    return datasets.Dataset(split).cast_column("audio", datasets.Audio(sampling_rate=8000))


def test_batches_equal_those_of_a_folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    names = [f"{index}.{file_format.lower()}" for index, file_format in enumerate(FORMATS)]
    for name, content in zip(names, CONTENTS, strict=True):
        (folder / name).write_bytes(content)
    lines = [f"{name},a sound number {index}" for index, name in enumerate(names)]
    (folder / "train.csv").write_text("\n".join(["file_name,caption", *lines]))
    files, rows = read_split(folder, "train").clips, clips_of(parquet(tmp_path / "hub data", train=table()))
    assert [(clip.captions, clip.seconds) for clip in rows] == [(clip.captions, clip.seconds) for clip in files]
    options = {"sample_rate": 4000, "clip_seconds": 0.5, "batch_size": 2}
    for batch, other in itertools.islice(
        zip(train_loader(files, **options), train_loader(rows, **options), strict=True), 4
    ):
        assert torch.equal(batch.audio, other.audio) and batch.captions == other.captions


def test_audio_without_captions_is_read_for_its_sound(tmp_path):
    some = table(caption=["a sound", "", None, "another sound"])
    files = read_all(parquet(tmp_path / "some", train=some))
    assert [clip.captions for clip in files.clips] == [("a sound",), (), (), ("another sound",)] and not files.skipped
    files = read_all(parquet(tmp_path / "none", train=table(id2=[1, 2, 3, 4])))
    assert [clip.captions for clip in files.clips] == [()] * 4
    with pytest.raises(ValueError, match="no column caption"):
        read_data(tmp_path / "none", "train")


@pytest.mark.slow
def test_workers_read_tables(tmp_path):
    clips = clips_of(parquet(tmp_path / "data", train=table()))
    batches = [
        next(iter(train_loader(clips, sample_rate=4000, clip_seconds=0.5, batch_size=2, workers=workers)))
        for workers in (0, 1)
    ]
    assert torch.equal(batches[0].audio, batches[1].audio)


@pytest.mark.parametrize("form", ["parquet", "saved splits", "saved", "hub"])
def test_forms_and_splits(tmp_path, form, monkeypatch):
    splits = {"train": table(), "validation": table(CONTENTS[:2])}
    path, loaded = str(tmp_path / "data"), datasets.DatasetDict({name: as_audio(t) for name, t in splits.items()})
    if form == "parquet":
        parquet(tmp_path / "data", **splits)
    elif form == "saved splits":
        loaded.save_to_disk(path)
    elif form == "saved":
        loaded["validation"].save_to_disk(path)
    else:
        calls = []
        monkeypatch.setattr(datasets, "load_dataset", lambda **options: (calls.append(options), loaded)[1])
        path = "hf://datasets/me/sounds@refs/convert/parquet#small"
    clips = clips_of(path, "val")
    assert [clip.captions for clip in clips] == [("a sound number 0",), ("a sound number 1",)]
    assert [audio_info(clip.path).sample_rate for clip in clips] == [8000, 8000]
    if form == "saved":
        assert len(clips_of(path)) == 2  # a single table belongs to no split in particular
        return
    assert len(clips_of(path)) == 4
    with pytest.raises(FileNotFoundError, match="no split test; it has train, val"):
        clips_of(path, "test")
    if form == "hub":
        assert calls[0] == {"path": "me/sounds", "revision": "refs/convert/parquet", "name": "small"}
        assert str(clips[1].path) == f"{path}/val/1"


@pytest.mark.parametrize(
    ("columns", "option", "captions"),
    [
        ({"text": ["x", " y  z"]}, None, [("x",), ("y z",)]),
        ({"captions": [["x", "y", "x"], ["z"]], "text": ["a", "b"]}, None, [("a",), ("b",)]),
        ({"captions": [["x", "y", "x"], ["z"]]}, None, [("x", "y"), ("z",)]),
        ({"caption_1": ["x", "y"], "caption_2": ["z", None]}, None, [("x", "z"), ("y",)]),
        ({"caption": ["x", "y"], "title": ["a", "b"]}, "title", [("a",), ("b",)]),
    ],
)
def test_captions(tmp_path, columns, option, captions):
    clips = clips_of(parquet(tmp_path / "d", train=table(CONTENTS[:2], **columns)), caption_column=option)
    assert [clip.captions for clip in clips] == captions


def test_audio_is_a_struct_bytes_or_the_path_of_a_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", [0.0] * 4000, 8000)
    rows = [{"bytes": CONTENTS[0], "path": None}, {"bytes": None, "path": str(tmp_path / "a.wav")}]
    folder = parquet(tmp_path / "a", train=pa.table({"audio": rows, "caption": ["x", "y"]}))
    assert [clip.seconds for clip in clips_of(folder)] == [3.0, 0.5]
    assert not (cache_folder() / "tables").exists()  # the file may change
    folder = parquet(tmp_path / "b", train=pa.table({"flac": CONTENTS[:1], "caption": ["x"]}))
    assert [clip.seconds for clip in clips_of(folder)] == [3.0]


def test_rows_that_cannot_be_used_are_named(tmp_path):
    rows = [
        *({"bytes": content, "path": None} for content in (CONTENTS[0], b"x", b"", CONTENTS[1])),
        *({"bytes": None, "path": path} for path in (None, str(tmp_path / "none.wav"))),
    ]
    content = pa.table({"audio": rows, "caption": ["x", "x", "x", None, "x", "x"]})
    folder = parquet(tmp_path / "d", train=content)
    split = read_data(folder, "train")
    assert [clip.file_name for clip in split.clips] == ["train/0"]
    assert split.skipped == [
        ("train/1", "not readable as audio (Format not recognised)"),
        ("train/2", "empty file (0 bytes)"),
        ("train/3", "its caption is empty"),
        ("train/4", "the row has no audio"),
        ("train/5", "no such file"),
    ]
    with pytest.raises(AudioError, match="train/1: not readable"):
        read_data(folder, "train", "raise")


def test_lengths_are_cached_until_the_table_changes(tmp_path, monkeypatch):
    folder = str(tmp_path / "d")
    as_audio(table()).save_to_disk(folder)
    with collecting() as headers:
        first = [clip.seconds for clip in clips_of(folder)]
    (file,) = (cache_folder() / "tables").iterdir()
    whole = file.read_bytes()
    for content in (b"", b"{", json.dumps({"key": [], "headers": []}).encode(), whole.replace(b"3.0", b'"x"', 1)):
        file.write_bytes(content)
        assert [clip.seconds for clip in clips_of(folder)] == first and file.read_bytes() == whole
    with monkeypatch.context() as patch:
        patch.setattr("atk.data.hub.audio_info", None)
        assert [clip.seconds for clip in clips_of(folder)] == first
    with monkeypatch.context() as patch:  # installing PyAV may make more rows readable
        patch.setattr("atk.data.codecs.has_av", lambda: None)
        patch.setattr("atk.data.hub._header", lambda column, row: _Header("", 7.0))
        assert [clip.seconds for clip in clips_of(folder)] == [7.0] * 4
    with monkeypatch.context() as patch:
        patch.setenv("ATK_CACHE", str(file))
        with pytest.warns(match="cannot be written; .*d/train is read at every start"):
            assert [clip.seconds for clip in clips_of(folder)] == first
        patch.setattr("atk.data.hub._header", None)
        with taking_from(headers):
            assert [clip.seconds for clip in clips_of(folder)] == first
    shutil.rmtree(folder)
    as_audio(table(CONTENTS[:1])).save_to_disk(folder)
    assert len(clips_of(folder)) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: parquet(folder, train=table(CONTENTS[:1], name=["x"])),
            "no column caption, text, or captions",
        ),
        (
            lambda folder: parquet(folder, train=pa.table({"caption": ["x"]})),
            "no column with audio; its columns are",
        ),
        (lambda folder: parquet(folder, train=table([b"x"])), r"no usable clip; skipped 1: train/0 \(not readable as"),
        (lambda folder: (parquet(folder) / "data" / "train.parquet").write_bytes(b"x"), "d: cannot be loaded .*"),
        (lambda folder: (parquet(folder) / "state.json").write_bytes(b"{}"), "d: cannot be loaded .*"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, make, message):
    make(tmp_path / "d")
    with pytest.raises(ValueError, match=message):
        read_data(tmp_path / "d", "train")


@pytest.mark.parametrize("name", ["hf://datasets/sounds", "hf://datasets/", "hf://datasets/a/b#"])
def test_names_of_the_hub(name):
    with pytest.raises(ValueError, match=f"{name}: must be hf://datasets/OWNER/NAME, optionally with @REVISION and"):
        read_data(name, "train")
