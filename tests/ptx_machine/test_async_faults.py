"""Faults of cp.async and wgmma are reported."""

import re

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.ptx_kernels import BOTH, LOCKSTEP, hopper_product, inserted, product, without
from support.triton_cases import needs_compiler

from ptx_machine import wgmma
from ptx_machine.shadow import OVERWRITE_RACE, READ_TOO_EARLY

pytestmark = needs_compiler


@BOTH
@LOCKSTEP
def test_waiting_for_too_few_copies(capability, lockstep):
    def edit(_, ptx):
        return re.sub(r"(cp\.async\.wait_group\s+)(\d+)", lambda match: f"{match[1]}{int(match[2]) + 1}", ptx)

    arguments = torch.float16, (64, 64, 256), (64, 64, 32), True, 4, capability
    out, wanted, machine = product(*arguments, strict=False, edit=edit, lockstep=lockstep)
    assert READ_TOO_EARLY in machine.report.names()
    assert not (out - wanted).abs().max() < 1
    out, wanted, machine = product(*arguments, strict=False, edit=edit, lockstep=lockstep, eager=True)
    assert READ_TOO_EARLY in machine.report.names()
    assert (out - wanted).abs().max() < 1e-3  # copies that happen to be early hide the fault in the result


@pytest.mark.parametrize("index", [0, 1])
def test_a_missing_wait_for_wgmma(index):
    *_, machine = hopper_product(strict=False, edit=without(r"wgmma\.wait_group\.sync\.aligned \d+;", index))
    assert any("wgmma" in name for name in machine.report.names())


@LOCKSTEP
def test_writing_to_shared_memory_that_a_wgmma_reads(lockstep):
    store = "{ .reg .b32 %t; mov.b32 %t, global_smem; st.shared.b32 [%t], 0; }"
    edit = inserted(store, before=r"wgmma\.wait_group")
    *_, machine = hopper_product(strict=False, edit=edit, lockstep=lockstep)
    assert {wgmma.MEMORY_OVERWRITTEN, OVERWRITE_RACE} & machine.report.names()


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("mov.b32 {0}, 0;", wgmma.OVERWRITTEN_IN_FLIGHT),
        ("add.f32 {0}, {0}, {0};", wgmma.READ_IN_FLIGHT),
        ("mov.b32 {1}, {0};", wgmma.COPIED_IN_FLIGHT),
    ],
)
def test_touching_an_accumulator_in_flight(instruction, fault):
    def edit(name, ptx):
        accumulator = re.search(r"wgmma\.mma_async\S+ \{(%r\d+),", ptx)[1]
        ptx = ptx.replace("\t.reg .pred", "\t.reg .b32 %t;\n\t.reg .pred", 1)
        return inserted(instruction.format(accumulator, "%t"), after=r"wgmma\.commit_group\.sync\.aligned;")(name, ptx)

    *_, machine = hopper_product(strict=False, edit=edit)
    assert fault in machine.report.names()


def test_a_missing_proxy_fence():
    *_, machine = hopper_product(strict=False, edit=without(r"fence\.proxy\.async\.shared::cta;"))
    assert wgmma.NOT_FENCED in machine.report.names()


def test_a_missing_register_fence_is_noted():
    *_, machine = hopper_product(edit=without(r"wgmma\.fence\.sync\.aligned;"))
    assert any("wgmma.fence" in note.name for note in machine.report.notes.values())


def test_exit_with_a_wgmma_in_flight():
    start = r"wgmma\.mma_async[^;]*;"

    def edit(name, ptx):
        return inserted(re.search(start, ptx)[0], before=r"ret;")(name, ptx)

    *_, machine = hopper_product(strict=False, edit=edit)
    assert "exit with a wgmma in flight" in machine.report.names()
