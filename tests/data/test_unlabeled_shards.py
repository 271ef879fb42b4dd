"""Tar shards in WebDataset layout: the same results as from files in a folder."""

import tarfile
import tracemalloc
from pathlib import Path

import pytest
import soundfile
import torch
from support.unlabeled_cases import audio_bytes, below, names, ramps, take, tar

from atk.data import AudioError, UnlabeledAudio


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_equal_the_files_of_a_folder(tmp_path, tar_format):
    suffixes = ("flac", "wav", "ogg", "mp3")
    contents = {f"{suffix}{i}.{suffix}": audio_bytes(i, suffix.upper()) for suffix in suffixes for i in range(2)}
    contents["Ø 犬 " + "n" * 150 + ".flac"] = audio_bytes(5, "FLAC")  # too long for a tar header
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    labels = [(f"{Path(name).stem}.json", b'{"text": "a dog.wav"}') for name in contents]
    members = sorted([*contents.items(), *labels, (".hidden.wav", b"x"), ("__MACOSX/._a.wav", b"x")])
    tar(tmp_path / "s.tar", [("./" + name, content) for name, content in members], tar_format)
    files = UnlabeledAudio.scan([folder])
    shard = UnlabeledAudio.scan([tmp_path / "s.tar"])
    assert names(shard) == [f"{tmp_path}/s.tar:./{name}" for name in below(files, folder)]
    for batch, shard_batch in zip(take(files, 8), take(shard, 8), strict=True):
        assert torch.equal(batch.audio, shard_batch.audio) and torch.equal(batch.clips, shard_batch.clips)
        assert batch.skipped == shard_batch.skipped == [] and batch.audio.any(1).all()


def test_ranges_of_shards(tmp_path):
    for index in range(8, 12):
        tar(tmp_path / f"s-{index:03d}.tar", [("k.wav", audio_bytes(index))])
    pool = UnlabeledAudio.scan([tmp_path / "s-{009..011}.tar"])
    assert below(pool, tmp_path) == [f"s-{index:03d}.tar:k.wav" for index in (9, 10, 11)]
    with pytest.raises(FileNotFoundError, match=r"s-012\.tar"):
        UnlabeledAudio.scan([tmp_path / "s-{011..012}.tar"])


def test_compressed_tars_are_refused_with_the_reason(tmp_path):
    ramps(tmp_path, 1)
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as file:
        file.add(tmp_path / "000.wav", "a.wav")
    (tmp_path / "t.tar").write_bytes((tmp_path / "s.tar.gz").read_bytes())
    with pytest.raises(ValueError, match=r"s\.tar\.gz: a compressed tar has no random access; decompress it"):
        UnlabeledAudio.scan([tmp_path / "s.tar.gz"])
    with pytest.raises(ValueError, match=r"t\.tar: no audio found.*; skipped 1: .*t\.tar \(a compressed tar has no"):
        UnlabeledAudio.scan([tmp_path / "t.tar"])
    pool = UnlabeledAudio.scan([tmp_path], tmp_path / "list.npz")
    assert [(Path(path).name, reason[:16]) for path, reason in pool.skipped] == [
        ("s.tar.gz", "a compressed tar"), ("t.tar", "a compressed tar"),
    ]  # fmt: skip
    assert len(pool) == 1 and UnlabeledAudio.scan([tmp_path], tmp_path / "list.npz").skipped == pool.skipped
    with pytest.raises(AudioError, match=r"s\.tar\.gz: a compressed tar"):
        UnlabeledAudio.scan([tmp_path], on_error="raise")


@pytest.mark.parametrize(
    ("size", "kept", "reason"),
    [
        (1536 + 700, 1, "truncated inside b.wav"),
        (1536 + 100, 1, "damaged at byte 1536"),
        (3072, 2, None),
        (0, 0, "empty"),
    ],
)
def test_a_truncated_shard_keeps_its_intact_members(tmp_path, size, kept, reason):
    content = b"x" * 1000  # 1536 bytes with header and padding
    path = tar(tmp_path / "s.tar", [("a.wav", content), ("b.wav", content)])
    path.write_bytes(path.read_bytes()[:size])
    ramps(tmp_path / "more", 1)
    pool = UnlabeledAudio.scan([tmp_path])
    assert len(pool) == 1 + kept
    assert [Path(name).name for name, _ in pool.skipped] == ([] if reason is None else ["s.tar"])
    assert reason is None or reason in pool.skipped[0][1]


def test_a_shard_that_was_removed_or_changed(tmp_path):
    path = tar(tmp_path / "s.tar", [("a.wav", audio_bytes())])
    pool = UnlabeledAudio.scan([path])
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    with pytest.raises(AudioError, match=r"s\.tar:a\.wav: its shard has changed"):
        pool.load(0, 8000, 1.0, 0.0)
    path.unlink()
    with pytest.raises(AudioError, match=r"s\.tar:a\.wav: no such shard"):
        pool.load(0, 8000, 1.0, 0.0)


def test_headers_are_not_kept_in_memory(tmp_path):
    path = tar(tmp_path / "s.tar", [(f"{index}.wav", b"") for index in range(2000)])
    tracemalloc.start()
    try:
        pool = UnlabeledAudio.scan([path])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(pool) == 2000 and peak < 400 * 2000


@pytest.mark.parametrize("zeros", [0, 512, 1 << 20])
def test_concatenated_archives_are_one_shard(tmp_path, zeros):
    parts = [tar(tmp_path / f"{name}.tar", [(f"{name}.wav", audio_bytes(index))]) for index, name in enumerate("abc")]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "abc.tar").write_bytes(b"".join(path.read_bytes() + bytes(zeros) for path in parts))
    pool = UnlabeledAudio.scan([tmp_path / "s"])
    assert [name.rpartition(":")[2] for name in names(pool)] == ["a.wav", "b.wav", "c.wav"] and not pool.skipped
    for index, path in enumerate(parts):
        alone = UnlabeledAudio.scan([path])
        assert torch.equal(pool.load(index, 8000, 1.0, 0.0), alone.load(0, 8000, 1.0, 0.0))


def test_damage_after_the_end_of_an_archive_is_reported(tmp_path):
    path = tar(tmp_path / "s.tar", [("a.wav", audio_bytes())])
    path.write_bytes(path.read_bytes() + b"not a tar header" * 100)
    pool = UnlabeledAudio.scan([path])
    assert len(pool) == 1 and pool.skipped[0][1].startswith("damaged at byte ")


def test_links_in_a_shard_are_counted(tmp_path):
    (tmp_path / "a.wav").write_bytes(audio_bytes())
    (tmp_path / "b.wav").hardlink_to(tmp_path / "a.wav")
    (tmp_path / "c.wav").symlink_to("a.wav")
    with tarfile.open(tmp_path / "s.tar", "w") as file:
        for name in "abc":
            file.add(tmp_path / f"{name}.wav", f"{name}.wav")
    pool = UnlabeledAudio.scan([tmp_path / "s.tar"])
    assert len(pool) == 1 and pool.skipped[0][1].startswith("2 links or sparse files left out")


def test_members_of_the_same_name_are_all_used(tmp_path):
    path = tar(tmp_path / "s.tar", [("a.wav", audio_bytes(0)), ("a.wav", audio_bytes(1))])
    pool = UnlabeledAudio.scan([path])
    first, second = (pool.load(index, 8000, 1.0, 0.0) for index in range(2))
    assert len(pool) == 2 and not torch.equal(first, second)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_mp3_members_without_a_tag_are_decoded(tmp_path, rate):
    samples = 0.3 * torch.sin(torch.arange(rate) * 0.1).numpy()
    soundfile.write(tmp_path / "a.mp3", samples, rate)
    path = tar(tmp_path / "s.tar", [("a.mp3", (tmp_path / "a.mp3").read_bytes())])
    pool = UnlabeledAudio.scan([path])
    assert len(pool.load(0, rate, 5.0, 0.0)) == rate
