"""A run of version 0.1.0, stopped at step 6 of 12, can still be resumed, evaluated, and used for search."""

import json
import tarfile
from pathlib import Path

import pytest
from support.runs import rows

from atk.cli.main import main


@pytest.fixture
def older_run(tmp_path):
    with tarfile.open(Path(__file__).parents[1] / "fixtures" / "run_0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_it_resumes_like_the_uninterrupted_run(older_run, tiny_data):
    lines = (older_run / "metrics_uninterrupted.jsonl").read_text().splitlines()
    expected = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    main(["train", "aligned", "--data", str(tiny_data), "--out", str(older_run), "--resume"])
    assert [row["loss"] for row in rows(older_run) if "loss" in row] == pytest.approx(expected, rel=1e-3)
    assert json.loads((older_run / "summary.json").read_text())["steps"] == 12


def test_it_evaluates_and_searches(older_run, tiny_data, capsys):
    main(["evaluate", str(older_run), "--data", str(tiny_data), "--device", "cpu"])
    assert set(json.loads(capsys.readouterr().out)) >= {"text_to_audio", "audio_to_text", "chance"}
    main(["search", str(older_run), str(tiny_data), "a low tone", "--device", "cpu", "--top", "3"])
    assert len(capsys.readouterr().out.splitlines()) == 3
