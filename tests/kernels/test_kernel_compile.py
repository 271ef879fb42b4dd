"""Kinds of Triton kernel configurations compiled for GPUs that are not there: no spills, matrix instructions."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from atk.kernels.compile import (
    ATTENTION_KERNELS,
    INFO_NCE_KERNELS,
    MATRIX_KERNELS,
    SMALL_KERNELS,
    Case,
    Row,
    compile_report,
    format_table,
)
from atk.kernels.compile_cases import DTYPES, every_case, representative_cases
from atk.kernels.launch import Device, cross_attention_launch

BF16, FP32 = torch.bfloat16, torch.float32
HOPPER = Device((9, 0), 132)
# Captions in tiles, in chunks; stationary, streamed; rows not aligned; winners kept or not; each way of calling.
# Heads of 64, of 256 and of 20 channels (padded, not aligned), with a mask and without.
# InfoNCE in both directions, and of rows only.
# `atk kernels` compiles all of every_case().
CASES = [
    *(Case(kernel, BF16) for kernel in MATRIX_KERNELS),
    *(Case(kernel, FP32) for kernel in MATRIX_KERNELS),
    Case("forward", BF16, 8, 768),
    Case("forward", BF16, 128, chunked=True, index=2),
    Case("forward", torch.float16, index=0),
    Case("grad_audio", BF16, 128, 100, sparse=True),
    Case("grad_text", BF16, 128, pairs=True, several=False),
    *(Case(kernel, BF16, 0, 768, heads=12) for kernel in ATTENTION_KERNELS),
    *(Case(kernel, FP32, 0, 768, heads=12) for kernel in ("attend", "grad_key")),
    *(Case(kernel, BF16, 0, 1024, heads=4, masks=False) for kernel in ("grad_query", "grad_key")),
    *(Case(kernel, torch.float16, 0, 40, heads=2) for kernel in ("attend", "gate")),
    *(Case(kernel, dtype, 0, 512) for kernel in INFO_NCE_KERNELS for dtype in (BF16, FP32)),
    *(Case(kernel, torch.float16, 0, 32, columns=False) for kernel in INFO_NCE_KERNELS),
]
SMALL_CASES = [Case(name, BF16, D=100) for names in SMALL_KERNELS.values() for name in names]
PRODUCTS = (*MATRIX_KERNELS, *ATTENTION_KERNELS, *INFO_NCE_KERNELS)
# The numbers of sm_80, which has 163 KiB, serve sm_86, sm_89 and sm_120 too.
SHARED_MEMORY = {"sm_80": 99 * 1024, "sm_90": 227 * 1024}


@pytest.mark.parametrize("arch", SHARED_MEMORY)
def test_kernels_compile_without_spills_and_use_the_matrix_units(arch, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # compile, whatever an earlier run left behind
    cases = CASES + SMALL_CASES * (arch == "sm_80")
    rows = compile_report(arch, cases, workers=2)
    table = format_table(rows)
    assert {row.kernel for row in rows} == {case.kernel for case in cases}, table
    assert all(row.registers > 0 for row in rows), table
    assert not any(row.spills for row in rows), table
    assert all(row.shared <= SHARED_MEMORY[arch] for row in rows), table
    # Every half-precision tile has 64 rows or more, as a warpgroup instruction needs; fp32 must never become TF32.
    wanted, unwanted = ("hgmma", "hmma") if arch == "sm_90" else ("hmma", "hgmma")
    for row in rows:
        half = row.dtype != "float32" and row.kernel in PRODUCTS
        assert (getattr(row, wanted) > 0) == half and getattr(row, unwanted) == 0, table


def test_frames_arrive_by_asynchronous_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from atk.kernels.compile import _arguments
    from atk.kernels.max_mean_kernels import forward_kernel

    signature, constants, attributes, options = _arguments(Case("forward", BF16), (9, 0))
    del signature["kernel"]
    source = ASTSource(forward_kernel, signature, constants, attributes)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    loop = ptx[ptx.rindex("wgmma.mma_async") :]  # what follows the last product is the loop's end
    assert "cp.async.cg.shared.global" in loop.split("\n$L__BB")[0] and "st.local" not in ptx


def test_cases_of_equal_code_are_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cases = [Case("grad_text", FP32, D=D, masks=masks) for D in (128, 256) for masks in (True, False)]
    (row,) = compile_report("sm_90", cases)
    assert (row.kernel, row.tokens, row.D) == ("grad_text", 32, 128)


def test_every_case_holds_the_representative_ones_all_types_of_winners_and_all_launches():
    every = set(every_case())
    assert set(representative_cases()) <= every | {replace(case, several=False) for case in every}
    launches = {case.kernel: set() for case in every if case.kernel in ATTENTION_KERNELS}
    for case in every:
        if case.kernel in launches:
            launches[case.kernel].add(cross_attention_launch(case.kernel, case.dtype, case.D, case.heads, HOPPER))
    for kernel, found in launches.items():
        assert {cross_attention_launch(kernel, dtype, D, 1, HOPPER) for dtype in DTYPES for D in range(1, 257)} <= found
    for kernel in INFO_NCE_KERNELS:
        found = {(case.dtype, case.columns) for case in every if case.kernel == kernel}
        assert found == {(dtype, columns) for dtype in DTYPES for columns in (True, False)}
    for kernel in MATRIX_KERNELS:
        for pairs in (False, True):
            sizes = {case.index for case in every if case.kernel == kernel and case.pairs == pairs}
            assert sizes == ({0, 1, 2, 4} if kernel == "forward" else {1, 2, 4})


def test_unknown_architectures_are_refused():
    with pytest.raises(ValueError, match=r"arch must be .*'sm_90', got 'hopper'"):
        compile_report("hopper", [])


def test_table_is_aligned():
    row = Row("forward", "bfloat16", 32, 128, "64x4x32x128", 200, 0, 80000, 8, 0)
    head, line = format_table([row]).splitlines()
    assert head.split()[:4] == ["kernel", "dtype", "tokens", "D"]
    assert head.index("registers") == line.index("200")
