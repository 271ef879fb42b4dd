"""Memory-access and barrier faults are reported, in faulty kernels and in kernels whose PTX these tests break."""

import re

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support import ptx_kernels
from support.ptx_kernels import BOTH, LOCKSTEP, MODES, inserted, product, reduction, without
from support.triton_cases import needs_compiler

from ptx_machine import Deadlock, MachineError, active
from ptx_machine.global_access import CONFLICT
from ptx_machine.shadow import UNINITIALIZED

pytestmark = needs_compiler
BARRIER = r"bar\.sync\s+0;"


@BOTH
def test_out_of_bounds_reads(capability):
    message = r"out-of-bounds read of global memory: past_the_end_kernel, ptx_kernels.py:\d+, .*byte 256 of x"
    with pytest.raises(MachineError, match=message), active(capability):
        ptx_kernels.past_the_end_kernel[(1,)](torch.randn(64), torch.empty(64), SIZE=64)


@BOTH
def test_out_of_bounds_writes_and_an_index_off_by_one(capability):
    a, out = torch.randn(256), torch.empty(256)
    shift = r"\[ (%rd\d+) \+ 0 \], \{"
    with active(capability, strict=False, edit=lambda _, ptx: re.sub(shift, r"[ \1 + 4 ], {", ptx)) as machine:
        ptx_kernels.add_kernel[(2,)](a, a, out, 256, SIZE=128)
    assert "out-of-bounds write of global memory" in machine.report.names()


@BOTH
def test_writes_by_two_ctas(capability):
    with pytest.raises(MachineError, match="grid race: write to a byte that another CTA wrote"), active(capability):
        ptx_kernels.same_address_kernel[(2,)](torch.empty(1, dtype=torch.int32))


@BOTH
@pytest.mark.parametrize("seed", [0, 1])
def test_a_cta_that_reads_what_another_writes(capability, seed):
    with active(capability, seed, strict=False) as machine:
        ptx_kernels.neighbor_kernel[(2,)](torch.zeros(16, dtype=torch.int32))
    assert any(name.startswith("grid race") for name in machine.report.names())


@BOTH
@MODES
def test_missing_barriers_of_a_reduction(capability, mode):
    *_, machine = reduction(capability, **mode)
    barriers = len(re.findall(BARRIER, machine.ptx["reduce_kernel"]))
    assert barriers > 3
    detected = 0
    for index in range(barriers):
        *_, machine = reduction(capability, strict=False, edit=without(BARRIER, index), **mode)
        detected += any("race" in name or name == UNINITIALIZED for name in machine.report.names())
    # One of them is not needed: what is read before it and written after it does not overlap.
    assert detected >= barriers - 1


def test_missing_barriers_give_wrong_results():
    errors = []
    for seed in range(4):
        out, wanted, machine = product(
            torch.float16, (64, 64, 128), (64, 64, 32), True, 4, (8, 0), seed=seed, strict=False, edit=without(BARRIER)
        )
        assert any("race" in name for name in machine.report.names())
        errors.append(float((out - wanted).abs().nan_to_num(1e9).max()))
    assert max(errors) > 1


@LOCKSTEP
def test_exchange_through_global_memory_needs_a_barrier(lockstep):
    x, out = torch.randn(256), torch.empty(512)
    with active((9, 0), lockstep=lockstep):
        ptx_kernels.through_memory_kernel[(1,)](x, out, SIZE=256)
    assert torch.equal(out[256:], x.flip(0))
    with active((9, 0), lockstep=lockstep, strict=False, edit=without(BARRIER)) as machine:
        ptx_kernels.through_memory_kernel[(1,)](x, out, SIZE=256)
    assert any(name.startswith("global race") for name in machine.report.names())


@BOTH
def test_uninitialized_shared_memory(capability):
    *_, machine = reduction(capability, strict=False, edit=without(r"(@%p\d+ )?st\.shared\.b32 [^;]*;", 0))
    assert UNINITIALIZED in machine.report.names()


@BOTH
def test_out_of_bounds_and_misaligned_shared_memory(capability):
    for offset in (2, 65536):
        edit = inserted(f"st.shared.b32 [global_smem + {offset}], 0;", before=BARRIER)
        *_, machine = reduction(capability, strict=False, edit=edit)
        assert "misaligned or out-of-bounds access of shared memory" in machine.report.names()


@BOTH
def test_different_values_for_one_address(capability):
    with active(capability, strict=False) as machine:
        ptx_kernels.all_to_one_kernel[(1,)](torch.randn(128), torch.empty(1), SIZE=128)
    assert CONFLICT in machine.report.names()


def test_misaligned_global_memory():
    x, out = torch.randn(1024).half(), torch.empty(128, dtype=torch.float16)

    def misalign(_, ptx):
        return re.sub(r"ld\.global\.b16 \{ (%rs\d+) \}, \[ (%rd\d+) \+ 0 \]", r"ld.global.b16 { \1 }, [ \2 + 1 ]", ptx)

    with active((8, 0), strict=False, edit=misalign) as machine:
        ptx_kernels.strided_kernel[(1,)](x, out, 3, SIZE=128)
    assert "misaligned access of global memory" in machine.report.names()


@LOCKSTEP
def test_a_barrier_that_one_warp_does_not_reach(lockstep):
    def edit(name, ptx):
        leave = "{ .reg .pred %q; .reg .b32 %t; mov.u32 %t, %tid.x; setp.lt.u32 %q, %t, 32; @%q bra $L_left; }"
        ptx = inserted(leave, before=BARRIER)(name, ptx)
        end = ptx.rindex("ret;") + len("ret;")
        return f"{ptx[:end]}\n$L_left:\nret;\n{ptx[end:]}"

    with pytest.raises(Deadlock, match="1 warps have exited"):
        reduction((8, 0), edit=edit, lockstep=lockstep)
