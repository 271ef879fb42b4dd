"""`benchmarks/gpu.sh` as a dry run, with stand-ins for the tools of CUDA: each step, the tables, steps that fail."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import gpu_kit
from atk.bench import command, sizes
from atk.bench.measure import Row
from atk.bench.report import Table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kit is for Linux")
ROOT = Path(__file__).parents[1]
PATH = "/usr/local/bin:/usr/bin:/bin"
STEPS = (
    "doctor", "tests", "bench_ops", "profile", "calls", "memcheck", "racecheck", "tune", "ncu", "bench_train",
)  # fmt: skip
SANITIZER = """#!/bin/sh
echo "$*"
case "$*" in *racecheck*) echo "========= RACECHECK SUMMARY: 1 hazard displayed"; exit 9 ;; esac
echo "========= ERROR SUMMARY: 0 errors"
"""
NCU = """#!/bin/sh
echo "$*"
while [ "$1" != --log-file ]; do shift; done
cat >"$2" <<END
==PROF== Connected to process 7
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","python","h","forward_kernel","1","7","(128,1,1)","(9,1,1)","0","9.0","s","gpu__time_duration.sum","us","9"
"1","7","python","h","forward_kernel","1","7","(128,1,1)","(9,1,1)","0","9.0","s","gpu__time_duration.sum","us","8.5"
"1","7","python","h","forward_kernel","1","7","(128,1,1)","(9,1,1)","0","9.0","s","launch__registers_per_thread",\
"register/thread","168"
END
"""


RECORDER = """#!/bin/sh
for word; do printf '%s\\0' "$word"; done >>"$RECORD"
printf '\\n\\0' >>"$RECORD"
"""


def run_kit(out, **environment):
    """Exit code, standard output and error; the command is called from another folder."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PEERS", "BUDGET")}
    environment = (
        kept | {"DRY_RUN": "1", "PATH": PATH, "CUDA_HOME": str(out.parent), "OMP_NUM_THREADS": "1"} | environment
    )
    arguments = [str(ROOT / "benchmarks" / "gpu.sh"), str(out)]
    run = subprocess.run(arguments, env=environment, cwd=out.parent, capture_output=True, text=True)
    return run.returncode, run.stdout, run.stderr


def steps_of(summary):
    """{step: status} of the table, in order."""
    return dict(re.findall(r"^\| (\w+) \| ([^|]+) \| \d* \|$", summary, re.MULTILINE))


def test_a_dry_run_takes_every_step_and_reports_the_one_that_fails(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("compute-sanitizer", SANITIZER), ("ncu", NCU)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    out = tmp_path / "a reader's folder"
    code, printed, error = run_kit(out, PATH=f"{tools}:{PATH}", PYTHON=sys.executable)
    summary = (out / "summary.md").read_text()
    states = steps_of(summary)
    assert states.pop("racecheck") == "FAILED (9), see racecheck.log", summary
    assert states == dict.fromkeys((name for name in STEPS if name != "racecheck"), "done"), printed + error
    assert tuple(steps_of(printed)) == STEPS and code == 1

    first, ratios, counters, send, tests, *_ = re.split(r"^## ", summary, flags=re.MULTILINE)
    assert all(f"\n- {fact}: " in first for fact in ("commit", "python", "torch", "triton", "gpu", "CUDA of torch"))
    assert "matmul" in ratios and len(re.findall(r"^\| \w+ \w*step, tiny .*\| atk triton.*\d \|", ratios, re.M)) >= 4
    assert "| max_mean_similarity forward, tiny (5 x 6 x 9 x 6 x 8), float32 | atk triton | " in ratios
    assert "| forward_kernel | 8.5 us |  |  |  |  | 168 register/thread |" in counters
    assert "tar czf" in send and "s\\ folder" in send
    assert re.search(r"test_normalize_triton.py: \d+ passed", tests) and "test_info_nce_op.py: " in tests
    for heading in ("memcheck", "racecheck", "tune", "profile", "bench_ops", "bench_train"):
        assert f"\n## {heading}\n" in summary
    for op in gpu_kit.STEPS:
        assert f"\n### {op}, tiny: " in summary and f"\n## {op}\n" in summary

    memcheck = (out / "memcheck.log").read_text()
    assert memcheck.startswith("--tool memcheck --error-exitcode 9") and "gpu_kit.py calls --device cpu" in memcheck
    names = re.search(r"regex:\^\((\S+)\)\$ ", (out / "ncu.log").read_text())[1].split("|")
    assert len(names) == 3 and "atk::max_mean_backward" in names
    assert f"--metrics {','.join(gpu_kit.METRICS)} " in (out / "ncu.log").read_text()
    assert json.loads((out / "launch_table.json").read_text())
    assert sum(path.stat().st_size for path in out.iterdir()) < 1 << 20 and all(
        path.is_file() for path in out.iterdir()
    )
    assert f"Send {out} (" in printed


def test_nothing_works_and_the_summary_says_so(tmp_path):
    out = tmp_path / "out"
    code, *_ = run_kit(out, PYTHON="false")
    summary = (out / "summary.md").read_text()
    states = steps_of(summary)
    assert tuple(states) == STEPS and code == 1
    for name in ("memcheck", "racecheck"):
        if shutil.which("compute-sanitizer", path=PATH) is None:
            assert states[name] == "not here: compute-sanitizer"
    assert states["ncu"] in ("not here: ncu", "not run: the profile names no kernel")
    for name in ("doctor", "tests", "bench_ops", "profile", "calls", "tune", "bench_train"):
        assert states[name] == f"FAILED ({123 if name == 'tests' else 1}), see {name}.log"
    assert "- versions: unknown" in summary and "false failed" in summary and "## What to send" in summary


def test_what_has_no_time_left_is_named(tmp_path):
    out = tmp_path / "out"
    code, *_ = run_kit(out, PYTHON="false", BUDGET="0")
    states = steps_of((out / "summary.md").read_text())
    late = {name for name, state in states.items() if state == "not run: out of time"}
    assert code == 0 and late >= {"doctor", "tests", "bench_ops", "profile", "calls", "tune", "bench_train"}
    assert run_kit(out, PYTHON="false", BUDGET="0")[0] == 0  # a folder of its own is used again


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.log").write_text("mine")
    code, _, error = run_kit(tmp_path)
    assert code == 2 and error.startswith("OUT must be an empty folder") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.log"]
    code, _, error = run_kit(tmp_path / "out", PYTHON="no-such-python")
    assert code == 2 and error.startswith("PYTHON must be a Python interpreter, got no-such-python")


def test_without_a_gpu_it_stops_at_once(tmp_path):
    out = tmp_path / "out"
    code, _, error = run_kit(out, PYTHON=sys.executable, DRY_RUN="", CUDA_VISIBLE_DEVICES="")
    assert code == 2 and error.startswith("gpu.sh needs a CUDA GPU, and torch sees none") and error.count("\n") == 1
    assert not list(out.iterdir())


def test_what_runs_on_a_gpu_is_there(tmp_path):
    recorder, record = tmp_path / "python", tmp_path / "record"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one.whl").touch()
    paths = {"PYTHON": "./python", "PEERS": "wheels", "RECORD": str(record)}
    assert run_kit(tmp_path / "out", DRY_RUN="", **paths)[0] == 0
    commands = [words.strip("\0").split("\0") for words in record.read_text().split("\n\0") if words]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    timed = [parser.parse_args(words[2:]) for words in commands if words[:2] == ["-m", "atk.bench"]]
    assert [op for options in timed for op in options.ops][:2] == ["max_mean_similarity"] * 2 and len(timed) == 9
    assert {op for options in timed for op in options.ops} == set(command.OPS)
    for options in timed:
        command._check_providers(options.providers)
        planned = {plan.size for plan in command._plans(options, "cuda")}
        assert planned == set(options.sizes) and options.device == "cuda" and "bfloat16" in options.dtypes
    tested = {Path(words[-1]) for words in commands if words[1] == "pytest"}
    assert len(tested) > 8 and all(path.is_file() and "triton" in path.read_text() for path in tested)
    kit = [words[1:] for words in commands if words[0] == str(ROOT / "benchmarks" / "gpu_kit.py")]
    assert {"machine", "profile", "calls", "page"} == {words[0] for words in kit}
    assert all(words[-2:] == ["--device", "cuda"] for words in kit if words[0] != "page")
    assert [words[-1] for words in commands if words[1] == "pip"] == [str(tmp_path / "wheels" / "one.whl")]
    (tune,) = (words[1] for words in commands if "tune" in words[1])
    compile(tune, "tune", "exec")
    for op, (size, kind) in gpu_kit.STEPS.items():
        assert size in sizes.NAMED[op] and kind in command._module(op).KINDS


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
modules = [importlib.import_module(f"atk.kernels.{each.name}") for each in pkgutil.iter_modules(atk.kernels.__path__)]
kernels = {name for module in modules for name, value in vars(module).items() if isinstance(value, InterpretedFunction)}
kernels = {name for name in kernels if name.endswith("_kernel")}
assert len(kernels) > 15 and kernels == called, kernels ^ called
"""
    path = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_ratios_name_what_has_no_time(tmp_path):
    rows = [
        Row("naive einsum", "out of memory", "not tried"),
        Row("flash-maxsim", "missing", "no module"),
        Row("other", median_ms=6.0),
        Row("atk reference", median_ms=1.0),
        Row("atk triton", median_ms=2.0, of_limit=0.5),
        Row("limit", note="8192 x 8192 matmul 700 GFLOP/s, copy 9.0 GB/s; bound by matmul", median_ms=1.0),
    ]
    broken = [Row("naive einsum", median_ms=1.0), Row("atk triton", "wrong", "error above 0.1"), rows[-1]]
    tables = [Table("t", "op", "wide", "step", "bfloat16", {"clips": 3}, each) for each in (rows, broken)]
    (tmp_path / "bench_x.json").write_text(json.dumps({"tables": [asdict(table) for table in tables]}))
    lines = gpu_kit.ratios(tmp_path).splitlines()
    assert lines[0] == "Rates of this machine: 8192 x 8192 matmul 700 GFLOP/s, copy 9.0 GB/s."
    case = "| op step, wide (3), bfloat16 |"
    assert lines[-2] == f"{case} atk triton | 2.000 | naive einsum: out of memory; other 3x | 0.50 (matmul) |"
    assert lines[-1] == f"{case} none ran: atk triton: wrong | | | |"
    assert gpu_kit.ratios(tmp_path / "none") == "Nothing was timed."
