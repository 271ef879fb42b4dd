"""Folders with metadata.csv, .jsonl, or .parquet, as Hugging Face's audiofolder reads them."""

import json

import pytest
from support.clips import write_clip

from atk.data import AudioError, read_data, read_split
from atk.data.sets import read_all

CLIPS = {"train/a.wav": ("a dog",), "train/b ö.wav": ("x y", "z"), "test/c.wav": ("rain, wind",)}


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(CLIPS):
        write_clip(tmp_path / name, 100 + index, 0.5 + index / 10)
    return tmp_path


def write(path, rows):
    """Write (file name, captions) in the format of the suffix."""
    if path.suffix == ".csv":
        lines = [f'"{name}","{text}"' for name, texts in rows for text in texts]
        path.write_text("\n".join(["file_name,text", *lines]), encoding="utf-8")
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"file_name": name, "captions": list(texts)}) for name, texts in rows]
        path.write_text("\n\n".join(lines))
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"file_name": [n for n, _ in rows], "caption": [list(t) for _, t in rows]}), path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("per_split", [False, True])
def test_captions_and_splits(folder, suffix, per_split):
    if per_split:
        for split in ("train", "test"):
            rows = [(name.partition("/")[2], texts) for name, texts in CLIPS.items() if name.startswith(split)]
            write(folder / split / f"metadata.{suffix}", rows)
    else:
        write(folder / f"metadata.{suffix}", CLIPS.items())
    clips = [clip for split in ("train", "test") for clip in read_data(folder, split, "raise").clips]
    assert {clip.file_name: clip.captions for clip in clips} == CLIPS
    assert [clip.path for clip in clips] == [folder / name for name in CLIPS] and clips[1].seconds == 0.6
    with pytest.raises(FileNotFoundError, match="its metadata lists no file of val, only of test, train"):
        read_data(folder, "val")


def test_without_folders_of_splits_all_files_are_for_training(folder):
    (folder / "train").rename(folder / "sounds")
    (folder / "metadata.csv").write_text("file_name,caption_1,caption_2\nsounds/a.wav,x,y\n")
    (clip,) = read_data(folder, "train").clips
    assert clip.captions == ("x", "y") and read_data(folder, "test").clips == [clip]


def test_captions_with_the_separators_of_unicode(folder):
    row = json.dumps({"file_name": "train/a.wav", "caption": "a dog\u2028barks\x85twice"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_bytes(f"{row}\r\n".encode())
    assert read_data(folder, "train", "raise").clips[0].captions == ("a dog barks twice",)


def test_our_tables_come_first(folder):
    write(folder / "metadata.csv", CLIPS.items())
    (folder / "train.csv").write_text("file_name,caption\ntest/c.wav,x\n")
    assert read_data(folder, "train") == read_split(folder, "train")


def test_bad_rows_are_named(folder):
    good, listing = {"file_name": "train/a.wav", "caption": "x"}, folder / "metadata.jsonl"
    rows = [good, {"file_name": "train/b ö.wav"}, {"caption": "x"}, [1], {"file_name": "none.wav", "caption": "x"}]
    listing.write_text("\n".join([*map(json.dumps, rows), "{"]))
    split = read_data(folder, "train")
    assert [clip.file_name for clip in split.clips] == ["train/a.wav"]
    assert dict(split.skipped) == {
        "train/b ö.wav": "no caption: no caption, text, or captions among file_name; caption_column can name another",
        "metadata.jsonl line 3": "no file_name",
        "metadata.jsonl line 4": "not a mapping of columns to values",
        "metadata.jsonl line 6": "not well-formed JSON",
        "none.wav": "no such file",
    }
    with pytest.raises(ValueError, match=r"b ö\.wav: no caption"):
        read_data(folder, "train", "raise")
    listing.write_text(json.dumps(good) + "\n" + json.dumps(good | {"file_name": "none.wav"}))
    with pytest.raises(AudioError, match=r"none\.wav: no such file"):
        read_data(folder, "train", "raise")
    (folder / "metadata.csv").write_text("file_name,caption\ntrain/a.wav,x,y\n")
    assert ("metadata.csv line 2", "3 fields for 2 columns") in read_data(folder, "train").skipped


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", b"name,caption\nx,y\n", r"metadata\.csv: lacks the column file_name"),
        ("metadata.jsonl", b"\xff\xff", r"metadata\.jsonl: not UTF-8"),
        ("metadata.parquet", b"x", r"metadata\.parquet: not a Parquet file"),
        ("metadata.jsonl", b"", r"no usable clip; it lists none"),
    ],
)
def test_metadata_that_cannot_be_read(folder, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_data(folder, "train")


def test_files_without_a_caption_are_read_for_their_sound(folder):
    write(folder / "metadata.jsonl", [("train/a.wav", [""]), ("train/b ö.wav", ["x"]), ("test/c.wav", [])])
    files = read_all(folder, on_error="raise")
    assert sorted(clip.captions for clip in files.clips) == [(), (), ("x",)] and not files.skipped
    with pytest.raises(ValueError, match="its caption is empty"):
        read_data(folder, "train", "raise")
