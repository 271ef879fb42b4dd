"""Tar shards of pairs: what counts as a pair, the cached index, and everything that can be wrong with them."""

import itertools
import json
import os
import pickle

import pytest
import torch
from support.clips import write_clip
from support.pair_shards import shards_of
from support.unlabeled_cases import audio_bytes, tar

from atk.data import AudioError, audio_info, eval_loader, load_audio, read_data, read_split, train_loader
from atk.data.headers import collecting, taking_from
from atk.data.shards import expand_braces
from atk.ops.user_cache import cache_folder

WAV = audio_bytes()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """The splits of a data folder, with a clip of two captions in train.csv."""
    root = tmp_path / "folder"
    for split in ("train", "val", "test"):
        names = [f"sub/{split} {index}.wav" for index in range(5)]
        for index, name in enumerate(names):
            write_clip(root / name, 100 + 10 * index, 0.5 + index / 10)
        lines = [f"{name},a tone  number {index}" for index, name in enumerate(names)]
        (root / f"{split}.csv").write_text("\n".join(["file_name,caption", *lines, ""]))
    return root


def read(path, split="train", **options):
    return read_data(path, split, **options)


def reasons(path):
    return {name.partition(":")[2]: reason for name, reason in read(path).skipped}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_equal_those_of_a_folder(folder, tmp_path, workers):
    shards = shards_of(folder, tmp_path / "shards")
    options = {"sample_rate": 800, "clip_seconds": 0.4, "batch_size": 2}
    for split in ("train", "val", "test"):
        files, members = read_split(folder, split).clips, read(shards, split).clips
        assert [clip.captions for clip in members] == [clip.captions for clip in files]
        assert [clip.seconds for clip in members] == [clip.seconds for clip in files]
        batches = zip(eval_loader(files, **options), eval_loader(members, **options), strict=True)
        assert all(torch.equal(batch.audio, other.audio) for batch, other in batches)
    loaders = [train_loader(clips, **options, seed=3, workers=workers) for clips in (files, members)]
    for batch, other in itertools.islice(zip(*loaders, strict=True), 6):
        assert torch.equal(batch.audio, other.audio) and batch.captions == other.captions


def test_names_and_order(folder, tmp_path):
    shards = shards_of(folder, tmp_path / "shards")
    expected = [f"train/{index // 3}.tar:data/set/sub/train {index}.wav" for index in range(5)]
    assert [clip.file_name for clip in read(shards).clips] == expected
    pattern = f"{shards}/train/{{0..1}}.tar"
    clips = read(pattern).clips
    assert (
        [clip.file_name for clip in clips] == [f"{shards}/{name}" for name in expected] == [str(c.path) for c in clips]
    )
    assert read(pattern, "test").clips == clips  # shards that are given by name belong to no split
    with pytest.raises(FileNotFoundError, match="shards: no shards of dev; it has those of test, train, val"):
        read(shards, "dev")


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"a.json": b'{"text": "x"}'}, ("x",)),
        ({"a.json": b'{"text": [" x  y", "z", "x y", ""]}'}, ("x y", "z")),
        ({"a.json": b'{"caption": "x", "text": "y"}'}, ("x",)),
        ({"a.json": b'\xef\xbb\xbf{"captions": ["x"]}'}, ("x",)),
        ({"a.txt": "a dog\nbarks, ö\n".encode()}, ("a dog barks, ö",)),
        ({"a.json": b'{"id": 1}', "a.txt": b"x"}, ("x",)),
        ({"a.JSON": b'{"text": "x"}', "a.cls": b"3"}, ("x",)),
    ],
)
def test_captions(tmp_path, members, captions):
    for order in (1, -1):
        shard = tar(tmp_path / f"{order}.tar", [*members.items(), ("a.wav", WAV)][::order])
        (clip,) = read(shard, on_error="raise").clips
        assert clip.captions == captions and clip.seconds == 3.0


def test_the_key_of_the_captions_can_be_chosen(tmp_path):
    shard = tar(tmp_path / "0.tar", [("a.wav", WAV), ("a.json", b'{"text": "x", "title": "y"}')])
    for column, caption in ((None, "x"), ("title", "y"), ("text", "x")):  # not mixed up by the cache
        assert read(shard, caption_column=column).clips[0].captions == (caption,)
    with pytest.raises(
        ValueError, match=r"no usable clip; skipped 1: .*a\.wav \(no caption: no name among text, title"
    ):
        read(shard, caption_column="name")


def test_what_is_not_a_pair_is_named(tmp_path):
    members = {
        "good.wav": WAV, "good.json": b'{"text": "x"}',
        "alone.wav": WAV,
        "text.json": b'{"text": "x"}',
        "key.wav": WAV, "key.json": b'{"id": 1}',
        "list.wav": WAV, "list.json": b"[1]",
        "type.wav": WAV, "type.json": b'{"text": {"x": 1}}',
        "empty.wav": WAV, "empty.txt": b" \n",
        "json.wav": WAV, "json.json": b"{",
        "latin.wav": WAV, "latin.txt": b"\xff",
        "bad.wav": b"not audio", "bad.txt": b"x",
        "none.wav": b"", "none.txt": b"x",
        "notes.mid": b"x", "notes.txt": b"x",
        ".hidden.wav": WAV, "__MACOSX/x.wav": WAV, "notes.md": b"x",
    }  # fmt: skip
    shard = tar(tmp_path / "0.tar", members.items())
    assert [clip.file_name for clip in read(shard).clips] == [f"{shard}:good.wav"]
    faults = {name: reason[:30] for name, reason in reasons(shard).items()}
    assert list(faults) == [name for name in members if name in faults]  # in the order of the shard
    assert faults == {
        "alone.wav": "no caption: the shard has no .",
        "text.json": "the shard has no audio file of",
        "key.wav": "no caption: no caption, text, ",
        "list.wav": "its .json is not a mapping of ",
        "type.wav": "its caption is neither text no",
        "empty.wav": "its caption is empty",
        "json.wav": "its .json is not well-formed (",
        "latin.wav": "its caption is not UTF-8",
        "bad.wav": "not readable as audio (Format ",
        "none.wav": "empty file (0 bytes)",
        "notes.mid": "this format cannot be read; co",
    }
    with pytest.raises(AudioError, match=r"0\.tar:alone\.wav: no caption"):
        read(shard, on_error="raise")


def test_ranges_of_shards():
    assert expand_braces("{0..1}/a-{09..10}.tar") == [f"{i}/a-{j}.tar" for i in (0, 1) for j in ("09", "10")]
    with pytest.raises(ValueError, match=r"a-\{3\.\.1\}\.tar: the range \{3\.\.1\} is empty because its start is"):
        expand_braces("a-{3..1}.tar")


def test_a_name_that_repeats_is_another_pair(tmp_path):
    for name, text in (("0", b"first"), ("1", b"second")):
        tar(tmp_path / f"{name}.tar", [("a.wav", audio_bytes(int(name))), ("a.txt", text)])
    both = tmp_path / "both.tar"
    both.write_bytes((tmp_path / "0.tar").read_bytes() + (tmp_path / "1.tar").read_bytes())
    clips = read(both).clips
    assert [clip.captions for clip in clips] == [("first",), ("second",)]
    assert clips[1].path.read() == audio_bytes(1)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_audio_in_several_formats_is_one_clip(tmp_path, order):
    members = [("a.mp4", b"a video"), ("a.flac", audio_bytes(1, "FLAC")), ("a.json", b'{"text": "x"}')]
    clips = read(tar(tmp_path / "0.tar", [members[index] for index in order]), on_error="raise").clips
    assert [(clip.path.name, clip.captions) for clip in clips] == [("a.flac", ("x",))]
    members[0] = ("a.wav", WAV)
    shard = tar(tmp_path / "1.tar", [members[index] for index in order])
    assert [clip.path.name for clip in read(shard).clips] == [["a.wav", "a.flac"][order.index(0) > order.index(1)]]


def test_a_damaged_shard_gives_its_intact_pairs_and_is_not_cached(tmp_path):
    shard = tar(tmp_path / "0.tar", [("a.wav", WAV), ("a.txt", b"x"), ("b.wav", WAV), ("b.txt", b"y")])
    shard.write_bytes(shard.read_bytes()[: len(WAV) + 4000])
    split = read(tmp_path)
    assert len(split.clips) == 1 and split.skipped == [("0.tar", "truncated inside b.wav")]
    assert not cache_folder().exists()
    with pytest.raises(AudioError, match=r"0\.tar: truncated"):
        read(tmp_path, on_error="raise")


def test_the_index_is_read_from_the_cache_until_the_shard_changes(tmp_path, monkeypatch):
    shard = tar(tmp_path / "0.tar", [("a\udce9 ö.wav", WAV), ("a\udce9 ö.txt", b"x"), ("b.wav", WAV)])
    first = read(shard)
    assert len(first.clips) == len(first.skipped) == 1
    with monkeypatch.context() as patch:
        patch.setattr("atk.data.pairs.tar_members", None)
        assert read(shard) == first
    os.utime(shard, (1, 1))
    monkeypatch.setattr("atk.data.pairs.tar_members", lambda path: iter([(b"read again.txt", 0, 1)]))
    with pytest.raises(ValueError, match="read again"):
        read(shard)


def test_other_ranks_take_the_index_of_the_first(tmp_path, monkeypatch):
    shard = tar(tmp_path / "0.tar", [("a.wav", WAV), ("a.txt", b"x"), ("b.wav", WAV)])
    with collecting() as headers:
        first = read(shard)
    monkeypatch.setenv("ATK_CACHE", str(tmp_path / "another machine"))
    monkeypatch.setattr("atk.data.pairs.tar_members", None)
    with taking_from(pickle.loads(pickle.dumps(headers))):
        assert read(shard) == first and len(first.clips) == len(first.skipped) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"key": 1}', b"\xff\xfe", None])
def test_a_damaged_cache_is_ignored(tmp_path, content):
    shard = tar(tmp_path / "0.tar", [("a.wav", WAV), ("a.txt", b"x")])
    first = read(shard)
    (file,) = (cache_folder() / "shards").iterdir()
    whole = json.loads(file.read_bytes())
    file.write_bytes(json.dumps(whole | {"audio": [["a"]]}).encode() if content is None else content)
    assert read(shard) == first and json.loads(file.read_bytes()) == whole


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATK_CACHE", str(tmp_path / "file"))
    shard = tar(tmp_path / "0.tar", [("a.wav", WAV), ("a.txt", b"x")])
    with pytest.warns(match=r"cannot be written; .*0\.tar is read at every start"):
        assert len(read(shard).clips) == 1


def test_shards_that_are_missing_or_change(tmp_path):
    shard = tar(tmp_path / "0.tar", [("a.wav", WAV), ("a.txt", b"x")])
    path = read(shard).clips[0].path
    assert audio_info(pickle.loads(pickle.dumps(path))).seconds == 3.0
    tar(shard, [("a.wav", WAV), ("a.txt", b"x" * 20_000)])
    with pytest.raises(AudioError, match=r"0\.tar:a\.wav: its shard has changed since it was listed"):
        load_audio(path, 8000)
    shard.unlink()
    with pytest.raises(AudioError, match=r"0\.tar:a\.wav: no such shard"):
        load_audio(path, 8000)
    with pytest.raises(FileNotFoundError, match=r"0\.tar: no such shard"):
        read(shard)
    with pytest.raises(ValueError, match=r"0\.tar\.gz: a compressed tar has no random access"):
        read(tmp_path / "0.tar.gz")
    tar(shard, [("a.txt", b"x")])
    with pytest.raises(ValueError, match=r"0\.tar: no usable clip; skipped 1: .*a\.txt \(the shard has no audio"):
        read(shard)
