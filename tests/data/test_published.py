"""Importing published data sets: one small copy of each, with the traps of the real one."""

import csv
import itertools
import json
from operator import itemgetter
from pathlib import Path

import pytest
from support.published_captions import (
    AUDIOCAPS_NAMES,
    make_audiocaps,
    make_audiocaps_of_wavcaps,
    make_audiocaps_with_texts,
    make_castella_of_lighthouse,
)
from support.published_sets import MAKERS
from support.runs import arguments

from atk.cli.main import main
from atk.data import read_split
from atk.data.check import check_folder
from atk.data.published import SETS, import_set
from atk.data.side_files import read_events, read_tags


def imported(tmp_path, name, maker, **options):
    """Make a set, import it, and compare the data folder with what is expected."""
    root, out = tmp_path / "the set", tmp_path / "out"
    root.mkdir()
    expected = maker(root)
    report = import_set(name, root, out, **options)
    for split, files in expected.captions.items():
        read = read_split(out, split, on_error="raise")
        assert {clip.file_name: list(clip.captions) for clip in read.clips} == {
            str(root / name): captions for name, captions in files.items()
        }
        count = report["splits"][split]
        assert (count["clips"], count["captions"]) == (len(files), sum(map(len, files.values())))
    assert {path.stem for path in out.glob("*.csv")} - {"tags", "events", "folds"} == set(expected.captions)
    assert {reason: entry["names"] for reason, entry in report["left_out"].items()} == expected.left_out
    assert json.loads((out / "import.json").read_text()) == report and report["set"] == name
    compare_side_files(root, out, expected)
    assert not [problem for problem in check_folder(out).problems if problem.stops]
    return root, out, report


def compare_side_files(root, out, expected):
    files = {path.stem: path.read_text().splitlines() for path in out.glob("vocabularies/*.txt")}
    assert files == expected.vocabularies
    for vocabulary, tags in expected.vocabularies.items():
        names, table = read_tags(out / "tags.csv", vocabulary)
        assert names == tags
        present = {name: set(itertools.compress(names, values)) for name, values in table.items()}
        assert present == {str(root / name): set(listed) & set(tags) for name, listed in expected.tags.items()}
    events = read_events(out / "events.csv") if (out / "events.csv").is_file() else []
    wanted = [(str(root / name), *rest) for name, *rest in expected.events]
    assert sorted(map(tuple, events), key=itemgetter(0)) == sorted(wanted, key=itemgetter(0))  # by time in each file
    folds = {}
    if (out / "folds.csv").is_file():
        with (out / "folds.csv").open() as file:
            folds = {row["file_name"]: row["fold"] for row in csv.DictReader(file)}
    assert folds == {str(root / name): fold for name, fold in expected.folds.items()}


def test_every_set_has_a_maker_and_a_row_in_the_documentation():
    assert set(MAKERS) == set(SETS)
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    cells = {line.split(" | ")[0].strip("| `"): line for line in page.splitlines() if line.startswith("| `")}
    for name, entry in SETS.items():
        assert f"<{entry.url}>" in cells[name]
        evaluated = cells[name].partition("; evaluated by ")[2].split(" | ")[0]
        assert evaluated == " and ".join(f"`{protocol}`" for protocol in entry.evaluation)


@pytest.mark.parametrize("name", SETS)
def test_import(name, tmp_path):
    imported(tmp_path, name, MAKERS[name])


@pytest.mark.parametrize("naming", AUDIOCAPS_NAMES)
def test_audiocaps_is_found_under_the_names_of_every_downloader(naming, tmp_path):
    imported(tmp_path, "audiocaps", lambda root: make_audiocaps(root, naming))


@pytest.mark.parametrize("maker", [make_audiocaps_of_wavcaps, make_audiocaps_with_texts])
def test_other_tables_of_audiocaps(maker, tmp_path):
    imported(tmp_path, "audiocaps", maker)


def test_castella_of_lighthouse(tmp_path):
    imported(tmp_path, "castella", make_castella_of_lighthouse)


# One of each sort: several captions, only a training split, only a test split, events and tags, NumPy files.
SLOW = ("clotho", "wavcaps", "songdescriber", "audioset-strong", "ecals")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.exhaustive) for name in SETS]
)
def test_an_imported_set_trains_and_evaluates(name, tmp_path, tiny_data, tiny_run, capsys):
    _, out, report = imported(tmp_path, name, MAKERS[name])
    run, split = tiny_run, "test"
    if "train" in report["splits"]:
        run, split = tmp_path / "run", "train"
        (out / "tiny.yaml").write_text((tiny_data / "tiny.yaml").read_text())
        main(arguments(out, run, "--steps", "1", "--on-error", "raise"))  # two or three clips: an epoch
        assert json.loads((run / "summary.json").read_text())["steps"] == 1
    tags = ["--tags"] if (out / "tags.csv").is_file() else []
    protocols = SETS[name].evaluation
    if "psds" in protocols:
        pytest.importorskip("sed_scores_eval", exc_type=ImportError, reason="needs the extra psds")
    options = ["--split", split, "--on-error", "raise", "--workers", "0", *tags]
    capsys.readouterr()
    main(["evaluate", str(run), "--data", str(out), *options, *(("--protocol", *protocols) if protocols else ())])
    evaluated = json.loads(capsys.readouterr().out).get("protocols", {})
    assert tuple(evaluated) == protocols
    assert all(result["split"] == split and result["clips"] for result in evaluated.values())
