"""`atk data check` finds every problem of a data folder before training does."""

import json

import numpy as np
import pytest
import soundfile
from support.unlabeled_cases import tar

from atk.cli.main import main
from atk.data import read_split
from atk.data.check import Problem, check_data, check_folder

RATE = 8000


@pytest.fixture
def folder(tmp_path):
    for name in "abcd":
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.sin(np.arange(RATE) / 7), RATE)
    (tmp_path / "train.csv").write_text("file_name,caption\na.wav,a dog\nb.wav,rain\nb.wav,more rain\n")
    (tmp_path / "test.csv").write_text("file_name,caption\nc.wav,a bell\nd.wav,a car\n")
    return tmp_path


def problems_of(folder, **options):
    return {(problem.name, problem.reason): problem.stops for problem in check_folder(folder, **options).problems}


def test_a_good_folder_has_no_problems(folder, capsys):
    result = check_folder(folder, decode=True)
    assert (result.problems, result.rows, result.files, result.stops) == ([], 5, 4, False)
    main(["data", "check", str(folder), "--decode"])
    assert capsys.readouterr().out == "5 rows, 4 files, 0 problems\n"


def test_every_problem_is_listed_and_says_whether_training_stops(folder):
    (folder / "train.csv").write_text(
        "file_name,caption\na.wav,a dog\nb.wav,\nc.wav,x, y\nnone.wav,rain\n,rain\ne.flac,a car\n", encoding="utf-8"
    )
    (folder / "e.flac").write_bytes(b"not audio")
    (folder / "notes.mid").touch()
    (folder / "events.csv").write_text("file_name,event,phrase,start,end\na.wav,dog,a dog,0,1\nz.wav,dog,a dog,0,1\n")
    (folder / "tags.csv").write_text("file_name,dog\na.wav,2\n")
    (folder / "twins.csv").write_text("Subject,Date\nx,y\n")
    problems = problems_of(folder)
    assert {key for key, stops in problems.items() if stops} == {
        ("b.wav", "train.csv line 3 has no caption"),
        ("c.wav", "train.csv line 4 has 3 fields for 2 columns; quote captions that contain commas"),
        ("train.csv line 6", "no file name"),
        ("none.wav", "no such file"),
        ("e.flac", "not readable as audio (Format not recognised)"),
        ("tags.csv", "line 2: tags must be 0 or 1, got 2"),
    }
    assert {key for key, stops in problems.items() if not stops} == {
        ("notes.mid", "this format cannot be read; convert it to FLAC, for example"),
        ("b.wav", "no split lists this file"),
        ("z.wav", "events.csv names this file, but no split lists it"),
        ("twins.csv", "lacks the column file_name, twin; its columns are Subject, Date; it is ignored"),
    }
    stopping = {name for (name, _), stops in problems.items() if stops} - {"tags.csv", "train.csv line 6"}
    assert stopping == {name for name, _ in read_split(folder, "train").skipped if not name.startswith("train.csv")}


def test_a_file_in_two_splits_is_noted(folder):
    (folder / "test.csv").write_text("file_name,caption\na.wav,a dog\nc.wav,a bell\nd.wav,a car\n")
    assert problems_of(folder) == {("a.wav", "in train.csv and test.csv"): False}


def test_damage_after_the_header_is_found_by_decoding(folder):
    soundfile.write(folder / "long.flac", np.random.default_rng(0).normal(0, 0.1, 100 * RATE), RATE)
    whole = (folder / "long.flac").read_bytes()
    (folder / "long.flac").write_bytes(whole[: len(whole) * 9 // 10])
    soundfile.write(folder / "a.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(folder / "b.wav", np.stack([np.sin(np.arange(RATE)), -np.sin(np.arange(RATE))], 1), RATE)
    with (folder / "train.csv").open("a") as file:
        file.write("long.flac,noise\n")
    assert problems_of(folder) == {}
    problems = problems_of(folder, decode=True, workers=1)
    assert {name: stops for (name, _), stops in problems.items()} == {"a.wav": True, "b.wav": False, "long.flac": True}


def test_a_folder_without_splits_is_a_folder_of_audio(tmp_path, folder, capsys):
    for name in ("train.csv", "test.csv"):
        (folder / name).unlink()
    assert check_folder(folder).files == 4 and problems_of(folder) == {}
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", str(tmp_path / "empty"), "--json"])
    assert stop.value.code == 1
    (problem,) = json.loads(capsys.readouterr().out)
    assert problem["reason"].startswith("neither a split") and problem["stops"]


def test_notes_are_counted_apart_and_numbers_in_names_end_at_the_suffix(folder, capsys):
    for name in ("10.wav", "2.5.wav"):
        (folder / "a.wav").with_name(name).write_bytes((folder / "a.wav").read_bytes())
    main(["data", "check", str(folder)])
    assert capsys.readouterr().out.splitlines() == [
        "5 rows, 4 files, 0 problems, 2 notes",
        "       2  note   no split lists this file; first: 10.wav",
    ]
    assert Problem("test", "skipped 10: 10.wav (at 0.5 s)", True).category == "skipped N: N.wav (at N s)"


def test_the_command_groups_problems_and_exits_with_1(folder, capsys):
    with (folder / "train.csv").open("a") as file:
        file.writelines(f"x{index}.wav,gone\n" for index in range(7))
        file.write("y.wav,\nz.wav,\n")
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", str(folder)])
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "14 rows, 11 files, 9 problems",
        "       7  stops  no such file; first: x0.wav",
        "       2  stops  N has no caption; first: y.wav",
    ]
    for arguments in (["data", "check", str(folder / "none")], ["data", "check", str(folder), "--workers", "0"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_odd_folders_do_not_stop_the_check(folder):
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    (folder / "val.csv").write_text("file_name,caption\n")
    with (folder / "train.csv").open("a") as file:
        file.write("nul\0.wav,gone\n")
    problems = problems_of(folder)
    assert problems[("val.csv", "it lists no clip")] and problems[("nul\0.wav", "embedded null byte")]
    assert not problems[("loop.wav", "no split lists this file")]


def test_shards_are_checked_like_folders(folder, tmp_path, capsys):
    members = [("a.wav", (folder / "a.wav").read_bytes()), ("a.txt", b"a dog"), ("b.wav", b"x"), ("b.txt", b"rain")]
    (tmp_path / "shards" / "train").mkdir(parents=True)
    shard = tar(tmp_path / "shards" / "train" / "0.tar", members)
    result = check_data([str(tmp_path / "shards")], decode=True)
    assert check_data(str(tmp_path / "shards"), decode=True) == result
    reason = "not readable as audio (Format not recognised)"
    assert [(problem.name, problem.reason) for problem in result.problems] == [("train/0.tar:b.wav", reason)]
    assert (result.rows, result.files, result.stops) == (2, 1, True)
    (folder / "new.wav").write_bytes((folder / "a.wav").read_bytes())
    with pytest.raises(SystemExit):
        main(["data", "check", str(shard), str(folder), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [problem["name"] for problem in printed] == [f"{shard}:b.wav", f"{folder}/new.wav"]
