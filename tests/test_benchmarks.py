"""The benchmark harness reports wrong, failing, missing and too large providers; the script runs at a tiny size."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import bench_cross_attention
import difference_captioning
import harness
import runs


def rows_of(*providers):
    inputs = (torch.randn(64),)
    return {row.provider: row for row in harness.compare(providers, inputs, [inputs[0].double() * 2], rounds=2)}


def right(x):
    return (x * 2,)


def no_memory(x):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def broken(x):
    raise ValueError("tile does not fit\nmore lines")


def test_providers_that_cannot_be_timed_keep_their_row():
    rows = rows_of(
        harness.Provider("right", right, 1.0),
        harness.Provider("wrong", lambda x: (x * 2.1,), 1.0),
        harness.Provider("nan", lambda x: (x * float("nan"),), 1.0),
        harness.Provider("no memory", no_memory, 1.0),
        harness.Provider("large", right, 1.0, needs_bytes=1 << 60),
        harness.Provider("broken", broken, 1.0),
        harness.Provider("absent", broken, 1.0, missing="not installed"),
    )
    states = {name: (row.status, row.note) for name, row in rows.items()}
    assert states.pop("right") == ("ok", "") and rows["right"].error < 1e-6 and rows["right"].median_ms > 0
    assert states.pop("wrong")[0] == states.pop("nan")[0] == "wrong"
    assert states.pop("no memory")[0] == states.pop("large")[0] == "out of memory"
    assert states == {"broken": ("failed", "tile does not fit"), "absent": ("missing", "not installed")}
    assert all(row.median_ms is None for name, row in rows.items() if name != "right")


def test_rates_are_shared_out_to_the_limit_and_the_first_provider():
    slow, fast, limit = rows_of(
        harness.Provider("slow", lambda x: (sum(x for _ in range(200)) / 100,), 1e6),
        harness.Provider("fast", right, 1e6),
        harness.Provider("limit", right, 4e6, tolerance=None),
    ).values()
    assert slow.ratio == 1 and fast.ratio == pytest.approx(slow.median_ms / fast.median_ms) and limit.ratio is None
    assert limit.of_limit == 1 and fast.of_limit == pytest.approx(fast.gflops / limit.gflops)
    assert fast.gflops == pytest.approx(1e-3 / (fast.median_ms * 1e-3))


def test_peak_memory_is_that_of_the_call():
    provider = harness.Provider("large", lambda x: (torch.ones(1 << 24).sum() * 0 + x * 2,), 1.0)
    row = rows_of(provider)["large"]
    assert row.peak_mib != row.peak_mib or 60 < row.peak_mib < 70  # NaN where the system does not tell


def test_the_script_writes_its_tables(tmp_path, monkeypatch, capsys):
    script = harness.__file__.replace("harness.py", "bench_max_mean.py")
    shape = ["--n", "5", "--la", "9", "--lt", "6", "--d", "8", "--rounds", "1", "--alone", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [script, *shape, "--dtype", "float32", "bfloat16", "--out", str(tmp_path / "t")])
    runpy.run_path(script, run_name="__main__")
    result = json.loads((tmp_path / "t.json").read_text())
    assert len(result["tables"]) == 8 and "commit" in result["environment"]
    for rows in result["tables"].values():
        assert [row["status"] for row in rows if row["status"] not in ("ok", "missing")] == []
        assert rows[-1]["provider"].startswith("limit") and rows[-1]["of_limit"] == 1
    assert (tmp_path / "t.md").read_text().count("| naive einsum |") == 8


def test_every_provider_of_the_cross_attention_agrees():
    rows = {row.provider: row for row in bench_cross_attention.run(3, 20, 16, 2, rounds=1, compiled=False)}
    torch_module = "nn.MultiheadAttention"
    names = {f"{torch_module}, need_weights=False", f"{torch_module}, default call", "atk sdpa", "atk reference"}
    assert {name for name, row in rows.items() if row.status == "ok"} >= names


def test_the_comparison_of_objectives_tells_a_run_with_other_settings(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 3\noptim: {lr: 0.001}\n")
    runs.check_settings(tmp_path, {"steps": 3, "optim.lr": 1e-3})
    with pytest.raises(SystemExit, match=r"was made with optim\.lr 0\.001, not 0\.1"):
        runs.check_settings(tmp_path, {"steps": 3, "optim.lr": 0.1})


def test_the_tables_of_objectives_have_a_column_each():
    def row(objective, condition, seed):
        shares = {"target": 50.0, "added": 5.0}
        scores = {"CIDEr": 0.1 * seed}
        named = {"named input": shares, "named mixture": shares, "named minus_input": shares}
        return {
            "objective": objective,
            "condition": condition,
            "seed": seed,
            "input": scores,
            "mixture": scores,
            **named,
        }

    rows = [row(*key) for key in difference_captioning.plan(Path("runs"), 2, 10)]
    alone, mixtures, conditions = difference_captioning.tables(rows).values()
    assert "| CIDEr | 0.050 (0.071) |" in alone and alone.splitlines()[0].count("|") == 6
    assert "| names the added event, % | 5.0 (0.0) |" in mixtures and "METEOR" not in mixtures
    assert conditions.splitlines()[0] == "| | same/same | same/diff | diff/diff | multi/same | multi/diff |"
