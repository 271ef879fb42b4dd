"""Pools of reference recordings: ESC-50 layout, captioned and other folders, and random draws from them."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.clips import write_clip

from atk.data import AudioError, Clip, ReferencePool, read_references


def write_esc50(folder):
    (folder / "meta").mkdir(parents=True)
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in (1, 2, 5):
        for target, name in enumerate(("dog", "bell")):
            write_clip(folder / "audio" / f"{fold}-{target}.wav", 100)
            rows.append(f"{fold}-{target}.wav,{fold},{target},{name},False,1,A")
    (folder / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")


def test_esc50_folds_and_classes(tmp_path):
    write_esc50(tmp_path)
    train = read_references(tmp_path, held_out=(5,))
    test = read_references(tmp_path, folds=(5,))
    assert train.classes == ["dog", "bell"] * 2 and test.classes == ["dog", "bell"]
    assert not {clip.path for clip in train.clips} & {clip.path for clip in test.clips}
    train.check_classes()
    with pytest.raises(ValueError, match="class 'bell' has only one recording"):
        test.check_classes()
    with pytest.raises(ValueError, match="no recording in the requested folds; its folds are 1, 2, 5"):
        read_references(tmp_path, folds=(4,))


def test_esc50_with_a_missing_file_or_column(tmp_path):
    write_esc50(tmp_path)
    (tmp_path / "audio" / "1-0.wav").unlink()
    pool = read_references(tmp_path)
    assert len(pool.clips) == len(pool.classes) == 5 and pool.skipped[0][0] == "audio/1-0.wav"
    with pytest.raises(AudioError, match=r"1-0\.wav"):
        read_references(tmp_path, "raise")
    (tmp_path / "meta" / "esc50.csv").write_text("filename,fold\na.wav,1\n")
    with pytest.raises(ValueError, match="lacks the column category; its columns are filename, fold"):
        read_references(tmp_path)


def test_any_folder_and_captioned_folders_serve_as_references(tmp_path):
    write_clip(tmp_path / "dog" / "a.wav", 100)
    write_clip(tmp_path / "dog" / "b.wav", 100)
    assert read_references(tmp_path).classes == ["dog", "dog"]
    write_clip(tmp_path / "c.wav", 100)
    with pytest.raises(ValueError, match="the folder has no classes"):
        read_references(tmp_path).check_classes()
    (tmp_path / "train.csv").write_text("file_name,caption\nc.wav,a tone\n")
    pool = read_references(tmp_path)
    assert [clip.file_name for clip in pool.clips] == ["c.wav"] and pool.clips[0].captions == ("a tone",)
    write_clip(tmp_path / "d.wav", 100)
    (tmp_path / "test.csv").write_text("file_name,caption\nd.wav,a tone\n")
    assert [clip.file_name for clip in read_references(tmp_path, split="test").clips] == ["d.wav"]
    assert [clip.file_name for clip in read_references(tmp_path, split="val").clips] == ["c.wav"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("1-0.wav", "no fold, no category"),
        ("1-0.wav,,0,dog", "no fold"),
        (",1,0,dog", "no filename"),
        ("1-0.wav,1,0, ", "no category"),
        ("1-0.wav,one,0,dog", "fold must be an integer, got 'one'"),
        ("1-0.wav,2,0,rain", "line 2 already lists 1-0.wav"),
    ],
)
def test_odd_rows_of_esc50_are_named_or_raise(tmp_path, row, fault):
    write_esc50(tmp_path)
    with (tmp_path / "meta" / "esc50.csv").open("a") as file:
        file.write(row + "\n")
    pool = read_references(tmp_path)
    assert len(pool.clips) == 6 and pool.skipped == [("esc50.csv line 8", fault)]
    with pytest.raises(ValueError, match=rf"esc50\.csv line 8: {fault}$"):
        read_references(tmp_path, "raise")


def test_a_table_in_another_encoding_is_named(tmp_path):
    write_esc50(tmp_path)
    with (tmp_path / "meta" / "esc50.csv").open("ab") as file:
        file.write(b"\xe9.wav,1,0,dog\n")
    with pytest.raises(ValueError, match=r"esc50\.csv: not UTF-8 \(.*\); save it as UTF-8"):
        read_references(tmp_path)


def missing_clips(count):
    """Clips whose files don't exist."""
    return [Clip(f"{n}.wav", Path(f"/recordings/{n}.wav"), (), 1.0) for n in range(count)]


def test_draws_leave_out_classes_and_the_clip_itself():
    clips = missing_clips(60)
    names = ["dog", "bell", "rain"] * 20
    pool = ReferencePool(clips, names, [])
    for index, avoid in ((3, set()), (4, {"dog"}), (5, {"dog", "siren"})):
        allowed = [n for n, name in enumerate(names) if n != index and name not in avoid]
        clip = Clip("x", Path(os.path.relpath(clips[index].path)), (), 1.0)
        assert pool.choices(clip, avoid).tolist() == allowed
        for seed in range(5):
            expected = np.random.default_rng(seed).choice(allowed, 2, replace=False).tolist()
            assert pool.draw(np.random.default_rng(seed), 2, clip, avoid) == expected
        others = [n for n, name in enumerate(names) if name == names[0] and n not in (0, index)]
        drawn = {pool.another(np.random.default_rng(seed), 0, clip) for seed in range(200)}
        assert drawn == set(others)
    assert pool.draw(np.random.default_rng(0), 2, clips[0], {"dog", "bell", "rain"}) == []


def test_has_choice_agrees_with_choices():
    clips = missing_clips(3)
    for count in (1, 2, 3):
        pool = ReferencePool(clips[:count], ["dog", "dog", "bell"][:count], [])
        for clip in clips:
            for avoid in (set(), {"dog"}, {"dog", "bell"}):
                for least in (1, 2):
                    assert least == 1 or not any(pool.classes[n] == "bell" for n in pool.choices(clip, avoid, least))
                    assert pool.has_choice(clip, avoid, least) == bool(len(pool.choices(clip, avoid, least)))


class CountedPasses(list):
    """A list that counts how often it is iterated over."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_draws_do_not_scan_the_pool(monkeypatch):
    resolved = []
    realpath = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(path) or realpath(path))
    clips = CountedPasses(missing_clips(1000))
    classes = CountedPasses(["dog", "bell"] * 500)
    pool = ReferencePool(clips, classes, [])
    pool.choices(clips[0])  # builds the index
    assert clips.passes == classes.passes == 1
    resolved.clear()
    random = np.random.default_rng(0)
    for index in range(200):
        (drawn,) = pool.draw(random, 1, clips[index], {"bell"})
        pool.another(random, drawn, clips[index])
        assert pool.has_choice(clips[index])
    assert clips.passes == classes.passes == 1
    assert len(resolved) == 3 * 200  # only the clip itself, once per call
