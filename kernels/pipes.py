"""Clocks that the main loop of a compiled kernel keeps each pipe of a multiprocessor busy, from its machine code.

An iteration takes at least the clocks of the busiest pipe. Rates are results per clock and multiprocessor in the table
"Throughput of Native Arithmetic Instructions" of the CUDA C++ Programming Guide; bytes per clock of the L2 cache are
5,120 for the GPU (NVIDIA's A100 white paper) divided by its multiprocessors. This assumes accesses of shared memory
without bank conflicts and of global memory without hits in the L1 cache.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from atk.kernels.sass import Instruction, main_loop, usual_path

_SCHEDULERS = 4  # per multiprocessor, each issues one instruction of a warp per clock
_SHARED_BYTES = 128  # per clock


@dataclass(frozen=True)
class _Rates:
    """Per clock and multiprocessor: multiply-adds of the matrix units, lanes of other pipes, bytes of the L2 cache."""

    matrix: int
    fma: int
    alu: int
    special: int
    l2_bytes: float


_RATES = {(8, 0): _Rates(1024, 64, 64, 16, 5120 / 108), (9, 0): _Rates(2048, 128, 64, 16, 5120 / 132)}
_FMA = {"FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "HMUL2"}
_SPECIAL = {"MUFU", "F2I", "I2F", "I2FP", "F2F", "POPC"}
_SHARED = {"LDS", "STS", "LDSM", "STSM", "SHFL"}
_GLOBAL = {"LDG", "STG", "LDGSTS"}
_ALU = {
    "FMNMX", "FSETP", "FSEL", "FSET", "HSET2", "HSETP2", "HMNMX2", "IADD3", "VIADD", "VIMNMX", "VIMNMX3", "IMNMX",
    "ISETP", "SEL", "LEA", "LOP3", "PLOP3", "PRMT", "SHF", "SGXT", "MOV", "F2FP", "P2R", "R2P", "IABS", "BMSK", "FLO",
}  # fmt: skip


@dataclass(frozen=True)
class Clocks:
    """Clocks of one iteration by pipe: matrix units, multiply-adds, comparisons and logic, and so on.

    `shared` counts accesses of shared memory, by the matrix units too, and shuffles; `issue` all instructions.
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


def clocks(instructions: Sequence[Instruction], warps: int, capability: tuple[int, int]) -> Clocks | None:
    """Clocks of an iteration of the main loop of a program with this many warps, on its usual path.

    None if there is no loop with products, or the rates of this compute capability are not tabulated.
    """
    path = usual_path(main_loop(instructions) or [])
    if not path or capability not in _RATES:
        return None
    rates = _RATES[capability]
    pipes = dict.fromkeys(("matrix", "fma", "alu", "special", "shared", "l2"), 0.0)
    for one in path:
        for pipe, busy in _busy(one, rates).items():
            pipes[pipe] += warps * busy
    return Clocks(**{name: round(value) for name, value in pipes.items()}, issue=round(len(path) * warps / _SCHEDULERS))


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
    elif one.name == "HMMA":
        busy = {"matrix": 16 * 8 * 16 / rates.matrix}
    elif one.name in _SHARED:
        busy = {"shared": 32 * max(4, _bytes(one)) / _SHARED_BYTES}
    elif one.name in _GLOBAL:
        busy = {"shared": 32 * max(4, _bytes(one)) / _SHARED_BYTES, "l2": 32 * _bytes(one) / rates.l2_bytes}
    elif one.name in _FMA:
        busy = {"fma": 32 / rates.fma}
    elif one.name == "IMAD":
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
    for suffix, size in ((".128", 16), (".64", 8), ("16", 2), ("8", 1)):
        if one.opcode.endswith(suffix):
            return size
    return 4
