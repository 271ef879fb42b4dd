"""Every kind of Triton kernel configuration compiled for GPUs that are not there: no spills, matrix instructions."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from atk.kernels.compile import Case, Row, compile_report, format_table

KERNELS = ("forward", "grad_audio", "grad_text")
# Classes of captions and of channels: one chunk, several; captions stationary, both streamed; rows not aligned.
# `atk kernels` compiles more: all of representative_cases().
CASES = [
    *(Case(kernel, torch.bfloat16, L_t, 128) for kernel in KERNELS for L_t in (8, 32)),
    *(Case("forward", torch.bfloat16, L_t, D) for L_t, D in ((32, 256), (8, 768), (300, 128), (32, 100))),
    *(Case(kernel, torch.bfloat16, 128, 100) for kernel in KERNELS[1:]),
    *(Case(kernel, torch.float32, 32, 128) for kernel in KERNELS),
    Case("forward", torch.float32, 32, 128, masks=False),
    Case("forward", torch.float16, 32, 128, index=False),
]
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_kernels_compile_without_spills_and_use_the_matrix_units(arch, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # compile, whatever an earlier run left behind
    rows = compile_report(arch, CASES, workers=2)
    table = format_table(rows)
    assert {(row.kernel, row.dtype) for row in rows} == {(c.kernel, str(c.dtype)[len("torch.") :]) for c in CASES}, (
        table
    )
    assert all(row.registers > 0 for row in rows), table
    assert not any(row.spills for row in rows), table
    assert all(row.shared <= SHARED_MEMORY[arch] for row in rows), table
    # Every half-precision tile has 64 rows or more, as a warpgroup instruction needs; fp32 must never become TF32.
    wanted, unwanted = ("hgmma", "hmma") if arch == "sm_90" else ("hmma", "hgmma")
    for row in rows:
        half = row.dtype != "float32"
        assert (getattr(row, wanted) > 0) == half and getattr(row, unwanted) == 0, table


def test_cases_of_equal_code_are_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cases = [Case("grad_text", torch.float32, L_t, D) for L_t in (20, 32) for D in (128, 256)]
    (row,) = compile_report("sm_90", cases)
    assert (row.kernel, row.L_t, row.D) == ("grad_text", 20, 128)


def test_unknown_architectures_are_refused():
    with pytest.raises(ValueError, match=r"arch must be .*'sm_90', got 'hopper'"):
        compile_report("hopper")


def test_table_is_aligned():
    row = Row("forward", "bfloat16", 32, 128, "64x4x32x128", 200, 0, 80000, 8, 0)
    head, line = format_table([row]).splitlines()
    assert head.split()[:4] == ["kernel", "dtype", "L_t", "D"]
    assert head.index("registers") == line.index("200")
