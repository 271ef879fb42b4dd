"""Pools of unlabeled audio: which files are listed, that each counts once, and the cache of the list."""

import os
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.unlabeled_cases import RATE, audio_bytes, below, names, ramps, take, tar

from atk.data import UnlabeledAudio, unlabeled
from atk.data import listing as listing_module


def test_which_files_are_listed(tmp_path):
    for name in (
        "b.WAV",
        "a.mp3",
        "x/c.oga",
        "x/y z/Ø 犬.flac",
        "n.txt",
        ".h.wav",
        ".h/d.wav",
        "__MACOSX/e.wav",
        "x/w.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    pool = UnlabeledAudio.scan([tmp_path])
    assert below(pool, tmp_path) == ["a.mp3", "b.WAV", "x/c.oga", "x/y z/Ø 犬.flac"]


def test_a_name_that_is_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    soundfile.write(ramps(tmp_path, 1) / "a.wav", np.zeros(100), RATE)
    (tmp_path / "a.wav").rename(os.fsdecode(path))
    pool = UnlabeledAudio.scan([tmp_path], tmp_path / "run" / "list.npz")
    assert [os.fsencode(name) for name in names(pool)][1] == path
    assert names(UnlabeledAudio.scan([tmp_path], tmp_path / "run" / "list.npz")) == names(pool)
    assert len(pool.load(1, RATE, 1.0, 0.0)) == 100


def test_each_file_counts_once(tmp_path):
    ramps(tmp_path / "x" / "y", 2)
    ramps(tmp_path / "x", 1, first=2)
    tar(tmp_path / "x" / "s.tar", [("k.wav", audio_bytes())])
    (tmp_path / "x" / "y" / "loop").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "itself").symlink_to(tmp_path / "x" / "itself")
    x, y = tmp_path / "x", tmp_path / "x" / "y"
    pool = UnlabeledAudio.scan([x])
    assert below(pool, x) == ["002.wav", "y/000.wav", "y/001.wav", "s.tar:k.wav"]
    for folders in ([x, x], [x, y], [y, x], [x / "s.tar", x, f"{x}/../x/"], [y / "loop"]):
        pool = UnlabeledAudio.scan(folders)
        assert sorted(Path(name).name for name in names(pool)) == ["000.wav", "001.wav", "002.wav", "s.tar:k.wav"]


def test_links_to_folders_are_followed(tmp_path):
    ramps(tmp_path / "elsewhere", 2)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "link").symlink_to(tmp_path / "elsewhere")
    assert below(UnlabeledAudio.scan([tmp_path / "x"]), tmp_path / "x") == ["link/000.wav", "link/001.wav"]


def test_files_are_ordered_by_name(tmp_path, monkeypatch):
    ramps(tmp_path / "b", 3)
    ramps(tmp_path / "a", 2)
    expected = ["a/000.wav", "a/001.wav", "b/000.wav", "b/001.wav", "b/002.wav"]
    scandir = os.scandir

    class Backwards:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(listing_module.os, "scandir", Backwards)
    assert below(UnlabeledAudio.scan([tmp_path]), tmp_path) == expected


def test_folders_are_listed_once_and_the_list_is_kept(tmp_path, monkeypatch):
    data = ramps(tmp_path / "data", 6)
    cache = tmp_path / "run" / "unlabeled.npz"
    tar(data / "s.tar", [("k.wav", audio_bytes())])
    listed = Counter()
    scandir, members = os.scandir, listing_module.tar_members
    monkeypatch.setattr(listing_module.os, "scandir", lambda path: listed.update([path]) or scandir(path))
    monkeypatch.setattr(listing_module, "tar_members", lambda path: listed.update([path]) or members(path))
    first = UnlabeledAudio.scan([data], cache)
    expected = take(first, 6)
    assert listed == {os.fsencode(data): 1, str(data / "s.tar"): 1}
    assert [path.name for path in cache.parent.iterdir()] == ["unlabeled.npz"]
    (data / "003.wav").unlink()
    ramps(data, 1, first=9)
    again = UnlabeledAudio.scan([data], cache)
    assert names(again) == names(first) and set(listed.values()) == {1}
    resumed = take(again, 6)
    assert {reason for batch in resumed for _, reason in batch.skipped} == {"no such file"}
    for batch, resumed_batch in zip(expected, resumed, strict=True):
        assert len(resumed_batch) == 4
        kept = [(i, name) for i, name in enumerate(batch.files) if not name.endswith("003.wav")]
        assert all(resumed_batch.files[i] == name for i, name in kept)
        assert all(torch.equal(resumed_batch.audio[i, :400], batch.audio[i, :400]) for i, _ in kept)


def test_workers_do_not_list_the_folders_again(tmp_path):
    pool = UnlabeledAudio.scan([ramps(tmp_path, 4)])
    ramps(tmp_path, 1, first=7)
    files = {Path(name).name for batch in take(pool, 6, workers=1) for name in batch.files}
    assert files == {"000.wav", "001.wav", "002.wav", "003.wav"}


def test_what_cannot_be_read_in_folders_and_shards_is_counted_and_named(tmp_path, monkeypatch):
    tar(tmp_path / "s.tar", [("a.wav", audio_bytes()), ("b.mid", b"x"), ("c.mid", b"x")])
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if os.fsencode(path).endswith(b"closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    pool = UnlabeledAudio.scan([tmp_path])
    assert below(pool, tmp_path) == ["s.tar:a.wav"]
    (folder, reason), (shard, left_out) = sorted(pool.skipped)
    assert folder.endswith("closed") and reason == "Permission denied"
    assert shard.endswith("s.tar") and left_out.startswith("2 .mid files left out: this format cannot be read")


def test_a_damaged_cache_or_one_of_other_folders_is_refused(tmp_path, monkeypatch):
    first = ramps(tmp_path / "first", 2)
    second = ramps(tmp_path / "second", 2)
    cache = tmp_path / "list.npz"
    UnlabeledAudio.scan([first, second], cache)
    assert len(UnlabeledAudio.scan([second, f"{first}/"], cache)) == 4
    with pytest.raises(ValueError, match=rf"^{cache}: lists the folders {first}, {second}, but {second} were"):
        UnlabeledAudio.scan([second], cache)
    content = cache.read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2]):
        cache.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"list\.npz: not a list of unlabeled audio [^\n]*$"):
            UnlabeledAudio.scan([first, second], cache)
    cache.write_bytes(content)
    monkeypatch.setattr(unlabeled, "_LAYOUT", "another")
    with pytest.raises(ValueError, match=r"list\.npz: written by another version of atk; delete it to rescan"):
        UnlabeledAudio.scan([first, second], cache)
    np.savez(cache, unrelated=np.zeros(3))
    with pytest.raises(ValueError, match="not a list of unlabeled audio"):
        UnlabeledAudio.scan([first, second], cache)


def test_keys_of_the_cache_file_stay_the_same(tmp_path):
    cache = tmp_path / "list.npz"
    UnlabeledAudio.scan([ramps(tmp_path / "data", 2)], cache)
    with np.load(cache) as file:
        assert set(file.files) == {"told", "names", "ends", "homes", "offsets", "sizes"}


def test_a_killed_scan_leaves_no_cache(tmp_path, monkeypatch):
    data = ramps(tmp_path / "data", 2)
    cache = tmp_path / "list.npz"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            UnlabeledAudio.scan([data], cache)
    assert not cache.exists() and len(UnlabeledAudio.scan([data], cache)) == 2 and cache.exists()


def test_bad_arguments(tmp_path):
    ramps(tmp_path / "good", 1)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "loop").symlink_to(tmp_path / "none")
    (tmp_path / "a.wav").touch()
    for folders, error, message in (
        ([], ValueError, "folders must name at least one folder"),
        (str(tmp_path), TypeError, "folders must be a sequence of paths, got the single path"),
        ([tmp_path / "good", tmp_path / "missing"], FileNotFoundError, "missing: no such folder or tar file"),
        (
            [tmp_path / "none"],
            ValueError,
            r"none: no audio found, neither files \(\.wav, \.wave, .*\) nor \.tar shards",
        ),
        ([tmp_path / "a.wav"], ValueError, r"a\.wav: unlabeled audio must be a folder or a \.tar file"),
    ):
        with pytest.raises(error, match=message):
            UnlabeledAudio.scan(folders)
    with pytest.raises(ValueError, match="on_error must be one of 'skip', 'raise', got 'stop'"):
        UnlabeledAudio.scan([tmp_path / "good"], on_error="stop")
    pool = UnlabeledAudio.scan([tmp_path / "good"])
    for name, value in (("batch_size", 0), ("seed", -1), ("start_step", -1), ("clip_seconds", 0.0), ("sample_rate", 0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            take(pool, 1, **{name: value})


def test_a_large_pool_takes_little_memory(tmp_path, monkeypatch):
    count = 50_000
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(
        listing_module,
        "_entries",
        lambda _: listing_module._Entries([b"Y%09d_30.000.wav" % index for index in range(count)], [], [], []),
    )
    tracemalloc.start()
    try:
        UnlabeledAudio.scan([tmp_path / "data"], tmp_path / "list.npz")
        tracemalloc.reset_peak()
        pool = UnlabeledAudio.scan([tmp_path / "data"], tmp_path / "list.npz")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(pool) == count and names(pool)[-1] == f"{tmp_path}/data/Y000049999_30.000.wav"
    assert kept < 60 * count and peak < 150 * count and len(pickle.dumps(pool)) < 60 * count
