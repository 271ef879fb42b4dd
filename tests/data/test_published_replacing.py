"""An import that is killed while it replaces an earlier one never leaves a mixture of both."""

import json
import shutil
from pathlib import Path

import pytest
from support.processes import Job
from support.published_sets import MAKERS

from atk.cli.main import main
from atk.data import read_split
from atk.data.check import check_folder
from atk.data.published import import_set

OLD, NEW = "esc50", "magnatagatune"


def files_of(folder):
    """{name: content} of a data folder; of its report, only what does not depend on the time."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    contents = {name: path.read_text() for name, path in files.items()}
    if "import.json" in contents:
        report = json.loads(contents["import.json"])
        contents["import.json"] = (report["set"], report["files"])
    return contents


def splits_in(folder):
    """The captions in each split of an imported folder."""
    names = [path.stem for path in folder.glob("*.csv") if path.stem in ("train", "val", "test", "all")]
    return {name: [(clip.file_name, clip.captions) for clip in read_split(folder, name).clips] for name in names}


@pytest.fixture
def sets(tmp_path):
    for name in (OLD, NEW):
        (tmp_path / name).mkdir()
        MAKERS[name](tmp_path / name)
        import_set(name, tmp_path / name, tmp_path / f"whole {name}")
    return tmp_path


@pytest.mark.slow
def test_a_killed_import_leaves_the_old_one_or_the_new_one(sets):
    whole = {name: files_of(sets / f"whole {name}") for name in (OLD, NEW)}
    assert whole[OLD].keys() - whole[NEW].keys() and whole[NEW].keys() - whole[OLD].keys()
    states = set()
    operation = 0
    code = 9
    while code == 9:
        operation += 1
        out = sets / f"out {operation}"
        shutil.copytree(sets / f"whole {OLD}", out)
        (out / "notes.txt").write_text("mine")
        job = Job("support.killed_import:import_until", operation, NEW, str(sets / NEW), str(out))
        code = job.wait()
        assert code in (0, 9), job.output
        if (out / ".atk-import").exists():
            with pytest.raises(ValueError, match="interrupted; run atk data import again"):
                read_split(out, "train")
            assert any("interrupted" in problem.reason and problem.stops for problem in check_folder(out).problems)
            states.add("refused")
        else:
            splits = splits_in(out)
            states.add(next(name for name in (OLD, NEW) if splits == splits_in(sets / f"whole {name}")))
        import_set(NEW, sets / NEW, out)
        assert files_of(out) == {**whole[NEW], "notes.txt": "mine"}
    assert states == {OLD, NEW, "refused"} and operation > len(whole[NEW])


@pytest.mark.slow
def test_a_killed_first_import_does_not_stand_in_the_way(sets):
    for operation, out in ((2, sets / "new"), (3, sets / "empty")):
        (sets / "empty").mkdir(exist_ok=True)
        Job("support.killed_import:import_until", operation, OLD, str(sets / OLD), str(out)).wait()
        import_set(OLD, sets / OLD, out)
        assert files_of(out) == files_of(sets / f"whole {OLD}")
    assert not [path for path in Path(sets).iterdir() if path.name.startswith(".")]


def test_an_interrupted_import_is_completed_even_if_the_next_one_fails(sets, capsys):
    out = sets / f"whole {OLD}"
    (sets / f"whole {NEW}").rename(out / ".atk-import")
    with pytest.raises(SystemExit) as stop:
        main(["data", "stats", str(out)])
    assert stop.value.code == 2 and "interrupted; run atk data import again" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has no esc50"):
        import_set(OLD, sets / NEW, out)
    assert splits_in(out) and json.loads((out / "import.json").read_text())["set"] == NEW
