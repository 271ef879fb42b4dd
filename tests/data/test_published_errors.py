"""Importing published data sets: options, folders to write, odd trees, and mistakes, each of which costs one line."""

import json

import numpy as np
import pytest
from support.published import sounds, text
from support.published_captions import make_audiocaps, make_castella, make_clotho, make_wavcaps
from support.published_events import make_audioset
from support.published_labels import (
    make_ecals,
    make_esc50,
    make_gtzan,
    make_vggsound,
)

from atk.cli.main import main
from atk.data import read_split
from atk.data.published import SETS, import_set


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def names_of(out, split="train"):
    return [clip.path.name for clip in read_split(out, split, on_error="raise").clips]


def test_exclusion_lists(root, tmp_path):
    make_wavcaps(root)
    (tmp_path / "dcase2025_task6_excluded_freesound_ids.csv").write_text("sound_id\n123\n")
    lists = ["blacklist_exclude_test_ac.json", str(tmp_path / "dcase2025_task6_excluded_freesound_ids.csv")]
    report = import_set("wavcaps", root, tmp_path / "out", exclude=lists)
    excluded = report["left_out"]["in an exclusion list"]
    assert excluded["names"] == ["AudioSet Yab-CdEfGh12.wav", "FreeSound 123", "FreeSound 124"]
    assert excluded["count"] == report["splits"]["train"]["left_out"] == 3 and report["exclude"] == lists
    paths = [str(clip.path.relative_to(root)) for clip in read_split(tmp_path / "out", "train").clips]
    assert [path.rsplit("/", 2)[1:] for path in paths] == [
        ["AudioSet_SL_flac", "Y1234567_ab0.flac"],
        ["BBC_Sound_Effects_flac", "NHU05104007.flac"],
        ["SoundBible_flac", "123.flac"],
        ["SoundBible_flac", "124.flac"],
    ]


def test_exclusion_lists_apply_to_clotho_by_its_metadata(root, tmp_path):
    make_clotho(root)
    (tmp_path / "list.json").write_text('{"AudioSet": ["7"], "FreeSound": ["1001"]}')
    import_set("clotho", root, tmp_path / "out", exclude=[str(tmp_path / "list.json")])
    assert names_of(tmp_path / "out") == ["Gate, old &amp; red .wav", "stripped.wav"]
    (root / "clotho_csv_files" / "clotho_metadata_validation.csv").unlink()
    with pytest.raises(ValueError, match=r"exclusion lists need clotho_metadata_validation\.csv"):
        import_set("clotho", root, tmp_path / "out", exclude=[str(tmp_path / "list.json")])


def test_tables_of_another_folder_or_version(root, tmp_path):
    make_castella(root, language="ja")
    text(root, "json/en/train.json", '[{"yid": "ab-CdEfGh12", "global_caption": "In English", "moments": []}]')
    import_set("castella", root, tmp_path / "en")
    import_set("castella", root / "audio", tmp_path / "ja", tables=root / "json" / "ja")
    captions = [read_split(tmp_path / name, "train").clips[0].captions for name in ("en", "ja")]
    assert captions == [("In English",), ("A yard",)]


def test_two_versions_of_a_table_must_be_told_apart(root, tmp_path):
    make_audiocaps(root)
    text(root, "dataset2.0/train.csv", "audiocap_id,youtube_id,start_time,caption\n1,-aB3_dEfGh1,30,in lower case\n")
    with pytest.raises(ValueError, match=r"dataset/train\.csv and .*dataset2\.0/train\.csv differ; .* with --tables"):
        import_set("audiocaps", root, tmp_path / "out")
    report = import_set("audiocaps", root, tmp_path / "out", tables=root / "dataset2.0")
    assert read_split(tmp_path / "out", "train").clips[0].captions == ("in lower case",)
    assert report["notes"] == ["no val.csv: no table val.csv", "no test.csv: no table test.csv"]
    (root / "copy").mkdir()  # of one version, which does no harm
    (root / "copy" / "train.csv").write_bytes((root / "dataset" / "train.csv").read_bytes())
    (root / "dataset2.0" / "train.csv").unlink()
    import_set("audiocaps", root, tmp_path / "out")


def test_an_import_replaces_an_earlier_one_and_nothing_else(root, tmp_path):
    make_esc50(root)
    out = root / "imported"  # inside of the set
    import_set("esc50", root, out)
    (out / "notes.md").write_text("mine")
    make_clotho(tmp_path)
    import_set("clotho", tmp_path, out)
    assert {path.name for path in out.glob("*.*")} == {"import.json", "notes.md", "test.csv", "train.csv", "val.csv"}
    assert not list((out / "vocabularies").iterdir())
    (out / "all.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"all\.csv exists, and no earlier import wrote it"):
        import_set("esc50", root, out)
    (out / "all.csv").unlink()
    text(tmp_path, "clotho_csv_files/clotho_captions_validation.csv", 'file_name,caption_1\na.wav,"open\n')
    with pytest.raises(ValueError, match="a quote is never closed"):
        import_set("clotho", tmp_path, out)
    assert json.loads((out / "import.json").read_text())["set"] == "clotho" and len(names_of(out)) == 3
    assert not list(root.glob(".*"))


@pytest.mark.parametrize("content", ["", "{}", '{"set": "mine", "files": []}', '{"set": "esc50", "files": ["../x"]}'])
def test_a_folder_with_other_files_is_refused(root, tmp_path, content):
    make_esc50(root)
    (tmp_path / "x").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "import.json").write_text(content)
    if "esc50" in content:  # an earlier import, whose report somebody spoiled
        import_set("esc50", root, tmp_path / "out")
        assert (tmp_path / "x").exists()
        return
    with pytest.raises(ValueError, match=r"out: .* has files and no import\.json of an earlier import"):
        import_set("esc50", root, tmp_path / "out")


@pytest.mark.parametrize("name", [name for name in SETS if name != "gtzan"])  # torchaudio has its lists
def test_another_tree_is_refused_with_what_is_missing(name, root, tmp_path):
    sounds(root, "a.wav")
    with pytest.raises(ValueError, match=r"set: has no .*; if the tables are elsewhere, name them with --tables"):
        import_set(name, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_set_without_any_audio_is_refused(root, tmp_path):
    text(root, "meta/esc50.csv", "filename,fold,target,category\n1-2-A-0.wav,1,0,dog\n")
    message = r"no usable clip; 1 no audio file \(first: 1-2-A-0\.wav\); audio files are looked for as names of the"
    with pytest.raises(ValueError, match=message):
        import_set("esc50", root, tmp_path / "out")


def test_arguments(root, tmp_path, capsys):
    make_esc50(root)
    for arguments, message in (
        (["none", str(root)], "set must be one of 'clotho', "),
        (["esc50", str(root / "none")], "no such folder"),
        (["esc50", str(root), "--tables", str(root / "none")], "no such folder"),
        (
            ["esc50", str(root), "--exclude", "x"],
            "esc50 has no exclusion lists; sets with lists: clotho, wavcaps",
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["data", "import", *arguments[:2], str(tmp_path / "out"), *arguments[2:]])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_the_commands_print_what_happened(root, tmp_path, capsys):
    make_vggsound(root)
    main(["data", "import", "vggsound", str(root), str(tmp_path / "out")])
    assert capsys.readouterr().out.splitlines() == [
        "train                2 clips         2 captions         0 left out",
        "test                 1 clips         1 captions         2 left out",
        "1 left out: no audio file; first: lost_lost_1 at 0 s",
        "1 left out: this format cannot be read; convert it to FLAC, for example; first: video_only1 at 7 s",
        f"{tmp_path}/out/import.json",
    ]
    main(["data", "list"])
    listing = capsys.readouterr().out
    assert [line for line in listing.splitlines() if not line.startswith(" ")] == list(SETS)
    assert all(entry.url in listing and entry.protocol in listing for entry in SETS.values())


def test_gtzan_without_lists_takes_those_of_torchaudio(root, tmp_path):
    make_gtzan(root)
    for file in root.glob("*_filtered.txt"):
        file.unlink()
    sounds(root, "genres/blues/blues.00029.wav", "genres/blues/blues.00030.wav")
    report = import_set("gtzan", root, tmp_path / "out")
    assert names_of(tmp_path / "out")[:2] == ["blues.00029.wav", "blues.00030.wav"]
    assert sum(split["clips"] + split["left_out"] for name, split in report["splits"].items() if name != "all") == 930
    assert "torchaudio" in report["notes"][0]


def test_other_tables_of_audioset_and_vggsound(root, tmp_path):
    make_audioset(root)
    (root / "metadata" / "class_labels_indices.csv").unlink()
    text(root, "ontology.json", '[{"id": "/m/09x0r", "name": "Speech"}, {"id": "/t/dd00088", "name": "Male speech"}]')
    import_set("audioset", root, tmp_path / "audioset")
    assert read_split(tmp_path / "audioset", "train").clips[0].captions == ("Speech, Male speech",)
    (tmp_path / "vgg").mkdir()
    expected = make_vggsound(tmp_path / "vgg")
    (tmp_path / "vgg" / "vggsound.csv").unlink()
    text(
        tmp_path / "vgg",
        "data/train.csv",
        "-aBcDeFgHi1_000030.mp4,people talking\nzZ_1234567x_000110.mp4,dog barking\n",
    )
    text(tmp_path / "vgg", "data/test.csv", 'a_b-cDeFgH1_000004.mp4,"engine, idle"\n')
    import_set("vggsound", tmp_path / "vgg", tmp_path / "out")
    assert names_of(tmp_path / "out") == [name.rpartition("/")[2] for name in expected.captions["train"]]
    assert names_of(tmp_path / "out", "test") == ["a_b-cDeFgH1_000004.wav"]


def test_the_report_lists_few_names_and_all_counts(root, tmp_path):
    rows = "".join(f"{index},{index % 5 + 1},0,dog\n" for index in range(100))
    text(root, "esc50.csv", "filename,fold,target,category\n" + rows)
    sounds(root, *(f"{index}.wav" for index in range(10)))
    entry = import_set("esc50", root, tmp_path / "out")["left_out"]["no audio file"]
    assert entry["count"] == 90 and entry["splits"] == {"train": 54, "val": 18, "test": 18, "all": 90}
    assert entry["names"] == [str(index) for index in range(10, 30)]


def test_audio_of_ecals_is_read_at_16_khz(root, tmp_path):
    make_ecals(root)
    np.save(root / "npy" / "8" / "9" / "0.clip.npy", np.zeros(48_000, np.float32))
    import_set("ecals", root, tmp_path / "out")
    assert read_split(tmp_path / "out", "train", on_error="raise").clips[0].seconds == 3
