"""Tables of published data sets that are malformed: each costs one line that names the file."""

import os
import pickle

import pytest
from support.published import sounds, text
from support.published_captions import (
    make_castella,
    make_castella_of_lighthouse,
    make_clotho,
    make_wavcaps,
)
from support.published_events import make_audioset
from support.published_labels import make_ecals, make_esc50, make_fsd50k, make_magnatagatune, make_vggsound

from atk.data import read_split
from atk.data.published import import_set


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("maker", "name", "file", "content", "message"),
    [
        (make_esc50, "esc50", "meta/esc50.csv", "filename,fold\n", r"lacks the column target, category"),
        (
            make_esc50,
            "esc50",
            "meta/esc50.csv",
            "filename,fold,target,category\na,x,0,dog\n",
            "line 2: expected a number",
        ),
        (make_fsd50k, "fsd50k", "FSD50K.ground_truth/dev.csv", "fname,labels,split\n1,a,../x\n", "the name of a split"),
        (make_vggsound, "vggsound", "vggsound.csv", "a,soon,dog,train\n", r"vggsound\.csv, line 1: expected a number"),
        (make_audioset, "audioset", "metadata/eval_segments.csv", "a, b, c, d\n", "line 1: expected a number, got 'b'"),
        (make_wavcaps, "wavcaps", "json_files/SoundBible/sb_final.json", "{", r"sb_final\.json: not JSON"),
        (make_wavcaps, "wavcaps", "json_files/SoundBible/sb_final.json", "[]", "lacks the list data"),
        (
            make_wavcaps,
            "wavcaps",
            "json_files/SoundBible/sb_final.json",
            '{"data": [1]}',
            "item 0 of data must have",
        ),
        (
            make_castella,
            "castella",
            "json/en/train.json",
            '[{"yid": "a"}]',
            "item 0 must have yid, global_caption",
        ),
        (make_ecals, "ecals", "ecals_annotation/ecals_tags.json", "{}", "not a list of tags"),
        (make_ecals, "ecals", "ecals_annotation/annotation.json", '{"TRAAAAA1": 1}', "TRAAAAA1 lacks the list tag"),
        (make_ecals, "ecals", "ecals_annotation/ecals_track_split.json", "[]", "not a mapping"),
        (make_ecals, "ecals", "lastfm_annotation/7D_id_to_path.pkl", "junk", "not a pickled mapping of text"),
        (
            make_ecals,
            "ecals",
            "ecals_annotation/multiquery_samples.json",
            "5",
            r"multiquery_samples\.json: not a mapping",
        ),
        (
            make_ecals,
            "ecals",
            "ecals_annotation/ecals_track_split.json",
            '{"test_track": "TR"}',
            "not a list of tracks",
        ),
        (make_magnatagatune, "magnatagatune", "train.npy", "junk", "not a list of text"),
        (make_magnatagatune, "magnatagatune", "test_list_pub.cP", "(dp1\n.", "not a pickled list of text .is a dict"),
        (make_castella, "castella", "json/en/train.json", "null", r"train\.json: not a list of clips"),
        (
            make_audioset,
            "audioset",
            "metadata/eval_segments.csv",
            "a, inf, 5, d\n",
            "line 1: expected a number, got 'inf'",
        ),
    ],
)
def test_malformed_tables_are_named(maker, name, file, content, message, root, tmp_path):
    maker(root)
    text(root, file, content)
    with pytest.raises(ValueError, match=message):
        import_set(name, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clips_that_other_tables_lack_are_counted(root, tmp_path):
    make_ecals(root)
    text(root, "ecals_annotation/annotation.json", '{"TRAAAAA1": {"tag": ["rock"]}}')
    left_out = import_set("ecals", root, tmp_path / "out")["left_out"]["no entry in annotation.json"]
    assert sorted(left_out["names"]) == ["TRAAAAA2", "TRAAAAA3", "TRAAAAA4"]
    assert left_out["splits"] == {"test": 2, "train": 1, "multiquery": 1}
    make_magnatagatune(root)
    table = root / "annotations_final.csv"
    table.write_text(table.read_text() + "9\t1\t0\t0\tx/y.mp3\n")
    sounds(root, "mp3/x/y.mp3")
    left_out = import_set("magnatagatune", root, tmp_path / "music")["left_out"]["in no split"]
    assert left_out == {"count": 1, "splits": {}, "names": ["x/y.mp3"]}


@pytest.mark.parametrize(
    ("maker", "name", "missing", "replacement", "message"),
    [
        (make_fsd50k, "fsd50k", "FSD50K.ground_truth/vocabulary.csv", None, "has no vocabulary.csv"),
        (make_audioset, "audioset", "metadata/class_labels_indices.csv", None, "has no class_labels_indices.csv"),
        (
            make_audioset,
            "audioset",
            "metadata/class_labels_indices.csv",
            ("ontology.json", '[{"id": "/m/1"}]'),
            r"ontology\.json: not a list of objects with id and name",
        ),
        (
            make_castella_of_lighthouse,
            "castella",
            "castella_test_release.jsonl",
            ("castella_test_release.jsonl", '\n{"vid": "ab"}\n'),
            "line 2: not a query with qid, vid, and query",
        ),
    ],
)
def test_tables_that_stand_for_others(maker, name, missing, replacement, message, root, tmp_path):
    maker(root)
    (root / missing).unlink()
    if replacement is not None:
        text(root, *replacement)
    with pytest.raises(ValueError, match=message):
        import_set(name, root, tmp_path / "out")


def test_captions_that_name_no_clips_are_noted(root, tmp_path):
    make_clotho(root)
    text(root, "retrieval_captions.csv", "caption\na dog\n")
    (note,) = import_set("clotho", root, tmp_path / "out")["notes"]
    assert note.startswith("retrieval_captions.csv does not name the clips of its captions")


def test_tables_that_an_import_wrote_are_not_those_of_the_set(root):
    for name in ("a", "b"):
        sounds(root, f"train/{name}.wav")
        text(root, f"train/{name}.txt", f"caption {name}")
        import_set("audiocaps", root, root / name)
    assert [clip.captions for clip in read_split(root / "b", "train").clips] == [("caption a",), ("caption b",)]
    (root / "train" / "b.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"b\.txt: not UTF-8"):
        import_set("audiocaps", root, root / "b")


def test_events_that_cannot_be_used_are_counted_by_reason(root, tmp_path):
    text(root, "development_split.csv", "filename\na.wav\n")
    text(root, "annotations_weak.csv", "filename,text\na.wav,a dog\n")
    rows = "a.wav,,0,1\na.wav,a bark,2,1\na.wav,a bark,1,2\n"
    text(root, "annotations_strong.csv", f"filename,text,onset,offset\n{rows}")
    sounds(root, "a.wav")
    left_out = import_set("tacos", root, tmp_path / "out")["left_out"]
    assert {reason: entry["names"] for reason, entry in left_out.items()} == {
        "event without a phrase": ["a.wav:  (0 s to 1 s)"],
        "event that does not end after it starts, at 0 s or later": ["a.wav: a bark (2 s to 1 s)"],
    }


def test_a_caption_that_is_not_text_is_no_caption(root, tmp_path):
    text(root, "sb_final.json", '{"data": [{"id": "1", "caption": null}, {"id": "2", "caption": ["a dog", 5]}]}')
    sounds(root, "SoundBible/1.wav", "SoundBible/2.wav")
    report = import_set("wavcaps", root, tmp_path / "out")
    assert report["left_out"]["no caption"]["names"] == ["SoundBible 1"]
    assert [clip.captions for clip in read_split(tmp_path / "out", "train").clips] == [("a dog",)]


def test_pickles_that_run_code_are_refused(root, tmp_path):
    make_ecals(root)

    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    (root / "lastfm_annotation" / "7D_id_to_path.pkl").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match=r"not a pickled mapping of text \(contains posix\.mkdir\)"):
        import_set("ecals", root, tmp_path / "out")
    assert not (tmp_path / "owned").exists()


def test_exclusion_lists_that_cannot_be_read(root, tmp_path):
    make_wavcaps(root)
    (tmp_path / "list.json").write_text("[]")
    tables = root / "json_files"
    for name, message in (
        (tmp_path / "list.json", "maps the names of sources"),
        ("none.json", rf"none\.json is neither a file nor the name of a list below {tables}$"),
    ):
        with pytest.raises(ValueError, match=message):
            import_set("wavcaps", root, tmp_path / "out", tables=tables, exclude=[name])
