"""`benchmarks/gpu_kit.py`: profile, small calls, counters, and ratios."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import gpu_kit
from atk.bench.measure import Row
from atk.bench.report import Table

ROOT = Path(__file__).parents[2]


def test_the_profile_continues_after_an_op_that_fails(tmp_path, monkeypatch):
    def step_of(op, tiny, device):
        if op == "info_nce":
            return lambda: torch.ones(2) + 1
        raise {"aligned_train_step": ImportError, "aligned_info_nce": RuntimeError}[op]("no such\nthing")

    monkeypatch.setattr(gpu_kit, "step_of", step_of)
    with pytest.raises(SystemExit, match="failed: aligned_info_nce"):
        gpu_kit.profile(["aligned_train_step", "aligned_info_nce", "info_nce"], True, torch.device("cpu"), tmp_path)
    page = (tmp_path / "profile.md").read_text()
    assert "### aligned_train_step, tiny: not available\n\nno such\nthing" in page
    assert "### aligned_info_nce, tiny: failed\n\nno such\n" in page
    assert re.search(r"### info_nce, tiny: \d+\.\d+ ms\n\n\| op .*\n.*\n(.*\n)*\| aten::add ", page)
    assert gpu_kit._table_of([], "kernel") == "no kernel was recorded"


def test_small_calls_continue_after_one_that_fails(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    called = []
    # Both stand-ins return None, so their backward fails.
    monkeypatch.setattr("atk.info_nce", lambda *inputs, **options: called.append("info_nce"))
    monkeypatch.setattr("atk.cross_attention_difference", lambda *inputs, **options: called.append("difference"))
    with pytest.raises(SystemExit, match=r"failed: (max_mean, )?global_losses, cross_attention"):
        gpu_kit.calls(torch.device("cpu"))
    assert called == ["info_nce", "difference"]


def test_counters_without_a_measurement_give_the_reason(tmp_path):
    reason = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access the counters."
    (tmp_path / "ncu.csv").write_text(f"==PROF== Connected to process 7\n{reason}\n==PROF== Disconnected\n")
    assert f"None was measured.\n{reason}\n" in gpu_kit.page(tmp_path)


@pytest.mark.exhaustive
def test_the_small_calls_reach_every_kernel():
    pytest.importorskip("triton", reason="triton is not installed")
    program = """
import importlib, pkgutil
import gpu_kit, torch
import atk.kernels
from triton.runtime.interpreter import InterpretedFunction
called, run = set(), InterpretedFunction.run
def recorded(self, *arguments, **options):
    called.add(self.fn.__name__)
    return run(self, *arguments, **options)
InterpretedFunction.run = recorded
gpu_kit.calls(torch.device("cpu"))
modules = [importlib.import_module(f"atk.kernels.{info.name}") for info in pkgutil.iter_modules(atk.kernels.__path__)]
kernels = {name for module in modules for name, value in vars(module).items() if isinstance(value, InterpretedFunction)}
kernels = {name for name in kernels if name.endswith("_kernel")}
assert len(kernels) > 15 and kernels == called, kernels ^ called
"""
    path = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    command_line = [sys.executable, "-c", program]
    run = subprocess.run(command_line, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_ratios_give_the_status_of_rows_without_a_time(tmp_path):
    rows = [
        Row("naive einsum", "out of memory", "not tried"),
        Row("flash-maxsim", "missing", "no module"),
        Row("other", median_ms=6.0),
        Row("atk reference", median_ms=1.0),
        Row("atk triton", median_ms=2.0, of_limit=0.5),
        Row("limit", note="8192 x 8192 matmul 700 GFLOP/s, copy 9.0 GB/s; bound by matmul", median_ms=1.0),
    ]
    broken = [Row("naive einsum", median_ms=1.0), Row("atk triton", "wrong", "error above 0.1"), rows[-1]]
    tables = [Table("t", "op", "wide", "step", "bfloat16", {"clips": 3}, lines) for lines in (rows, broken)]
    (tmp_path / "bench_x.json").write_text(json.dumps({"tables": [asdict(table) for table in tables]}))
    lines = gpu_kit.ratios(tmp_path).splitlines()
    assert lines[0] == "Rates of this machine: 8192 x 8192 matmul 700 GFLOP/s, copy 9.0 GB/s."
    case = "| op step, wide (3), bfloat16 |"
    assert lines[-2] == f"{case} atk triton | 2.000 | naive einsum: out of memory; other 3x | 0.50 (matmul) |"
    assert lines[-1] == f"{case} none ran: atk triton: wrong | | | |"
    assert gpu_kit.ratios(tmp_path / "none") == "Nothing was timed."
