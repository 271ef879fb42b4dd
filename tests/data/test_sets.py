"""Several data sets at once: which clips are read, what they are called, and how often they are drawn."""

import itertools
import shutil
from collections import Counter

import numpy as np
import pytest
from support.clips import write_clip
from support.unlabeled_cases import tar

from atk.data import SetWeights, TrainBatches, open_data, read_data
from atk.data.check import check_data
from atk.data.sets import read_all
from atk.train.config import TrainConfig


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folders a (train), b (train, val), and c (val, test), named relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, splits in {"a": ("train",), "b": ("train", "val"), "c": ("val", "test")}.items():
        for split in splits:
            write_clip(tmp_path / name / "x.wav", 100)
            (tmp_path / name / f"{split}.csv").write_text(f"file_name,caption\nx.wav,{name} {split}\ny.wav,gone\n")
    return ["a", "b/", "c"]


def captions(split):
    return [clip.captions[0] for clip in split.clips]


def test_training_reads_all_sets_and_the_rest_the_first_that_has_it(folders):
    train = read_data(folders, "train")
    assert captions(train) == ["a train", "b train"] and train.sizes == (1, 1, 0)
    assert [clip.file_name for clip in train.clips] == ["a/x.wav", "b/x.wav"]
    assert train.skipped == [("a/y.wav", "no such file"), ("b/y.wav", "no such file")]
    assert captions(read_data(folders, "val")) == ["b val"] and captions(read_data(folders, "test")) == ["c test"]
    assert set(open_data(folders).splits()) == {"train", "val", "test"}
    assert read_data(folders[:1], "train").clips[0].file_name == "x.wav"  # of a single set, as it is listed
    with pytest.raises(FileNotFoundError, match="no data set has dev: a, b/, c"):
        read_data(folders, "dev")
    with pytest.raises(FileNotFoundError, match=r"c/train\.csv: no such file"):
        read_data("c", "train")


def test_layouts_that_are_not_known(folders, tmp_path):
    shutil.rmtree("a")
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a: no data set of a known layout; looked for train\.csv"):
        open_data(folders)
    with pytest.raises(FileNotFoundError, match="none: no such data folder"):
        open_data("none")
    (tmp_path / "train.csv").touch()
    with pytest.raises(
        FileNotFoundError, match=r"train\.csv: neither a folder nor tar shards; name the folder of a CSV"
    ):
        open_data(tmp_path / "train.csv")
    with pytest.raises(FileNotFoundError, match=r"\*\.tar: no such shard; write a range as {000\.\.099}"):
        open_data(tmp_path / "*.tar").read("train")
    with pytest.raises(ValueError, match="data must name at least one data set"):
        open_data([])
    with pytest.raises(ValueError, match=r"caption_column is for shards, .* got 'title'"):
        open_data("b", "title")


def test_a_tar_file_does_not_hide_the_other_audio_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ATK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sounds"
    write_clip(folder / "a.wav", 100)
    content = (folder / "a.wav").read_bytes()
    for members, captions in (
        ([("b.wav", content), ("b.txt", b"x")], ("x",)),
        ([("b.wav", content)], ()),
        ([("b.wav", content), ("b.json", b'{"caption": ""}')], ()),
    ):
        (folder / "sub").mkdir(exist_ok=True)
        tar(folder / "sub" / "backup.tar", members)
        files = read_all(folder)
        assert [clip.file_name for clip in files.clips] == ["sub/backup.tar:b.wav", "a.wav"] and not files.skipped
        assert [clip.captions for clip in files.clips] == [captions, ()]
        problems = check_data([str(folder)]).problems
        assert ("a.wav", "no split lists this file") in [(problem.name, problem.reason) for problem in problems]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": []}, r"data must be the names of one or several data sets, got \[\]"),
        ({"data": [1]}, r"data must be the names of one or several data sets, got \[1\]"),
        ({"data": "a", "data_weights": [1, 2]}, "data_weights must be 1, one per data set, got 2"),
        ({"data": ["a", "b"], "data_weights": [1, 0]}, "data_weights must be above 0 and finite, got 0"),
    ],
)
def test_mistakes_in_the_configuration(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options, out="o")
    assert TrainConfig(["a"], "o").data == "a" and TrainConfig(["a", "b"], "o").data == ["a", "b"]


def drawn(batches, epochs):
    """How often each clip is drawn in some epochs."""
    counts = Counter(itertools.chain(*(itertools.chain(*batches.epoch(epoch)) for epoch in range(epochs))))
    return np.array([counts[clip] for clip in range(batches.clips)])


@pytest.mark.parametrize("bucket", [False, True])
def test_weights_of_one_are_a_concatenation(bucket):
    lengths = np.random.default_rng(0).random(103)
    plain, weighted = (
        TrainBatches(lengths, 10, 3, bucket=bucket, sets=sets) for sets in (None, SetWeights((100, 0, 3), (1, 5, 1)))
    )
    assert list(itertools.islice(plain, 25)) == list(itertools.islice(weighted, 25))


@pytest.mark.parametrize("bucket", [False, True])
def test_weights_are_draws_per_epoch(bucket):
    sets = SetWeights((30, 50, 20), (1, 0.5, 2))
    batches = TrainBatches(np.random.default_rng(0).random(100), 5, 3, bucket=bucket, sets=sets)
    assert batches.steps_per_epoch == 19
    once, twice = drawn(batches, 1), drawn(batches, 2)
    assert (once[:30] == 1).all() and sorted(once[30:80]) == [0] * 25 + [1] * 25 and (once[80:] == 2).all()
    assert (twice[:30] == 2).all() and (twice[30:80] == 1).all() and (twice[80:] == 4).all()
    pairs = list(itertools.chain(*itertools.islice(batches, 10 * 19)))
    assert len(set(pairs)) == len(pairs)  # the crops of a clip are drawn by how often it was drawn before
    assert {count for clip, count in pairs if clip >= 80} == set(range(20))
    assert all(len(set(batch)) == 5 for epoch in range(10) for batch in batches.epoch(epoch))


@pytest.mark.parametrize(("sizes", "weights"), [((7, 4), (1.3, 0.01)), ((2, 3), (10, 1)), ((1000,), (0.37,))])
@pytest.mark.parametrize("start", [1, 9, 50])
def test_weighted_orders_resume_on_any_number_of_ranks(sizes, weights, start):
    def batches(start, **options):
        return TrainBatches(sum(sizes), 4, 3, start, sets=SetWeights(sizes, weights), **options)

    expected = list(itertools.islice(batches(0), 60))
    assert list(itertools.islice(batches(start), 60 - start)) == expected[start:]
    parts = [itertools.islice(batches(0, rank=rank, world_size=2), 60) for rank in (0, 1)]
    for batch, first, second in zip(expected, *parts, strict=True):
        assert first == batch[::2] and second == batch[1::2]
    shares = drawn(batches(0, drop_last=False), 100) / 100
    first = 0
    for size, weight in zip(sizes, weights, strict=True):
        assert shares[first : first + size].mean() == pytest.approx(max(1, round(weight * size)) / size)
        first += size


def test_a_split_without_audio_does_not_hide_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("ATK_CACHE", str(tmp_path / "cache"))
    write_clip(tmp_path / "a.wav", 100)
    shards = tmp_path / "shards"
    for split, members in (("train", [("a.wav", (tmp_path / "a.wav").read_bytes())]), ("test", [("x.json", b"{}")])):
        (shards / split).mkdir(parents=True)
        tar(shards / split / "0.tar", members)
    files = read_all(shards)
    assert [clip.file_name for clip in files.clips] == ["train/0.tar:a.wav"]
    assert [name for name, _ in files.skipped] == ["test"]
    (shards / "train" / "0.tar").unlink()
    with pytest.raises(ValueError, match="no usable clip"):
        read_all(shards)


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(ValueError, match="folder: must name a folder or another data set, got an empty string"):
        read_all("")
