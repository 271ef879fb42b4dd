"""Shards in object stores and on web servers: the same pairs as on the disk, in ranges, through a bounded cache."""

import io
import itertools
import os
import shutil
import tarfile
import threading

import numpy as np
import pytest
import torch
from support.pair_shards import shards_of
from support.processes import PATIENCE, Job
from support.range_server import range_server
from support.remote_readers import read_repeatedly
from support.unlabeled_cases import audio_bytes

from atk.data import (
    AudioError,
    UnlabeledAudio,
    load_audio,
    open_data,
    read_data,
    remote,
    train_loader,
    unlabeled_loader,
)
from atk.data.remote import RemoteFile
from atk.ops.user_cache import cache_folder

fsspec = pytest.importorskip("fsspec")
BLOCK = 1 << 12
OPTIONS = {"sample_rate": 800, "clip_seconds": 0.4, "batch_size": 2}


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch):
    monkeypatch.setenv("ATK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_BLOCK", BLOCK)
    monkeypatch.setattr(remote, "_AHEAD", 4 * BLOCK)
    monkeypatch.setattr(remote, "_written", {"bytes": -1})
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    RemoteFile.find.cache_clear()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of 5 clips to train on, and of 5 to validate and to test on."""
    folder = tmp_path_factory.mktemp("folder")
    for split in ("train", "val", "test"):
        for index in range(5):
            (folder / f"{split}{index}.flac").write_bytes(audio_bytes(index, "FLAC"))
        lines = [f"{split}{index}.flac,sound {index}" for index in range(5)]
        (folder / f"{split}.csv").write_text("\n".join(["file_name,caption", *lines]))
    return shards_of(folder, tmp_path_factory.mktemp("shards"))


@pytest.fixture
def server(shards):
    with range_server(shards) as server:
        yield server


@pytest.fixture(params=["memory", "file", "http"])
def url(request, shards):
    """The address of the shards in a store."""
    if request.param == "file":
        yield f"file://{shards}"
    elif request.param == "http":
        pytest.importorskip("aiohttp", reason="needs the extra remote")
        with range_server(shards) as server:
            yield server.url
    else:
        store = fsspec.filesystem("memory")
        store.put(str(shards), "/bucket", recursive=True)
        yield "memory://bucket"
        store.rm("/bucket", recursive=True)


def test_batches_equal_those_of_local_shards(url, shards):
    names = "train/{0..1}.tar"
    local, distant = (read_data(f"{place}/{names}", "train").clips for place in (shards, url))
    assert (
        [clip.file_name for clip in distant]
        == [clip.file_name.replace(str(shards), url) for clip in local]
        == [str(clip.path) for clip in distant]
    )
    loaders = [train_loader(clips, **OPTIONS, seed=1) for clips in (local, distant)]
    for batch, other in itertools.islice(zip(*loaders, strict=True), 4):
        assert torch.equal(batch.audio, other.audio) and batch.captions == other.captions


@pytest.mark.parametrize("store", ["memory", "file"])
def test_folders_in_stores(store, shards):
    address = f"file://{shards}"
    if store == "memory":
        address = "memory://set"
        fsspec.filesystem("memory").put(str(shards), "/set", recursive=True)
    assert sorted(open_data(address).splits()) == ["test", "train", "val"]
    expected = [clip.file_name for clip in read_data(shards, "val").clips]
    assert [clip.file_name for clip in read_data(address, "val").clips] == expected
    assert len(read_data(f"{address}/train", "train").clips) == 5  # no folders of splits
    with pytest.raises(FileNotFoundError, match=r"none: no \.tar shards in this folder|none: no such file"):
        read_data(f"{address}/none", "train")


def test_shards_beside_the_folders_of_splits_are_ignored_with_a_warning(shards, tmp_path):
    root = tmp_path / "train"  # named like the folder in it
    shutil.copytree(shards / "train", root / "train")
    shutil.copytree(shards / "train", root / ".train")
    for name in ("0.tar", "1.TAR"):
        shutil.copy(shards / "valid" / "0.tar", root / name)
    for place in (str(root), f"file://{root}"):
        with pytest.warns(match=r"train: shards outside of the folders of splits are ignored: 2, the first is 0\.tar"):
            data = open_data(place)
        assert data.splits() == ["train"] and data.read("train").clips[0].file_name.startswith("train/0.tar:")


def test_unlabeled_shards(url, shards):
    pools = [UnlabeledAudio.scan([f"{place}/train/{{0..1}}.tar"]) for place in (shards, url)]
    batches = [next(iter(unlabeled_loader(pool, **OPTIONS))) for pool in pools]
    assert torch.equal(batches[0].audio, batches[1].audio)
    assert [name.replace(url, str(shards)) for name in batches[1].files] == batches[0].files


def test_only_missing_blocks_are_requested_together(server):
    pytest.importorskip("aiohttp", reason="needs the extra remote")
    content = np.random.default_rng(0).bytes(10 * BLOCK + 100)
    (server.folder / "x.tar").write_bytes(content)
    file = RemoteFile.find(f"{server.url}/x.tar")
    assert file.size == len(content)
    assert file.read(3 * BLOCK + 5, 10) == content[3 * BLOCK + 5 : 3 * BLOCK + 15]
    assert file.read(BLOCK - 1, 5 * BLOCK) == content[BLOCK - 1 : 6 * BLOCK - 1]
    assert file.read(10 * BLOCK, 1000) == content[10 * BLOCK :] and file.read(len(content), 5) == b""
    gets = [(start // BLOCK, -(-count // BLOCK)) for method, start, count in server.requests if method == "GET"]
    assert gets == [(3, 1), (0, 3), (4, 2), (10, 1)]
    sent = server.sent
    file.read_ahead()
    assert file.read(0, len(content)) == content
    assert server.sent == sent + 4 * BLOCK  # the four that were missing


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_a_second_start_requests_sizes_only(server, header):
    pytest.importorskip("aiohttp", reason="needs the extra remote")
    server.stamp = header
    pattern = f"{server.url}/train/{{0..1}}.tar"
    first = read_data(pattern, "train")
    sent = server.sent
    assert sent == sum((server.folder / "train" / f"{index}.tar").stat().st_size for index in (0, 1))
    RemoteFile.find.cache_clear()
    assert read_data(pattern, "train") == first and server.sent == sent
    os.utime(server.folder / "train" / "0.tar", (1, 1))  # which the header states
    RemoteFile.find.cache_clear()
    assert len(read_data(pattern, "train").clips) == 5 and server.sent > sent
    os.utime(server.folder / "train" / "0.tar")


def test_the_cache_stays_within_its_size(tmp_path, monkeypatch):
    monkeypatch.setenv("ATK_CACHE_GIB", str(20 * BLOCK / 2**30))
    content = np.random.default_rng(0).bytes(100 * BLOCK)
    (tmp_path / "x.tar").write_bytes(content)
    file = RemoteFile.find(f"file://{tmp_path}/x.tar")
    blocks = cache_folder() / "blocks"
    for block in range(100):
        assert file.read(block * BLOCK, BLOCK) == content[block * BLOCK : (block + 1) * BLOCK]
        assert file.read(0, 1) == content[:1]
        assert len(list(blocks.iterdir())) <= 21
    assert len(list(blocks.iterdir())) >= 15
    assert file._file(0).exists()  # in use all the time
    file._file(0).write_bytes(b"cut short")
    assert file.read(0, BLOCK) == content[:BLOCK]
    monkeypatch.setenv("ATK_CACHE_GIB", "all")
    monkeypatch.setattr(remote, "_written", {"bytes": -1})
    with pytest.raises(ValueError, match="ATK_CACHE_GIB: the environment variable must be a number, got 'all'"):
        file.read(50 * BLOCK, 40 * BLOCK)


@pytest.mark.parametrize("kind_of_worker", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_several_readers_share_the_cache(tmp_path, kind_of_worker, monkeypatch):
    monkeypatch.setenv("ATK_CACHE_GIB", str(4 * BLOCK / 2**30))  # far too small
    size = 30 * BLOCK
    (tmp_path / "x.tar").write_bytes(np.random.default_rng(0).bytes(size))
    url = f"file://{tmp_path}/x.tar"
    if kind_of_worker == "processes":
        names = ("ATK_CACHE", "ATK_CACHE_GIB")
        environments = tuple({name: os.environ[name] for name in names} for _ in range(3))
        job = Job("support.remote_readers:read_repeatedly", url, size, BLOCK, 0, environments=environments)
        assert job.wait(PATIENCE) == 0, job.output
        return
    errors = []

    def read(seed):
        try:
            read_repeatedly(url, size, BLOCK, seed)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_requests_are_repeated_and_failures_named(server, shards):
    pytest.importorskip("aiohttp", reason="needs the extra remote")
    url = f"{server.url}/train/0.tar"
    server.failures = 3
    clips = read_data(url, "train").clips
    (cached,) = {clip.path.shard for clip in clips}
    for file in (cache_folder() / "blocks").iterdir():
        file.unlink()
    server.failures = 100
    with pytest.raises(AudioError, match=r"0\.tar:data.*: cannot be read \(.*503"):
        load_audio(clips[0].path, 800)
    server.failures = 0
    server.ranges = False
    with pytest.raises(AudioError, match=rf"the server sent {cached.size} bytes instead of"):
        load_audio(clips[0].path, 800)
    with pytest.raises(FileNotFoundError, match=r"none\.tar: no such file"):
        read_data(f"{server.url}/none.tar", "train")
    with pytest.raises(ValueError, match=r"nonsense://x/0\.tar: Protocol not known"):
        read_data("nonsense://x/0.tar", "train")


def test_a_shard_that_changes_is_noticed():
    store = fsspec.filesystem("memory")
    store.pipe("/changing/0.tar", tar_bytes(audio_bytes()))
    (clip,) = read_data("memory://changing/0.tar", "train").clips
    pool = UnlabeledAudio.scan(["memory://changing/0.tar"])
    store.pipe("/changing/0.tar", tar_bytes(audio_bytes(), b"y" * 20_000))
    RemoteFile.find.cache_clear()
    assert load_audio(clip.path, 800).any()  # from the cache
    with pytest.raises(AudioError, match="its shard has changed since it was listed"):
        pool.load(0, 800, 1.0, 0.5)
    assert read_data("memory://changing/0.tar", "train").clips[0].captions == ("y" * 20_000,)


def tar_bytes(audio, text=b"x"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("a.wav", audio), ("a.txt", text)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()
