"""Without a GPU, the Triton cases of all tests run in Triton's interpreter, in processes of their own.

The interpreter has to be selected before triton is imported, and other tests need the compiler.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.triton_cases import RUNS_HERE

TESTS = Path(__file__).parents[1]
# The files in tests/ of each process, and the smallest number of cases that must pass.
LEAST = {
    "kernels/test_normalize_triton.py": 9,
    "kernels/test_cross_attention_triton.py": 30,
    "kernels/test_max_mean_triton.py kernels/test_launch_triton.py": 43,
    "kernels/test_packing_triton.py kernels/test_info_nce_triton.py": 78,
    "kernels/test_sigmoid_triton.py": 35,
    "ops/test_cross_attention.py ops/test_cross_attention_op.py nn/test_difference_blocks.py": 40,
    "ops/test_info_nce.py ops/test_info_nce_backends.py ops/test_info_nce_op.py ops/test_max_mean.py": 32,
    "ops/test_max_mean_varlen.py ops/test_max_mean_save_index.py ops/test_max_mean_chunked.py "
    "ops/test_max_mean_one_token.py ops/test_aligned_skip_below.py ops/test_custom_op.py": 12,
    "ops/test_sigmoid.py ops/test_self_check.py ops/test_self_check_problems.py ops/test_cuda_graphs.py": 31,
}
QUICK = "kernels/test_normalize_triton.py"
SLOW = "kernels/test_max_mean_triton.py kernels/test_launch_triton.py"


def mark(name):
    """The public ops call kernels that the other processes test too, and compiled kernels are executed elsewhere."""
    return () if name == QUICK else pytest.mark.slow if name == SLOW else pytest.mark.exhaustive


CASES = [pytest.param(name, marks=mark(name)) for name in LEAST]


def test_every_file_with_triton_cases_has_a_process():
    files = {f"kernels/{path.name}" for path in TESTS.glob("kernels/test_*_triton.py")}
    files |= {f"ops/{path.name}" for path in TESTS.glob("ops/test_*.py")}
    assert files <= set(" ".join(LEAST).split())


@pytest.mark.skipif(RUNS_HERE, reason="the cases run in this process")
@pytest.mark.parametrize("name", CASES)
def test_cases_pass(name):
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-m", "pytest", "-m", "triton", "-p", "no:cacheprovider", "-p", "no:warnings"]
    command += [str(TESTS / part) for part in name.split()]
    # Padding repeats a token and must tie with it, but OpenBLAS kernels for AVX2 round equal columns differently.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OPENBLAS_CORETYPE": "Sandybridge"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    passed = re.search(r"(\d+) passed", run.stdout)
    assert run.returncode == 0 and passed and int(passed[1]) >= LEAST[name], f"\n{run.stdout}\n{run.stderr}"
