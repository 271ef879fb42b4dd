"""Headers are read once: a later start opens no audio file that has not changed."""

import os
import pickle
import threading
import warnings

import numpy as np
import pytest
import soundfile

from atk.data import AudioError, Clip, DataWarning, headers, read_folder, read_references, read_split
from atk.data.check import check_folder
from atk.data.headers import CACHE_NAME, collecting, read_headers, taking_from

RATE = 8000
COUNT = 6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder of six clips, whose headers are kept although they are few and new."""
    monkeypatch.setattr(headers, "_FEWEST", 1)
    monkeypatch.setattr(headers, "_FRESH", -(10**9))
    monkeypatch.setenv("ATK_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data"
    path.mkdir()
    for index in range(COUNT):
        soundfile.write(path / f"{index}.wav", np.zeros(RATE * (index + 1)), RATE)
    rows = "".join(f"{index}.wav,sound {index}\n" for index in range(COUNT))
    (path / "train.csv").write_text("file_name,caption\n" + rows)
    return path


@pytest.fixture
def opened(monkeypatch):
    """The names of the files whose headers are read from now on."""
    names = []
    read = headers.audio_info
    monkeypatch.setattr(headers, "audio_info", lambda path: names.append(os.path.basename(path)) or read(path))  # noqa: PTH119
    return names


def seconds(folder):
    return [clip.seconds for clip in read_split(folder, "train").clips]


LENGTHS = [float(index + 1) for index in range(COUNT)]


def test_the_second_start_opens_no_file(folder, opened):
    assert seconds(folder) == LENGTHS and len(opened) == COUNT
    opened.clear()
    assert seconds(folder) == LENGTHS
    assert len(read_folder(folder).clips) == len(read_references(folder).clips) == COUNT
    assert check_folder(folder).problems == []
    folder = folder.rename(folder.with_name("moved"))  # keys are relative to the folder
    assert seconds(folder) == LENGTHS and opened == []


def test_what_has_changed_is_read_again(folder, opened):
    seconds(folder)
    opened.clear()
    soundfile.write(folder / "0.wav", np.zeros(10 * RATE), RATE)  # another size
    status = (folder / "1.wav").stat()
    os.utime(folder / "1.wav", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (folder / "2.wav").unlink()
    (folder / "3.wav").write_bytes(b"")
    split = read_split(folder, "train")
    assert [clip.seconds for clip in split.clips] == [10.0, 2.0, 5.0, 6.0]
    assert split.skipped == [("2.wav", "no such file"), ("3.wav", "empty file (0 bytes)")]
    assert sorted(opened) == ["0.wav", "1.wav", "2.wav", "3.wav"]
    opened.clear()
    assert len(read_split(folder, "train").clips) == 4 and sorted(opened) == ["2.wav", "3.wav"]  # errors are not kept


def test_what_was_read_before_a_stop_is_kept(folder, opened):
    (folder / "3.wav").write_bytes(b"")
    with pytest.raises(AudioError, match=r"3\.wav: empty file"):
        read_split(folder, "train", on_error="raise")
    opened.clear()
    read_split(folder, "train")
    assert "0.wav" not in opened and "5.wav" in opened


def damaged(content):
    """Damaged, foreign, and outdated versions of a file of headers."""
    return {
        "empty": b"",
        "cut": content[:-1],
        "shorter": content[:-40],
        "flipped": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "newer": content.replace(b"atk headers 1\n", b"atk headers 2\n"),
        "zeros": bytes(len(content)),
        "text": b"a foreign file\n",
    }


@pytest.mark.parametrize("damage", damaged(b"x" * 50))
def test_a_damaged_file_is_read_again_with_a_note(folder, opened, damage):
    seconds(folder)
    cache = folder / CACHE_NAME
    content = damaged(cache.read_bytes())[damage]
    cache.write_bytes(content)
    opened.clear()
    with pytest.warns(DataWarning, match=r"\.atk-headers: not a list of headers that this version can use; the files"):
        assert seconds(folder) == LENGTHS
    assert len(opened) == COUNT
    opened.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if damage in ("empty", "zeros", "text") else "error")
        assert seconds(folder) == LENGTHS
    assert opened == []
    if damage in ("empty", "zeros", "text"):  # not ours, so the user's cache is used
        assert cache.read_bytes() == content


def test_a_folder_that_cannot_be_written_uses_the_cache_of_the_user(folder, opened, monkeypatch, tmp_path):
    write = headers.replace_file

    def refuse(path, content):
        if path.parent == folder:
            raise PermissionError(13, "Permission denied")
        write(path, content)

    monkeypatch.setattr(headers, "replace_file", refuse)
    seconds(folder)
    assert not (folder / CACHE_NAME).exists() and len(list((tmp_path / "cache").iterdir())) == 1
    opened.clear()
    assert seconds(folder) == LENGTHS and opened == []
    monkeypatch.setattr(headers, "replace_file", lambda *_: refuse(folder / "x", b""))
    (folder / "0.wav").touch()
    assert seconds(folder) == LENGTHS  # nothing can be written, and nothing is said


def test_few_or_new_files_leave_no_file_behind(folder, monkeypatch):
    monkeypatch.setattr(headers, "_FRESH", 2 * 10**9)
    seconds(folder)
    monkeypatch.setattr(headers, "_FRESH", -(10**9))
    monkeypatch.setattr(headers, "_FEWEST", 1000)
    seconds(folder)
    assert not (folder / CACHE_NAME).exists()


def test_files_that_were_new_at_the_start_of_a_long_scan_leave_no_file_behind(folder, monkeypatch):
    now = [headers.time.time_ns()]
    read = headers.audio_info

    def read_slowly(path):
        now[0] += 10**9
        return read(path)

    monkeypatch.setattr(headers, "_FRESH", 2 * 10**9)
    monkeypatch.setattr(headers.time, "time_ns", lambda: now[0])
    monkeypatch.setattr(headers, "audio_info", read_slowly)
    seconds(folder)
    assert not (folder / CACHE_NAME).exists()


def test_writers_at_the_same_time_leave_a_whole_file(folder, opened):
    paths = [str(folder / f"{index}.wav") for index in range(COUNT)]
    threads = [
        threading.Thread(target=lambda part: list(read_headers(part, folder)), args=([path] * 50,)) for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seconds(folder) == LENGTHS
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".atk-") and path.name != CACHE_NAME]


def test_other_processes_take_headers_without_looking_at_the_files(folder, opened):
    (folder / "3.wav").write_bytes(b"")
    with collecting() as shared:
        first = read_split(folder, "train")
        read_folder(folder)
    shared = pickle.loads(pickle.dumps(shared))
    opened.clear()
    for path in folder.glob("*.wav"):
        path.unlink()
    with taking_from(shared):
        assert read_split(folder, "train") == first
    assert opened == []
    with pytest.raises(ValueError, match="no usable clip"):
        read_split(folder, "train")


def test_a_clip_takes_little_memory_and_no_more_after_pickling(tmp_path):
    clip = Clip("a/b.wav", tmp_path / "a/b.wav", ("x",), 1.0)
    other = Clip("c.wav", str(tmp_path / "c.wav"), (), 1.0)
    copy = pickle.loads(pickle.dumps(clip))
    assert clip == copy and hash(clip) == hash(copy) and clip != other
    assert (copy.path, copy.captions, copy.seconds) == (tmp_path / "a/b.wav", ("x",), 1.0)
    assert clip._place is copy._place is other._place and clip._name is clip.file_name
    assert not hasattr(clip, "__dict__")
    assert Clip("x", tmp_path / "y.wav", (), 1.0).path == tmp_path / "y.wav"
    with pytest.raises(AttributeError):
        clip.seconds = 2.0
