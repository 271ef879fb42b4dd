"""Parsing, control flow, and hand-written PTX."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.ptx_kernels import add_kernel
from support.triton_cases import needs_compiler

from ptx_machine import PtxError, Report, active
from ptx_machine.control_flow import basic_blocks
from ptx_machine.grid import Options
from ptx_machine.launch import launch
from ptx_machine.parser import Address, immediate, parse
from ptx_machine.program import EXIT
from ptx_machine.translate import translate

pytestmark = needs_compiler
HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
# Lane k of each warp goes around the loop k times; even lanes then add 100.
DIVERGENT = """
.visible .entry kernel(.param .u64 .ptr .global .align 16 out) .reqntid 64 {
    .reg .pred %p<4>; .reg .b32 %r<6>; .reg .b64 %rd<4>;
    ld.param.b64 %rd1, [out];
    mov.u32 %r1, %tid.x; and.b32 %r2, %r1, 31; mov.b32 %r3, 0;
$loop:
    setp.ge.s32 %p1, %r3, %r2;
    @%p1 bra $done;
    add.s32 %r3, %r3, 1;
    bra $loop;
$done:
    and.b32 %r4, %r1, 1; setp.ne.s32 %p2, %r4, 0;
    @%p2 bra $odd;
    add.s32 %r3, %r3, 100;
$odd:
    mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;
    st.global.b32 [%rd3], %r3;
    ret;
}
"""


@pytest.mark.parametrize("lockstep", [False, True])
def test_branches_that_diverge_within_a_warp(lockstep):
    out, report = np.zeros(64, np.int32), Report()
    arguments = [("out", out.ctypes.data, out.nbytes)]
    launch(translate(HEADER + DIVERGENT), (1, 1, 1), arguments, 0, report, Options(lockstep=lockstep))
    lanes = np.arange(64)
    assert (out == lanes % 32 + np.where(lanes % 2, 0, 100)).all()
    assert not report.faults and report.launches[0].instructions > 2 * 31 * 4


def test_paths_meet_at_the_immediate_post_dominator():
    blocks, labels = basic_blocks(parse(HEADER + DIVERGENT))
    joins = [block.join for block in blocks]
    assert joins[labels["$loop"]] == labels["$done"] and joins[labels["$done"]] == labels["$odd"]
    assert blocks[-1].join == EXIT and blocks[labels["$loop"]].divergent == {labels["$loop"], labels["$loop"] + 1}


def test_operands_and_scopes():
    text = """.visible .entry kernel(.param .u32 n) .reqntid 32 {
        .reg .b32 %r<3>; // a comment
        { .reg .b32 %t; mov.b32 %t, -0x10; add.s32 %r1, %t, %r2; }
        ld.shared.v2.b32 {%r1, %r2}, [%r1+-8];
        @!%p1 st.shared.b32 [ %r1 + 16 ], 0f3F800000;
    }"""
    kernel = parse(HEADER + text)
    move, _, load, store = kernel.instructions
    assert move.operands[0] not in ("%t", "%r1") and kernel.widths[move.operands[0]] == 4
    assert load.operands == [("%r1", "%r2"), Address("%r1", -8)]
    assert store.predicate == "%p1" and store.negated and store.operands == [Address("%r1", 16), "0f3F800000"]
    assert immediate("-0x10") == -16 and immediate("0f3F800000") == 0x3F800000 and immediate("%r1") is None


@pytest.mark.parametrize(
    ("opcode", "message"),
    [
        ("frobnicate.f32", r"add_kernel, line \d+: unsupported frobnicate.f32"),
        ("add.sat.f32", r"add.sat.f32: modifiers \['sat'\]"),
        ("add.s64", "bytes used as i8"),
    ],
)
def test_unsupported_instructions(opcode, message):
    x = torch.randn(8)
    edit = lambda _, ptx: ptx.replace("add.f32", opcode)  # noqa: E731
    with pytest.raises(PtxError, match=message), active((8, 0), edit=edit):
        add_kernel[(1,)](x, x, torch.empty(8), 8, SIZE=128)


def test_a_module_has_one_kernel():
    with pytest.raises(PtxError, match=r"must have one \.entry, got 2"):
        parse(HEADER + DIVERGENT * 2)
