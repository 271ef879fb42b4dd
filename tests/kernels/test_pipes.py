"""Clocks by pipe, on short listings."""

import pytest
from support.listing import listing

from atk.kernels.pipes import clocks, unknown_opcodes

A100, H100 = (8, 0), (9, 0)
L2 = {A100: 5120 / 108, H100: 5120 / 132}  # bytes per clock and multiprocessor


def clocks_of(*lines, warps=4, capability=H100, times=64):
    """Clocks of a loop that has `times` copies of the lines, and of one multiply-add that makes it a main loop."""
    code = listing("top: FFMA R0, R1, R2, R0", *lines * times, "@P0 BRA {top}")
    return clocks(code, warps, capability)


def test_matrix_instructions_of_a_warp_group():
    """A product of 64 x 128 x 16 takes 64 clocks of 2,048 multiply-adds; an operand row of 16 channels is 32 bytes."""
    from_registers = "HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR4].tnspB, R24, gsb0"
    from_shared_memory = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24"
    one, both = (clocks_of(line, times=1) for line in (from_registers, from_shared_memory))
    assert one.matrix == both.matrix == 64
    assert (one.shared, both.shared) == (128 * 32 / 128, (128 + 64) * 32 / 128)
    assert clocks_of(from_registers, warps=8, times=1).matrix == 128


def test_matrix_instructions_of_a_warp():
    assert clocks_of("HMMA.16816.F32.BF16 R4, R8, R10, R4", capability=A100).matrix == 64 * 4 * 2
    assert clocks_of("HMMA.1688.F32.BF16 R4, R8, R10, R4", capability=A100).matrix == 64 * 4 * 1


@pytest.mark.parametrize(
    ("line", "bytes_of_lane"),
    [
        ("LDSM.16.M88 R4, [R0]", 4),
        ("LDSM.16.M88.2 R4, [R0]", 8),
        ("LDSM.16.MT88.4 R4, [R0]", 16),
        ("LDS R4, [R0]", 4),
        ("LDS.U8 R4, [R0]", 4),  # the bank is busy for 4 bytes
        ("STS.U16 [R0], R4", 4),
        ("STS.64 [R0], R4", 8),
        ("LDS.128 R4, [R0]", 16),
        ("SHFL.BFLY PT, R4, R5, 0x1, 0x1f", 4),
    ],
)
def test_accesses_of_shared_memory(line, bytes_of_lane):
    counted = clocks_of(line)
    assert counted.shared == 64 * 4 * 32 * bytes_of_lane / 128
    assert counted.l2 == counted.alu == 0


@pytest.mark.parametrize("capability", [A100, H100])
@pytest.mark.parametrize(
    ("line", "bytes_of_warp"),
    [
        ("LDGSTS.E.BYPASS.128 [R3], desc[UR4][R8.64]", 512),
        ("LDGSTS.E [R3], desc[UR4][R8.64]", 128),
        ("LDG.E.128.CONSTANT R4, desc[UR4][R8.64]", 512),
        ("LDG.E R4, desc[UR4][R8.64]", 32),
        ("LDG.E.U8.CONSTANT R4, desc[UR4][R8.64]", 32),
        ("STG.E.U8 desc[UR4][R8.64], R4", 32),
        ("STG.E desc[UR4][R8.64], R4", 128),
    ],
)
def test_bytes_of_the_l2_cache(line, bytes_of_warp, capability):
    assert clocks_of(line, capability=capability).l2 == round(64 * 4 * bytes_of_warp / L2[capability])


@pytest.mark.parametrize(
    ("line", "pipe", "lanes", "lanes_of_a100"),
    [
        ("FADD R0, R1, R2", "fma", 128, 64),
        ("HFMA2.BF16_V2 R0, R1, R2, R3", "fma", 128, 64),
        ("IMAD.MOV.U32 R0, RZ, RZ, R1", "fma", 64, 64),
        ("FMNMX R0, R1, R2, !PT", "alu", 64, 64),
        ("@P1 SEL R0, R1, R2, P0", "alu", 64, 64),
        ("MUFU.EX2 R0, R1", "special", 16, 16),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "issue", 128, 128),
    ],
)
def test_lanes_of_arithmetic(line, pipe, lanes, lanes_of_a100):
    for capability, rate in ((H100, lanes), (A100, lanes_of_a100)):
        extra = {"fma": round(4 * 32 / (128 if capability == H100 else 64)), "issue": 2}.get(pipe, 0)
        assert getattr(clocks_of(line, capability=capability), pipe) == 64 * 4 * 32 / rate + extra


def test_the_busiest_pipe_binds():
    assert clocks_of("FMNMX R0, R1, R2, !PT").busiest == "alu"
    assert clocks_of("FADD R0, R1, R2").busiest == "issue"
    assert clocks_of("MUFU.EX2 R0, R1", "FADD R0, R1, R2").busiest == "special"


def test_without_products_or_rates_there_are_no_clocks():
    assert clocks(listing("top: IADD3 R0, R1, R2, R3", "@P0 BRA {top}"), 4, H100) is None
    assert clocks_of("FADD R0, R1, R2", capability=(12, 0)) is None


def test_opcodes_of_no_pipe_are_unknown():
    code = listing("FFMA R0, R1, R2, R0", "UTCHMMA gdesc[UR4], gdesc[UR8], tmem[UR6]", "@P0 QSPC.E.S P0, RZ, [R4]")
    assert unknown_opcodes(code) == {"UTCHMMA", "QSPC"}
