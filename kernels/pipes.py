"""Clocks that a tile keeps each pipe of a multiprocessor busy, from the machine code of a compiled kernel.

A tile takes at least the clocks of the busiest pipe. Rates are results per clock and multiprocessor in the table
"Throughput of Native Arithmetic Instructions" of the CUDA C++ Programming Guide; bytes per clock of the L2 cache are
5,120 for the GPU (NVIDIA's A100 white paper, assumed for Hopper too) divided by its multiprocessors. More assumptions:

- Accesses of shared memory have no bank conflicts, and each thread reads bytes of its own. Products of float32 read the
  same bytes in several threads, so their clocks of shared memory are an upper bound.
- Loads of up to four bytes hit the L1 cache, because they read tables, masks, and weights, the same for many threads:
  they count as one sector of the L2 cache per warp. Rows that are not aligned are undercounted.
- No other loads hit the L1 cache.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from atk.kernels.sass import Instruction, tile_path

_SCHEDULERS = 4  # per multiprocessor, each issues one instruction of a warp per clock
_SHARED_BYTES = 128  # per clock
_SECTOR = 32  # bytes that the L2 cache delivers at least


@dataclass(frozen=True)
class _Rates:
    """Per clock and multiprocessor: multiply-adds of the matrix units, lanes of other pipes, bytes of the L2 cache."""

    matrix: int
    fma: int
    alu: int
    special: int
    l2_bytes: float


# By compute capability: A100, and H100 or H200. Consumer GPUs differ too much in their L2 caches.
_RATES = {(8, 0): _Rates(1024, 64, 64, 16, 5120 / 108), (9, 0): _Rates(2048, 128, 64, 16, 5120 / 132)}
_MATRIX = {"HGMMA", "HMMA"}
_FMA = {"FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "HMUL2"}
_INTEGER_PRODUCTS = {"IMAD"}
_SPECIAL = {"MUFU", "F2I", "I2F", "F2F", "POPC", "FLO", "BREV"}
_SHARED = {"LDS", "STS", "LDSM", "STSM", "SHFL", "LDL", "STL"}
_GLOBAL = {"LDG", "STG", "LDGSTS"}
_ALU = {
    "FMNMX", "FSETP", "FSEL", "FSET", "FCHK", "HSET2", "HSETP2", "HMNMX2", "IADD3", "VIADD", "VIMNMX", "VIMNMX3",
    "VIADDMNMX", "IMNMX", "ISETP", "SEL", "LEA", "LOP3", "PLOP3", "PRMT", "SHF", "SGXT", "MOV", "F2FP", "I2FP", "P2R",
    "R2P", "IABS", "BMSK", "VOTE",
}  # fmt: skip
# Only issued: control, barriers, constants and special registers, and what the uniform datapath computes once per warp.
_OTHER = {
    "BAR", "BRA", "BREAK", "BSSY", "BSYNC", "CALL", "CS2R", "DEPBAR", "ERRBAR", "EXIT", "FENCE", "LDC", "LDGDEPBAR",
    "MEMBAR", "NOP", "R2UR", "RET", "S2R", "S2UR", "WARPGROUP", "WARPSYNC", "UIADD3", "UIMAD", "UISETP", "ULDC", "ULEA",
    "ULOP3", "UMOV", "UP2UR", "UPLOP3", "UPRMT", "UR2UP", "USEL", "USGXT", "USHF", "VOTEU",
}  # fmt: skip
_KNOWN = _MATRIX | _FMA | _INTEGER_PRODUCTS | _SPECIAL | _SHARED | _GLOBAL | _ALU | _OTHER


@dataclass(frozen=True)
class Clocks:
    """Clocks of a tile by pipe.

    Attributes:
        matrix: the matrix units.
        fma: multiply-adds, additions, and multiplications.
        alu: comparisons, minimum and maximum, selections, logic, and integer additions.
        special: exponentials, logarithms, reciprocals, and conversions.
        shared: accesses of shared memory, by the matrix units too, shuffles, and the L1 cache.
        l2: bytes from and to the L2 cache.
        issue: the schedulers, for all instructions.
    """

    matrix: int
    fma: int
    alu: int
    special: int
    shared: int
    l2: int
    issue: int

    @property
    def busiest(self) -> str:
        """The pipe that binds."""
        return max((field.name for field in fields(self)), key=lambda name: getattr(self, name))


def unknown_opcodes(instructions: Iterable[Instruction]) -> set[str]:
    """Opcodes that belong to no pipe. `clocks` would count nothing but their issue."""
    return {one.name for one in instructions} - _KNOWN


def clocks(
    instructions: Sequence[Instruction], warps: int, capability: tuple[int, int], trips: int = 1
) -> Clocks | None:
    """Clocks of a tile: an iteration of the main loop, on its usual path, of all warps of a program.

    With a loop around it, a tile is an iteration of that loop, in which the main loop runs `trips` times. None if there
    is no loop with products, or the rates of this compute capability are not tabulated.
    """
    path = tile_path(instructions, trips)
    if not path or capability not in _RATES:
        return None
    rates = _RATES[capability]
    pipes = dict.fromkeys((field.name for field in fields(Clocks)), 0.0)
    for one, times in path:
        pipes["issue"] += warps * times / _SCHEDULERS
        for pipe, busy in _busy(one, rates).items():
            pipes[pipe] += warps * times * busy
    return Clocks(**{name: round(value) for name, value in pipes.items()})


def _busy(one: Instruction, rates: _Rates) -> dict[str, float]:
    """Clocks that one instruction of one warp keeps each pipe busy."""
    busy: dict[str, float] = {}
    if one.name == "HGMMA":  # of four warps
        rows, columns, depth = map(int, one.opcode.split(".")[1].split("x"))
        operand_rows = columns + (rows if _reads_left_operand_from_shared_memory(one) else 0)
        busy = {
            "matrix": rows * columns * depth / rates.matrix / 4,
            "shared": operand_rows * depth * 2 / _SHARED_BYTES / 4,
        }
    elif one.name == "HMMA":  # 16 x 8 x the digits after 168
        busy = {"matrix": 16 * 8 * int(one.opcode.split(".")[1][3:]) / rates.matrix}
    elif one.name in _SHARED:
        busy = {"shared": 32 * max(4, _bytes(one)) / _SHARED_BYTES}
    elif one.name in _GLOBAL:
        size = _bytes(one)
        bytes_of_warp = _SECTOR if one.name == "LDG" and size <= 4 else 32 * size
        busy = {"shared": 32 * max(4, size) / _SHARED_BYTES, "l2": bytes_of_warp / rates.l2_bytes}
    elif one.name in _FMA:
        busy = {"fma": 32 / rates.fma}
    elif one.name in _INTEGER_PRODUCTS:
        busy = {"fma": 32 / 64}
    elif one.name in _SPECIAL:
        busy = {"special": 32 / rates.special}
    elif one.name in _ALU:
        busy = {"alu": 32 / rates.alu}
    return busy


def _reads_left_operand_from_shared_memory(hgmma: Instruction) -> bool:
    return hgmma.operands.split(",")[1].strip().startswith("gdesc")


def _bytes(one: Instruction) -> int:
    """Bytes that each lane moves."""
    if one.name in ("LDSM", "STSM"):
        return 4 * int((re.search(r"M(?:T)?88\.(\d)", one.opcode) or [0, 1])[1])
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((sizes[modifier] for modifier in one.opcode.split(".")[1:] if modifier in sizes), 4)
