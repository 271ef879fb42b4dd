"""Triton kernel configurations compiled without a GPU: no spills, and matrix instructions where expected."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from atk.kernels.compile import SHARED_MEMORY, Row, compile_case, compile_report, compile_usage, format_table
from atk.kernels.compile_cases import DTYPES, every_case, representative_cases
from atk.kernels.compile_signatures import (
    ATTENTION_KERNELS,
    INFO_NCE_KERNELS,
    MAX_MEAN_KERNELS,
    SIGMOID_KERNELS,
    SMALL_KERNELS,
    Case,
)
from atk.kernels.launch import Device, gathers_winners
from atk.kernels.launch_attention import cross_attention_launch
from atk.kernels.pipes import Clocks

BF16, FP32 = torch.bfloat16, torch.float32
HOPPER = Device((9, 0), 132)
# A selection; `atk kernels` compiles all of every_case(). Max-mean: captions in tiles and in chunks, stationary and
# streamed, unaligned rows, saved indices or not, every flag. Attention: heads of 64, 256 and 20 channels (padded and
# unaligned), with and without a mask. InfoNCE: both directions, and rows only. Sigmoid loss: with positives, and
# without.
CASES = [
    *(Case(kernel, BF16) for kernel in MAX_MEAN_KERNELS),
    *(Case(kernel, FP32) for kernel in MAX_MEAN_KERNELS),
    Case("forward", BF16, 8, 768),
    Case("forward", BF16, 128, chunked=True, index_bytes=2),
    Case("forward", torch.float16, index_bytes=0),
    Case("grad_audio", BF16, 128, 100, sparse=True),
    Case("grad_text", BF16, 128, pairs=True, accumulate=False),
    *(Case(kernel, BF16, 0, 768, heads=12) for kernel in ATTENTION_KERNELS),
    *(Case(kernel, FP32, 0, 768, heads=12) for kernel in ("attend", "grad_key")),
    *(Case(kernel, BF16, 0, 1024, heads=4, masks=False) for kernel in ("grad_query", "grad_key")),
    *(Case(kernel, torch.float16, 0, 40, heads=2) for kernel in ("attend", "gate")),
    *(Case(kernel, dtype, 0, 512) for kernel in INFO_NCE_KERNELS for dtype in (BF16, FP32)),
    *(Case(kernel, torch.float16, 0, 32, columns=False) for kernel in INFO_NCE_KERNELS),
    *(Case(kernel, BF16, 0, 512) for kernel in SIGMOID_KERNELS),
    *(Case("sigmoid_grad", dtype, 0, 32, positives=False) for dtype in (FP32, torch.float16)),
]
SMALL_CASES = [Case(name, BF16, D=100) for names in SMALL_KERNELS.values() for name in names]
PRODUCTS = (*MAX_MEAN_KERNELS, *ATTENTION_KERNELS, *INFO_NCE_KERNELS, *SIGMOID_KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "dtypes"),
    [
        ("sm_90", {BF16}),
        pytest.param("sm_90", {torch.float16, FP32}, marks=pytest.mark.exhaustive),
        pytest.param("sm_80", {BF16, torch.float16, FP32}, marks=pytest.mark.exhaustive),
    ],
)
def test_kernels_compile_without_spills_and_use_the_matrix_units(arch, dtypes, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # do not reuse kernels compiled earlier
    cases = [case for case in CASES + SMALL_CASES if case.dtype in dtypes]
    rows = compile_report(arch, cases, workers=2, progress=True)
    table = format_table(rows)
    assert {row.kernel for row in rows} == {case.kernel for case in cases}, table
    assert all(row.registers > 0 for row in rows), table
    assert not any(row.spills for row in rows), table
    # sm_86, sm_89, and sm_120 use the configurations of sm_80 and have less shared memory.
    limit = SHARED_MEMORY["sm_86" if arch == "sm_80" else arch]
    assert all(row.shared_bytes <= limit for row in rows), table
    # Half-precision tiles have at least the 64 rows of a warpgroup instruction. float32 must not become TF32.
    wanted, unwanted = ("hgmma", "hmma") if arch == "sm_90" else ("hmma", "hgmma")
    device = Device((int(arch[3]), 0), 1)
    for row in rows:
        gathers = row.kernel == "grad_audio" and gathers_winners(getattr(torch, row.dtype), row.tokens, device)
        multiplies = row.dtype != "float32" and row.kernel in PRODUCTS and not gathers
        assert (getattr(row, wanted) > 0) == multiplies and getattr(row, unwanted) == 0, table


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["forward", "grad_audio", "lse", "grad_logits", "sigmoid_grad"])
def test_kernels_that_reduce_a_product_to_a_scalar_compile_for_tensor_memory(kernel, tmp_path, monkeypatch):
    """Triton 3.6 and 3.7 fail on the reduction of a vector; see `scalars.py`."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = Case(kernel, BF16) if kernel in MAX_MEAN_KERNELS else Case(kernel, BF16, 0, 512)
    (row,) = compile_report("sm_100", [case])
    assert row.spills == 0 and row.shared_bytes <= SHARED_MEMORY["sm_100"] and row.ahead == 1, format_table([row])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "case"),
    [
        *((arch, Case("forward", BF16, 128)) for arch in ("sm_86", "sm_120")),
        ("sm_120", Case("grad_key", FP32, 0, 768, heads=12)),
        ("sm_100", Case("forward", FP32, 64)),
        ("sm_120", Case("forward", FP32, 8)),
        ("sm_120", Case("lse", FP32, 0, 512)),
        ("sm_120", Case("attend", FP32, 0, 768, heads=12, masks=False)),
    ],
)
def test_what_a_version_of_triton_once_spilled_or_did_not_fit(arch, case, tmp_path, monkeypatch):
    """`make triton` compiles with all versions; the launches that others need are in `test_launch_triton.py`."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    registers, spills, shared = compile_usage(case, (int(arch[3:-1]), int(arch[-1])))
    assert registers > 0 and spills == 0 and shared <= SHARED_MEMORY[arch]


@pytest.mark.slow
def test_usage_is_that_of_the_report(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = Case("grad_text", FP32)
    (row,) = compile_report("sm_80", [case])
    assert compile_usage(case, (8, 0)) == (row.registers, row.spills, row.shared_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", ["grad_logits", "sigmoid_grad"])
def test_gradients_of_logits_are_stored_16_bytes_at_a_time(kernel, arch, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    _, code = compile_case(Case(kernel, BF16, 0, 512), (int(arch[3]), 0))
    stores = [one.opcode for one in code.instructions if one.name == "STG" and one.opcode.endswith(".128")]
    assert len(stores) == 128 * 128 * 2 // (8 * 32 * 16)


def test_the_interpreter_compiles_nothing(monkeypatch):
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "interpret", True)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1 replaces the compiler with the interpreter; unset it"):
        compile_report("sm_90", [])


@pytest.mark.slow
def test_cases_with_the_same_code_are_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cases = [Case("grad_text", FP32, D=D, masks=masks) for D in (128, 256) for masks in (True, False)]
    (row,) = compile_report("sm_90", cases)
    assert (row.kernel, row.tokens, row.D) == ("grad_text", 32, 128)


def test_every_case_covers_the_representative_cases_all_index_types_and_all_launches():
    every = set(every_case())
    assert set(representative_cases()) <= every | {replace(case, accumulate=False) for case in every}
    launches = {case.kernel: set() for case in every if case.kernel in ATTENTION_KERNELS}
    for case in every:
        if case.kernel in launches:
            launches[case.kernel].add(cross_attention_launch(case.kernel, case.dtype, case.D, case.heads, HOPPER))
    for kernel, covered in launches.items():
        possible = {cross_attention_launch(kernel, dtype, D, 1, HOPPER) for dtype in DTYPES for D in range(1, 257)}
        assert possible <= covered
    for kernel in INFO_NCE_KERNELS:
        covered = {(case.dtype, case.columns) for case in every if case.kernel == kernel}
        assert covered == {(dtype, columns) for dtype in DTYPES for columns in (True, False)}
    for kernel in SIGMOID_KERNELS:
        covered = {(case.dtype, case.positives) for case in every if case.kernel == kernel}
        assert covered == {(dtype, positives) for dtype in DTYPES for positives in (True, False)}
    for kernel in MAX_MEAN_KERNELS:
        for pairs in (False, True):
            sizes = {case.index_bytes for case in every if case.kernel == kernel and case.pairs == pairs}
            assert sizes == ({0, 1, 2, 4} if kernel == "forward" else {1, 2, 4})


def test_unknown_architectures_are_rejected():
    with pytest.raises(ValueError, match=r"arch must be .*'sm_90', got 'hopper'"):
        compile_report("hopper", [])


def test_table_is_aligned_and_names_the_pipe_that_binds():
    row = Row("forward", "bfloat16", 32, 128, "64x4x32x128", 200, 0, 80000, 8, 0, 1, Clocks(512, 1, 2, 3, 700, 4, 5))
    head, line, unclocked = format_table([row, replace(row, ahead=None, clocks=None)]).splitlines()
    assert head.split()[:4] == ["kernel", "dtype", "tokens", "D"]
    assert head.index("registers") == line.index("200")
    assert head.split()[-9:] == ["ahead", "matrix", "fma", "alu", "special", "shared", "l2", "issue", "binds"]
    assert line.split()[-9:] == ["1", "512", "1", "2", "3", "700", "4", "5", "shared"]
    assert unclocked.split()[-9:] == ["-"] * 9


@pytest.mark.slow
def test_a_tile_has_the_products_of_all_channels(tmp_path, monkeypatch):
    """A tile of the forward has 128 x 128 scores, and takes D / 32 or D / 64 steps of a loop inside of another one."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cases = [Case("forward", BF16, 8, 768), Case("forward", BF16, 128, chunked=True)]
    rows = compile_report("sm_90", cases)
    assert [row.clocks.matrix for row in rows] == [128 * 128 * row.D // 2048 for row in rows]
