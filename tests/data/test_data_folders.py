"""Reading data folders: one test for each unusual row or caption that docs/data.md describes."""

import threading
import unicodedata

import numpy as np
import pytest
import soundfile

from atk.data import AudioError, describe_skipped, read_folder, read_split
from atk.data import headers as headers_module


def write_audio(folder, *names, seconds=0.5):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.zeros(round(seconds * 8000)), 8000)


def write_csv(folder, text, split="train", encoding="utf-8"):
    (folder / f"{split}.csv").write_bytes(text.encode(encoding))


def test_captions_of_a_clip_are_collected(tmp_path):
    write_audio(tmp_path, "audio/a.wav", "b.wav")
    write_csv(
        tmp_path,
        "file_name,caption,year\n"
        "audio/a.wav,  A dog\tbarks ,1\n"
        '\nb.wav,"a bell, then\nrain",2\n'
        "audio/a.wav,A dog barks,3\n"
        "audio/a.wav,a dog barks,4\n",
    )
    split = read_split(tmp_path, "train")
    assert [clip.file_name for clip in split.clips] == ["audio/a.wav", "b.wav"]
    assert split.clips[0].captions == ("A dog barks", "a dog barks")
    assert split.clips[1].captions == ("a bell, then rain",)
    assert split.clips[0].path == tmp_path / "audio/a.wav"
    assert split.clips[0].seconds == 0.5
    assert split.skipped == []


def test_clotho_columns(tmp_path):
    write_audio(tmp_path, "a.wav", "b.wav")
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    write_csv(tmp_path, header + "a.wav,v,w,x,y,z\nb.wav,v,,v,,\n", "test")
    assert [clip.captions for clip in read_split(tmp_path, "test").clips] == [tuple("vwxyz"), ("v",)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_captions_of_any_language_and_length_are_kept(tmp_path, encoding):
    write_audio(tmp_path, "a.wav", "b.wav")
    long = " ".join(["犬が吠える", "ein Hund bellt", "🐕"] * 2000)
    write_csv(tmp_path, f"file_name,caption\r\na.wav,{long}\r\nb.wav,{long}\r\n", encoding=encoding)
    split = read_split(tmp_path, "train")
    assert [clip.captions for clip in split.clips] == [(long,), (long,)]  # two clips may have the same caption


@pytest.mark.parametrize("name", ["a b  c .wav", "Ø 犬 🐕.wav", "100% #1, [x].wav"])
def test_unusual_file_names(tmp_path, name):
    write_audio(tmp_path, name)
    write_csv(tmp_path, f'file_name,caption\n"{name}",x\n')
    assert [clip.file_name for clip in read_split(tmp_path, "train").clips] == [name]


def test_name_in_the_other_unicode_form(tmp_path):
    written, listed = (unicodedata.normalize(form, "café.wav") for form in ("NFD", "NFC"))
    assert written != listed
    write_audio(tmp_path, written)
    write_csv(tmp_path, f"file_name,caption\n{listed},x\n")
    (clip,) = read_split(tmp_path, "train").clips
    assert clip.file_name == listed and clip.path.exists()


@pytest.mark.parametrize(
    ("row", "name", "reason"),
    [
        ("b.wav,", "b.wav", "train.csv line 3 has no caption"),
        ("b.wav,  \t ", "b.wav", "train.csv line 3 has no caption"),
        ("b.wav", "b.wav", "train.csv line 3 has no caption"),
        (",a dog", "train.csv line 3", "no file name"),
        ("b.wav,a dog, a cat", "b.wav", "train.csv line 3 has 3 fields for 2 columns"),
    ],
)
def test_bad_row(tmp_path, row, name, reason):
    write_audio(tmp_path, "a.wav", "b.wav")
    write_csv(tmp_path, f"file_name,caption\na.wav,x\n{row}\nb.wav,y\n")
    split = read_split(tmp_path, "train")
    assert [clip.captions for clip in split.clips] == [("x",), ("y",)]
    ((skipped, why),) = split.skipped
    assert skipped == name and why.startswith(reason)
    with pytest.raises(ValueError, match=reason):
        read_split(tmp_path, "train", on_error="raise")


def test_bad_files(tmp_path):
    write_audio(tmp_path, "good.wav", "zero.wav")
    write_audio(tmp_path, "no samples.wav", seconds=0)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not audio")
    names = ["missing.wav", "empty.wav", "good.wav", "text.wav", "no samples.wav", "n" * 300 + ".wav", "犬" * 100]
    write_csv(tmp_path, "file_name,caption\n" + "".join(f"{name},x\n" for name in names))
    split = read_split(tmp_path, "train")
    assert [clip.file_name for clip in split.clips] == ["good.wav"]
    assert [name for name, _ in split.skipped] == [name for name in names if name != "good.wav"]
    assert describe_skipped(split.skipped, 1) == "skipped 6: missing.wav (no such file); and 5 more"
    assert describe_skipped([]) == ""
    with pytest.raises(AudioError, match=r"^missing\.wav: no such file$"):
        read_split(tmp_path, "train", on_error="raise")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lacks the column file_name; its columns are none"),
        (b"file_name,text\na.wav,x\n", r"lacks a column caption \(or .*\); its columns are file_name, text"),
        (b"file;caption\na.wav;x\n", "lacks the column file_name; its columns are file, caption"),
        (b"file_name,caption\n", "no usable clip; it lists none"),
        (b"file_name,caption\nb.wav,x\n", r"no usable clip; skipped 1: b\.wav \(no such file\)"),
        ("file_name,caption\na.wav,caf\xe9\n".encode("latin-1"), "not UTF-8"),
        ("file_name,caption\na.wav,x\n".encode("utf-16-le"), "lacks the column file_name"),  # no byte-order mark
        (b'file_name,caption\na.wav,"x\na.wav,y\n', r"line 2: not well-formed CSV \(a quote is never closed\)"),
        (b'file_name,caption\na.wav,"x" y\n', "line 2: not well-formed CSV"),
    ],
)
@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_bad_csv_always_raises(tmp_path, content, message, on_error):
    write_audio(tmp_path, "a.wav")
    (tmp_path / "train.csv").write_bytes(content)
    if on_error == "raise" and b"b.wav" in content:
        message = "b.wav: no such file"
    with pytest.raises(ValueError, match=message):
        read_split(tmp_path, "train", on_error)


def test_missing_folder_missing_split_and_unknown_on_error(tmp_path):
    write_csv(tmp_path, "", "train")
    with pytest.raises(FileNotFoundError, match=r"test\.csv: no such file; the folder has train\.csv"):
        read_split(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="no such data folder"):
        read_split(tmp_path / "none", "train")
    with pytest.raises(ValueError, match="on_error must be one of 'skip', 'raise', got 'ignore'"):
        read_split(tmp_path, "train", "ignore")


def test_unlabeled_folder(tmp_path):
    write_audio(tmp_path, "x/a.wav", "B.flac")
    (tmp_path / "c.ogg").touch()
    split = read_folder(tmp_path)
    assert [(clip.file_name, clip.captions) for clip in split.clips] == [("B.flac", ()), ("x/a.wav", ())]
    assert split.skipped == [("c.ogg", "empty file (0 bytes)")]
    with pytest.raises(AudioError, match=r"^c\.ogg: empty file"):
        read_folder(tmp_path, on_error="raise")
    (tmp_path / "a.mid").touch()
    with pytest.raises(AudioError, match=r"a\.mid: this format cannot be read"):
        read_folder(tmp_path, on_error="raise")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no usable clip"):
        read_folder(tmp_path / "none")


@pytest.mark.parametrize("slow", [0.0, 1e9])  # threads are used from this many seconds per file
def test_files_are_read_in_order_with_and_without_threads(monkeypatch, slow):
    monkeypatch.setattr(headers_module, "_SLOW", slow)
    threads = set()

    def read(item):
        threads.add(threading.get_ident())
        return -item

    assert list(headers_module.map_files(read, range(1000))) == list(range(0, -1000, -1))
    assert (len(threads) > 1) is (slow == 0)
    some = headers_module.map_files(read, range(100_000))
    assert next(some) == 0
    some.close()  # does not read the rest
