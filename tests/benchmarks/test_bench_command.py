"""`atk bench`: every op with every available provider, the files it writes, and its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atk.bench import command, measure, report, sizes
from atk.bench.measure import Row
from atk.cli.main import main

ROOT = Path(__file__).parents[2]
WITHOUT_COMPILER = [name for name in command.PROVIDERS if name != "torch.compile"]


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    monkeypatch.setattr(measure, "MATMUL_SIZE", {"cpu": 64})
    monkeypatch.setattr(measure, "BEYOND_CACHE", 1 << 20)


def bench(out, *arguments):
    """The saved results of a short run, and its exit code."""
    try:
        main(["bench", "--device", "cpu", "--rounds", "1", "--out", str(out), *arguments])
        code = 0
    except SystemExit as error:
        code = error.code
    path = out / "bench.json"
    return (json.loads(path.read_text()) if path.is_file() else None), code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "providers"),
    [
        *((op, WITHOUT_COMPILER) for op in command.OPS),
        pytest.param("info_nce", ["torch.compile", "atk"], marks=pytest.mark.exhaustive),
    ],
)
def test_every_provider_is_correct_or_missing(op, providers, tmp_path, capsys):
    dtypes = ["float32", "bfloat16", "float16"]
    document, code = bench(tmp_path, "--ops", op, "--sizes", "tiny", "--dtypes", *dtypes, "--providers", *providers)
    assert code == 0
    modes = command._module(op).MODES
    expected = [(mode, dtype) for mode in modes for dtype in dtypes]
    assert [(table["kind"], table["dtype"]) for table in document["tables"]] == expected
    page = (tmp_path / "bench.md").read_text()
    for table in document["tables"]:
        *rows, limit = table["rows"]
        assert limit["provider"] == "limit" and "matmul" in limit["note"] and limit["of_limit"] == 1
        assert {row["status"] for row in rows} <= {"ok", "missing"}
        assert all(row["note"] if row["status"] == "missing" else row["error"] < 1 for row in rows)
        assert all(row["provider"].startswith(tuple(command.PROVIDERS)) for row in rows)
        assert any(row["provider"].startswith("atk ") and row["status"] == "ok" for row in rows)
        assert f"### {table['title']}" in page and table["shape"] == sizes.NAMED[op]["tiny"]._asdict()
    assert "commit" in document["environment"]
    assert document["settings"]["command"].startswith(
        f"atk bench --ops {op} --sizes tiny --dtypes float32 bfloat16 float16"
    )


@pytest.mark.slow
def test_sweeps_are_plotted(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(command, "compare", lambda case, rounds: made_rows())
    document, _ = bench(tmp_path, "--ops", "info_nce", "--sizes", "batch", "--short")
    name = "bench_info_nce_step_float32_batch.png"
    assert len(document["tables"]) == 3 and (tmp_path / name).is_file()
    assert f"({name})" in (tmp_path / "bench.md").read_text()


def made_rows(status="ok", ms=2.0):
    fields = {"median_ms": ms, "p20_ms": ms, "p80_ms": ms, "gflops": 1.0, "of_limit": 0.5, "peak_mib": 1.0}
    row = Row("atk chunked", **fields) if status == "ok" else Row("atk chunked", status, "made")
    return [row, Row("limit", **fields | {"median_ms": 1.0, "of_limit": 1.0})]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "code"), [(made_rows(), 0), (made_rows(ms=3.0), 1), (made_rows("wrong"), 1)])
def test_a_regression_against_a_saved_run_exits_with_1(rows, code, tmp_path, monkeypatch, capsys):
    arguments = ["--ops", "info_nce", "--sizes", "tiny"]
    monkeypatch.setattr(command, "compare", lambda case, rounds: made_rows())
    assert bench(tmp_path / "saved", *arguments)[1] == 0
    monkeypatch.setattr(command, "compare", lambda case, rounds: rows)
    saved = str(tmp_path / "saved" / "bench.json")
    assert bench(tmp_path / "now", *arguments, "--compare", saved)[1] == code
    out, err = capsys.readouterr()
    assert f"{code} regressions in 1 rows that are also in " in out and ("regression: info_nce" in err) == bool(code)


@pytest.mark.slow
def test_comparing_with_other_cases_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "compare", lambda case, rounds: made_rows())
    bench(tmp_path / "saved", "--ops", "info_nce", "--sizes", "clap_256")
    saved = str(tmp_path / "saved" / "bench.json")
    assert bench(tmp_path, "--ops", "info_nce", "--sizes", "tiny", "--compare", saved)[1] == 1
    assert "nothing to compare" in capsys.readouterr().err


@pytest.mark.slow
def test_another_machine_is_reported_and_another_device_refused(tmp_path, monkeypatch, capsys):
    arguments = ["--ops", "info_nce", "--sizes", "tiny"]
    monkeypatch.setattr(command, "compare", lambda case, rounds: made_rows())
    document, _ = bench(tmp_path / "saved", *arguments)
    path = tmp_path / "saved" / "bench.json"
    document["environment"]["threads"] = 99
    path.write_text(json.dumps(document))
    assert bench(tmp_path / "now", *arguments, "--compare", str(path))[1] == 0
    assert f"{path}: threads 99, now " in capsys.readouterr().err
    document["settings"]["device"] = "cuda"
    path.write_text(json.dumps(document))
    assert bench(tmp_path / "refused", *arguments, "--compare", str(path)) == (None, 2)
    assert capsys.readouterr().err == f"atk bench: compare must be a run on cpu, but {path} was measured on cuda\n"


def test_a_folder_that_cannot_be_written_fails_before_the_measurement(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "compare", lambda case, rounds: pytest.fail("measured first"))
    (tmp_path / "file").touch()
    assert bench(tmp_path / "file", "--ops", "info_nce", "--sizes", "tiny")[1] == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_ops_without_a_selected_provider_have_no_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "compare", lambda case, rounds: made_rows())
    arguments = ["--sizes", "tiny", "--providers", "SDPA", "--ops", "info_nce"]
    document, code = bench(tmp_path, *arguments, "cross_attention_difference")
    assert [table["op"] for table in document["tables"]] == ["cross_attention_difference"] and code == 0
    assert bench(tmp_path / "none", *arguments) == (None, 2)
    assert "atk bench: nothing to run: no selected op has such a provider\n" in capsys.readouterr().err


def test_a_wrong_row_of_atk_exits_with_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "compare", lambda case, rounds: made_rows("wrong"))
    assert bench(tmp_path, "--ops", "info_nce", "--sizes", "tiny")[1] == 1
    assert "atk chunked: wrong (made)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--providers", "cublas"], "providers must start with one of naive, "),
        (["--ops", "info_nce", "--sizes", "colbert"], "nothing to run"),
        (["--device", "cuda:1"], "device must be one of 'auto', 'cpu', 'cuda', got 'cuda:1'"),
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
        (["--threshold", "0.9"], "threshold must be above 1, got 0.9"),
        (["--compare", "setup.py"], "setup.py has no tables of `atk bench`"),
        (["--compare", "no/such.json"], "no/such.json"),
    ],
)
def test_invalid_options_are_reported_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert bench(tmp_path, *arguments) == (None, 2)
    err = capsys.readouterr().err
    assert message in err and err.startswith("atk bench: ") and err.count("\n") == 1


@pytest.mark.slow
def test_it_runs_with_only_torch_installed(tmp_path):
    program = (
        "import runpy, sys\n"
        "for name in ('matplotlib', 'jsonargparse', 'yaml', 'transformers', 'torchaudio'): sys.modules[name] = None\n"
        "runpy.run_module('atk.bench', run_name='__main__')"
    )
    ops = ["--ops", "aligned_train_step", "info_nce"]
    arguments = [*ops, "--sizes", "tiny", "--providers", "atk", "--rounds", "1", "--device", "cpu"]
    command_line = [sys.executable, "-c", program, *arguments, "--out", str(tmp_path)]
    run = subprocess.run(command_line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    assert "no plots: " in run.stderr and (tmp_path / "bench.json").is_file()
    assert "left out: aligned_train_step (" in (tmp_path / "bench.md").read_text()


@pytest.mark.exhaustive
def test_the_pytest_benchmarks_run(tmp_path):
    pytest.importorskip("pytest_benchmark")
    selected = "tiny and info_nce and not aligned and not compile"
    command_line = [sys.executable, "-m", "pytest", "benchmarks/test_ops.py", "-k", selected, "-p", "no:cacheprovider"]
    saved = tmp_path / "times.json"
    # In an xdist worker, pytest-benchmark times nothing.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    command_line.append(f"--benchmark-json={saved}")
    run = subprocess.run(command_line, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert run.returncode == 0, run.stdout
    benchmarks = json.loads(saved.read_text())["benchmarks"]
    assert len(benchmarks) >= 3 and all(benchmark["extra_info"]["error"] < 1e-4 for benchmark in benchmarks)


def test_only_a_commit_of_this_project_is_reported(tmp_path, monkeypatch):
    assert report.environment()["commit"] != "none" or not (ROOT / ".git").exists()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(report, "__file__", str(tmp_path / "site-packages" / "report.py"))
    (tmp_path / "site-packages").mkdir()
    assert report.environment()["commit"] == "none"
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert report.environment()["commit"] == "none"
