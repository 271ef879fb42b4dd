"""`benchmarks/gpu.sh` as a dry run with stand-ins for the CUDA tools: every step, the tables, and failing steps."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gpu_kit
from atk.bench import command, sizes
from atk.ops.backend import BACKENDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kit is for Linux")
ROOT = Path(__file__).parents[2]
PATH = "/usr/local/bin:/usr/bin:/bin"
STEPS = (
    "doctor", "check", "tests", "bench_ops", "profile", "clocks", "calls", "memcheck", "racecheck", "tune", "ncu",
    "bench_train_step", "bench_aligned_info_nce",
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
case "$*" in *--collect-only*) echo tests/test_a.py::test_b ;; esac
for word; do printf '%s\\0' "$word"; done >>"$RECORD"
printf '\\n\\0' >>"$RECORD"
"""
FAILING_TESTS = """#!/bin/sh
[ "$2" = pytest ] || exit 0
case "$*" in *--collect-only*) printf 'tests/test_a.py::%s\\n' 'test_b[0]' 'test_b[a case]' test_c; exit ;; esac
for word; do case $word in *::*) id=$word; esac; done
case $id in
  *test_c) echo "$id PASSED [ 50%]" ;;
  *) echo "$id FAILED [ 50%]"; echo 'assert 1 == 2'; echo "FAILED $id - assert 1 == 2"; exit 1 ;;
esac
"""


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def run_kit(out, **environment):
    """Run the kit from another folder; return its exit code, standard output, and standard error."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PEERS", "BUDGET")}
    kept |= {"DRY_RUN": "1", "PATH": PATH, "CUDA_HOME": str(out.parent), "OMP_NUM_THREADS": "1"}
    arguments = [str(ROOT / "benchmarks" / "gpu.sh"), str(out)]
    run = subprocess.run(arguments, env=kept | environment, cwd=out.parent, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout, run.stderr


def steps_of(summary):
    """`{step: status}` from the table, in order."""
    return dict(re.findall(r"^\| (\w+) \| ([^|]+) \| \d* \|$", summary, re.MULTILINE))


@pytest.mark.exhaustive
def test_a_dry_run_takes_every_step_and_reports_the_one_that_fails(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("compute-sanitizer", SANITIZER), ("ncu", NCU), ("nproc", "#!/bin/sh\necho 1\n")):
        executable(tools / name, text)
    out = tmp_path / "a user's folder"
    code, printed, error = run_kit(out, PATH=f"{tools}:{PATH}", PYTHON=sys.executable)
    summary = (out / "summary.md").read_text()
    states = steps_of(summary)
    assert states.pop("racecheck") == "FAILED (9), see racecheck.log", summary
    assert states == dict.fromkeys((name for name in STEPS if name != "racecheck"), "done"), printed + error
    assert tuple(steps_of(printed)) == STEPS and code == 1

    first, ratios, counters, send, tests, *_ = re.split(r"^## ", summary, flags=re.MULTILINE)
    assert all(f"\n- {fact}: " in first for fact in ("commit", "python", "torch", "triton", "gpu", "CUDA of torch"))
    assert (
        "matmul" in ratios
        and len(re.findall(r"^\| \w+ \w*step, tiny .*\| atk triton.*\d \|", ratios, re.MULTILINE)) >= 4
    )
    assert "| max_mean_similarity forward, tiny (5 x 6 x 9 x 6 x 8), float32 | atk triton | " in ratios
    assert "| forward_kernel | 8.5 us |  |  |  |  | 168 register/thread |" in counters
    assert "tar czf" in send and "s\\ folder" in send
    counts = {name: int(count) for count, name in re.findall(r"^ *(\d+) (test_\w+.py): PASSED$", tests, re.MULTILINE)}
    assert set(counts) == {"test_normalize_triton.py", "test_info_nce_op.py"}
    assert f"\n{sum(counts.values())} tests in " in tests
    for heading in ("check", "clocks", "memcheck", "racecheck", "tune", "profile", "bench_ops", "bench_train_step"):
        assert f"\n## {heading}\n" in summary
    for op in gpu_kit.STEPS:
        assert f"\n### {op}, tiny: " in summary and f"\n## {op}\n" in summary

    memcheck = (out / "memcheck.log").read_text()
    assert memcheck.startswith("--tool memcheck --launch-timeout 60 --error-exitcode 9")
    assert "gpu_kit.py calls --device cpu" in memcheck
    names = re.search(r"regex:\^\((\S+)\)\$ ", (out / "ncu.log").read_text())[1].split("|")
    assert len(names) == 3 and "atk::max_mean_backward" in names
    assert f"--metrics {','.join(gpu_kit.METRICS)} " in (out / "ncu.log").read_text()
    assert json.loads((out / "launch_table.json").read_text())
    assert sum(path.stat().st_size for path in out.iterdir()) < 1 << 20
    assert all(path.is_file() for path in out.iterdir())
    assert f"Send {out} (" in printed


def test_the_summary_is_written_even_if_nothing_works(tmp_path):
    out = tmp_path / "out"
    code, *_ = run_kit(out, PYTHON="false")
    summary = (out / "summary.md").read_text()
    states = steps_of(summary)
    assert tuple(states) == STEPS and code == 1
    for name in ("memcheck", "racecheck"):
        if shutil.which("compute-sanitizer", path=PATH) is None:
            assert states[name] == "not installed: compute-sanitizer"
    assert states["ncu"] in ("not installed: ncu", "not run: no kernel in the profile")
    for name in ("doctor", "check", "tests", "bench_ops", "profile", "clocks", "calls", "tune", "bench_train_step"):
        assert states[name] == f"FAILED (1), see {name}.log"
    assert "- versions: unknown" in summary and "false failed" in summary and "## What to send" in summary


def test_steps_that_run_out_of_time_are_listed(tmp_path):
    out = tmp_path / "out"
    code, *_ = run_kit(out, PYTHON="false", BUDGET="0")
    states = steps_of((out / "summary.md").read_text())
    not_run = {name for name, state in states.items() if state == "not run: out of time"}
    assert code == 0 and not_run >= {"doctor", "tests", "bench_ops", "profile", "calls", "tune", "bench_train_step"}
    assert run_kit(out, PYTHON="false", BUDGET="0")[0] == 0  # the folder of an earlier run


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.log").write_text("mine")
    code, _, error = run_kit(tmp_path)
    assert code == 2 and error.startswith("OUT must be an empty folder") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.log"]
    code, _, error = run_kit(tmp_path / "out", PYTHON="no-such-python")
    assert code == 2 and error.startswith("PYTHON must be a Python interpreter, got no-such-python")


@pytest.mark.slow
def test_without_a_gpu_the_kit_stops_immediately(tmp_path):
    out = tmp_path / "out"
    code, _, error = run_kit(out, PYTHON=sys.executable, DRY_RUN="", CUDA_VISIBLE_DEVICES="")
    assert code == 2 and error.startswith("gpu.sh needs a CUDA GPU, and torch sees none") and error.count("\n") == 1
    assert not list(out.iterdir())


def files_with_triton_cases(files):
    """The files in which `-m triton` selects a test."""
    command_line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-m", "triton"]
    command_line += map(str, files)
    interpreted = os.environ | {"TRITON_INTERPRET": "1"}  # some files list only the backends that can run
    collected = subprocess.run(command_line, cwd=ROOT, env=interpreted, capture_output=True, text=True, check=True)
    return {ROOT / name for name in re.findall(r"^(tests/\S+\.py)::", collected.stdout, re.MULTILINE)}


@pytest.mark.slow
def test_the_commands_for_a_gpu_are_valid(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    record = tmp_path / "record"
    executable(tmp_path / "python", RECORDER)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one.whl").touch()
    paths = {"PYTHON": "./python", "PEERS": "wheels", "RECORD": str(record)}
    assert run_kit(tmp_path / "out", DRY_RUN="", **paths)[0] == 0
    commands = [words.strip("\0").split("\0") for words in record.read_text().split("\n\0") if words]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    timed = [parser.parse_args(words[2:]) for words in commands if words[:2] == ["-m", "atk.bench"]]
    assert [op for options in timed for op in options.ops][:2] == ["max_mean_similarity"] * 2 and len(timed) == 10
    without_kernels = {op for op, backends in BACKENDS.items() if "triton" not in backends}
    assert {op for options in timed for op in options.ops} == set(command.OPS) - without_kernels
    for options in timed:
        command._check_providers(options.providers)
        planned = {plan.size for plan in command._plans(options, "cuda")}
        assert planned == set(options.sizes) and options.device == "cuda" and "bfloat16" in options.dtypes
    collected, *parts = (words for words in commands if words[1] == "pytest")
    tested = {Path(word) for word in collected if word.endswith(".py")}
    assert [words[-1] for words in parts] == [f"{ROOT}/tests/test_a.py::test_b"]
    assert len(tested) > 8 and files_with_triton_cases(tested) == tested
    kit = [words[1:] for words in commands if words[0].startswith(str(ROOT / "benchmarks" / "gpu_"))]
    assert {"machine", "check", "profile", "clocks", "calls", "page"} == {words[0] for words in kit}
    assert all(words[-2:] == ["--device", "cuda"] for words in kit if words[0] not in ("check", "page"))
    assert [words[-1] for words in commands if words[1] == "pip"] == [str(tmp_path / "wheels" / "one.whl")]
    (tune,) = (words[1] for words in commands if "tune" in words[1])
    compile(tune, "tune", "exec")
    for op, (size, mode) in gpu_kit.STEPS.items():
        assert size in sizes.NAMED[op] and mode in command._module(op).MODES


def test_the_summary_counts_the_tests_of_each_file_and_lists_failures(tmp_path):
    nproc = executable(tmp_path / "nproc", "#!/bin/sh\necho 3\n")
    python = executable(tmp_path / "python", FAILING_TESTS)
    assert run_kit(tmp_path / "out", PYTHON=python, PATH=f"{Path(nproc).parent}:{PATH}")[0] == 1
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert steps_of(summary)["tests"] == "FAILED (1), see tests.log"
    tests = summary.partition("## Tests\n\n```\n")[2].partition("\n```")[0].split("\n")
    assert tests[0] == "3 tests in 3 parts"
    assert [line.split() for line in tests[1:3]] == [["2", "test_a.py:", "FAILED"], ["1", "test_a.py:", "PASSED"]]
    ids = (f"{ROOT}/tests/test_a.py::{name}" for name in ("test_b[0]", "test_b[a case]"))
    assert tests[3:] == [f"FAILED {name} - assert 1 == 2" for name in ids]
    assert "\nassert 1 == 2\n" in (tmp_path / "out" / "tests.log").read_text()


def test_steps_inherit_the_python_path_but_no_settings_of_triton_or_atk(tmp_path):
    check = '[ -z "$TRITON_INTERPRET$ATK_LAUNCH_TABLE$ATK_BACKEND" ] || exit 1\n'
    check += f"case $PYTHONPATH in *:{tmp_path}/mine) ;; *) exit 1 ;; esac\n"
    settings = {"TRITON_INTERPRET": "1", "ATK_LAUNCH_TABLE": "mine.json", "ATK_BACKEND": "cpp"}
    python = executable(tmp_path / "python", f"#!/bin/sh\n{check}")
    executable(tmp_path / "nvidia-smi", "#!/bin/sh\necho 580.1\necho 580.1\n")
    settings |= {"PYTHONPATH": f"{tmp_path}/mine", "PATH": f"{tmp_path}:{PATH}"}
    assert run_kit(tmp_path / "out", DRY_RUN="", PYTHON=python, **settings)[0] == 0
    first, *_ = (tmp_path / "out" / "summary.md").read_text().split("\n| step")
    assert re.fullmatch(r"# GPU kit\n\n- commit: \S+\n- driver: 580\.1\n", first)


def test_missing_libraries_of_the_model_are_not_a_failure(tmp_path):
    python = executable(tmp_path / "python", "#!/bin/sh\ncase $2 in *find_spec*) echo torchaudio ;; esac\n")
    code, printed, _ = run_kit(tmp_path / "out", PYTHON=python)
    assert code == 0 and steps_of(printed)["bench_train_step"] == "not installed: torchaudio"
