"""Loops, usual paths, and copies in machine code, on short listings."""

import pytest
from support.listing import listing

from atk.kernels import sass
from atk.kernels.sass import loops, main_loop, parse, product_loops, tile_path, tiles_ahead, usual_path

HMMA = "HMMA.16816.F32.BF16 R4, R8, R10, R4"


def names(instructions):
    return [one.name for one in instructions]


def test_parse_reads_addresses_predicates_opcodes_and_operands():
    (first, second, third, fourth, fifth, sixth) = parse(
        "\t\tFunction : kernel\n"
        "        /*0000*/                   LDC R1, c[0x0][0x28] ;            /* 0x00000a00ff017b82 */\n"
        "                                                                     /* 0x000fe20000000800 */\n"
        "        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R3], desc[UR4][R8.64] ; /* 0x00000a0000017945 */\n"
        "        /*0020*/                   BRA 0x20;\n"
        "        /*0030*/                   BSSY B0, 0x4f60          ?trans3;\n"
        "        /*0040*/                   NOP;\n"
        "        /*0050*/                   EXIT ;                            /* 0x000000000000794d */\n"
    )
    assert (first.address, first.predicated, first.name) == (0, False, "LDC")
    assert (second.address, second.predicated, second.name) == (16, True, "LDGSTS")
    assert second.operands.startswith("[R3], desc")
    assert (fourth.name, fourth.operands) == ("BSSY", "B0, 0x4f60")
    assert [(one.opcode, one.operands) for one in (fifth, sixth)] == [("NOP", ""), ("EXIT", "")]
    assert (third.target, first.target, third.falls_through) == (0x20, None, False)


@pytest.mark.parametrize(
    ("line", "falls_through"),
    [("BRA 0x0", False), ("@P0 BRA 0x0", True), ("BRA.U !UP0, 0x0", True), ("EXIT", False), ("EXIT P1", True)],
)
def test_conditional_jumps_fall_through(line, falls_through):
    (one,) = listing(line)
    assert one.falls_through == falls_through


def test_the_main_loop_is_the_first_innermost_one_with_products():
    code = listing(
        "MOV R0, RZ",
        "outer: MOV R1, RZ",
        "copy: LDG.E R2, [R4]",
        "@P0 BRA {copy}",
        f"inner: {HMMA}",
        "@P1 BRA {inner}",
        "@P2 BRA {outer}",
        f"second: {HMMA}",
        "@P3 BRA {second}",
        "EXIT",
        "end: BRA {end}",
    )
    assert [names(loop) for loop in loops(code)] == [
        ["MOV", "LDG", "BRA", "HMMA", "BRA", "BRA"], ["LDG", "BRA"], ["HMMA", "BRA"], ["HMMA", "BRA"], ["BRA"],
    ]  # fmt: skip
    assert [loop[0].address for loop in product_loops(code)] == [0x40, 0x70]
    assert main_loop(code)[0].address == 0x40


def test_products_in_tensor_memory_are_products():
    matrix = "UTCHMMA gdesc[UR12], gdesc[UR20], tmem[UR7], tmem[UR22], idesc[UR23], UPT"
    code = listing("sums: FFMA R1, R2, R3, R1", "@P0 BRA {sums}", f"product: {matrix}", "@P1 BRA {product}")
    assert names(main_loop(code)) == ["UTCHMMA", "BRA"]


def test_multiply_adds_count_as_products_only_without_matrix_instructions():
    adds = ["adds: FFMA R0, R1, R2, R0", "@P0 BRA {adds}"]
    assert main_loop(listing(*adds, f"product: {HMMA}", "@P1 BRA {product}"))[0].name == "HMMA"
    assert main_loop(listing(*adds))[0].name == "FFMA"
    assert main_loop(listing("IADD3 R0, R1, R2, R3", "EXIT")) == []


def test_a_jump_back_from_code_moved_out_of_the_loop_is_not_a_loop():
    code = listing(
        "MOV R0, RZ", f"top: {HMMA}", "@P1 BRA {rare}", "back: IADD3 R0, R1, R2, R3", "@P0 BRA {top}", "EXIT",
        "rare: MUFU.LG2 R0, R0", "BRA {back}",
    )  # fmt: skip
    (loop,) = loops(code)
    assert names(loop) == ["HMMA", "BRA", "IADD3", "BRA", "MUFU", "BRA"]
    assert names(usual_path(loop)) == ["HMMA", "BRA", "IADD3", "BRA"]


def test_the_usual_path_leaves_out_rare_branches():
    code = listing(f"top: {HMMA}", "@!P1 BRA {usual}", "FADD R0, R0, R1", "STG.E [R2], R0",
                   "usual: IADD3 R0, R1, R2, R3", "@P0 BRA {top}", "EXIT")  # fmt: skip
    assert names(usual_path(main_loop(code))) == ["HMMA", "BRA", "IADD3", "BRA"]


def test_the_usual_path_takes_the_shorter_of_two_branches():
    code = listing(f"top: {HMMA}", "@P1 BRA {short}", "FADD R0, R0, R1", "FADD R0, R0, R1", "FADD R0, R0, R1",
                   "BRA {join}", "short: FMUL R0, R0, R1", "join: @P0 BRA {top}", "EXIT")  # fmt: skip
    assert names(usual_path(main_loop(code))) == ["HMMA", "BRA", "FMUL", "BRA"]


def test_the_usual_path_runs_what_a_part_of_the_threads_runs():
    code = listing(f"top: {HMMA}", "BSSY B0, {join}", "@P1 BRA {sync}", "STS [R0], R1", "sync: BSYNC B0",
                   "join: @P0 BRA {top}", "EXIT")  # fmt: skip
    assert names(usual_path(main_loop(code))) == ["HMMA", "BSSY", "BRA", "STS", "BSYNC", "BRA"]


def test_a_call_can_leave_a_loop():
    code = listing(f"top: {HMMA}", "@!P0 CALL.REL.NOINC {out}", "BRA {top}", "out: EXIT")
    assert names(main_loop(code)) == ["HMMA", "CALL", "BRA"]


def test_a_tile_runs_inner_loops_several_times_and_the_rest_once():
    code = listing(
        "MOV R0, RZ",
        "outer: LDGSTS.E.BYPASS.128 [R0], [R2.64]",
        "CS2R R4, SRZ",
        "@P3 BRA {done}",  # no channels
        f"inner: {HMMA}",
        "LDGSTS.E.BYPASS.128 [R0], [R2.64]",
        "@P1 BRA {inner}",
        "FMNMX R0, R4, R5, !PT",
        "done: @P0 BRA {outer}",
        "EXIT",
    )
    counts = [(one.name, times) for one, times in tile_path(code, trips=8)]
    assert sorted(counts) == [
        ("BRA", 1), ("BRA", 1), ("BRA", 8), ("CS2R", 1), ("FMNMX", 1), ("HMMA", 8), ("LDGSTS", 8),
    ]  # fmt: skip
    alone = listing(f"inner: {HMMA}", "@P1 BRA {inner}", "EXIT")
    assert [times for _, times in tile_path(alone, trips=8)] == [1, 1]
    assert tile_path(listing("EXIT"), trips=8) == []


@pytest.mark.parametrize(
    ("commits", "wait", "ahead"), [(1, 0, 0), (1, 1, 1), (1, 2, 2), (2, 1, 0), (2, 2, 1), (3, 6, 2)]
)
def test_tiles_ahead_are_the_copies_under_way_after_the_wait(commits, wait, ahead):
    copies = ["LDGSTS.E.BYPASS.128 [R0], [R2.64]", "LDGDEPBAR"] * commits
    code = listing(f"top: DEPBAR.LE SB0, {wait:#x}", "WARPGROUP.DEPBAR.LE gsb0, 0x0", HMMA, *copies, "@P0 BRA {top}")
    assert tiles_ahead(main_loop(code)) == ahead


def test_tiles_ahead_count_from_the_strictest_wait():
    code = listing("top: DEPBAR.LE SB0, 0x2", HMMA, "LDGDEPBAR", "DEPBAR.LE SB0, 0x0", "@P0 BRA {top}")
    assert tiles_ahead(main_loop(code)) == 0


def test_tiles_ahead_do_not_depend_on_waits_for_other_loads():
    code = listing("top: DEPBAR.LE SB0, 0x1", HMMA, "LDGDEPBAR", "DEPBAR.LE SB1, 0x0, {{2}}", "@P0 BRA {top}")
    assert code[3].operands.startswith("SB1, 0x0, {2}")
    assert tiles_ahead(main_loop(code)) == 1


def test_without_asynchronous_copies_nothing_runs_ahead():
    assert tiles_ahead(listing(f"top: {HMMA}", "LDG.E R0, [R2]", "@P0 BRA {top}")) is None


def test_the_resource_usage_of_another_format_is_refused(monkeypatch):
    usage = "Function kernel:\n  REG:40 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:560"
    monkeypatch.setattr(sass, "_cuobjdump", lambda cubin, option: usage)
    assert sass._resources(b"") == (40, 24)
    monkeypatch.setattr(sass, "_cuobjdump", lambda cubin, option: "registers: 40")
    with pytest.raises(RuntimeError, match="cannot read the resource usage that cuobjdump reports: 'registers: 40'"):
        sass._resources(b"")
