"""Machine code of compiled kernels as the disassembler prints it: instructions, loops, and their usual path."""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?(\w+)\s+)?([A-Z]\S*)\s*(.*?);")
_MATRIX = ("HGMMA", "HMMA", "UTCHMMA")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its opcode with modifiers and its operands as text; `predicated` if a predicate guards it."""

    address: int
    predicated: bool
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        """The address that a branch jumps to, None for other instructions."""
        addresses = re.findall(r"0x([0-9a-f]+)", self.operands) if self.name == "BRA" else []
        return int(addresses[-1], 16) if addresses else None


@dataclass(frozen=True)
class MachineCode:
    """The code of a kernel. `local_bytes` is local memory per thread: stack and spilled registers."""

    instructions: list[Instruction]
    registers: int
    local_bytes: int


def disassemble(cubin: bytes) -> MachineCode:
    """Disassembles a compiled kernel with the tools in Triton's wheel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.check_output([knobs.nvidia.cuobjdump.path, option, path], text=True, stderr=subprocess.PIPE)
            for option in ("--dump-resource-usage", "-sass")
        )
    match = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cannot read the resource usage that cuobjdump reports: {usage!r}")
    registers, stack, local = map(int, match.groups())
    return MachineCode(parse(sass), registers, stack + local)


def parse(sass: str) -> list[Instruction]:
    """The instructions in the text that `cuobjdump -sass` prints."""
    return [Instruction(int(m[1], 16), m[2] is not None, m[3], m[4]) for m in _INSTRUCTION.finditer(sass)]


def main_loop(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The first innermost loop with matrix instructions, or if there are none with multiply-adds; [] if none has."""
    loops = [(one.target, one.address) for one in instructions if one.target is not None and one.target < one.address]
    for names in (_MATRIX, ("FFMA",)):
        candidates = []
        for first, last in loops:
            body = [one for one in instructions if first <= one.address <= last]
            if any(one.name in names for one in body):
                candidates.append(body)
        # A loop around another one is longer and contains its start.
        innermost = [
            loop for loop in candidates if not any(len(other) < len(loop) and other[0] in loop for other in candidates)
        ]
        if innermost:
            return min(innermost, key=lambda loop: loop[0].address)
    return []


def usual_path(loop: Sequence[Instruction]) -> list[Instruction]:
    """The shortest way through the body of a loop: without what runs only at a clip's end or for unusual values."""
    index = {one.address: i for i, one in enumerate(loop)}
    best: list[tuple[int, int]] = [(0, -1)] * len(loop)  # instructions from here to the end of the loop, and the next
    for i in range(len(loop) - 2, -1, -1):
        one = loop[i]
        successors = [] if one.name == "BRA" and not one.predicated else [i + 1]
        if one.target is not None and one.address < one.target and one.target in index:
            successors.append(index[one.target])
        if (one.name == "EXIT" and not one.predicated) or not successors:
            best[i] = (len(loop), -1)  # leaves the loop
        else:
            best[i] = min((best[after][0] + 1, after) for after in successors)
    path, i = [], 0
    while i >= 0:
        path.append(loop[i])
        i = best[i][1]
    return path


def tiles_ahead(loop: Sequence[Instruction]) -> int | None:
    """Iterations between the start of an asynchronous copy and the wait for it; None without such copies.

    0: the copies that a wait waits for are the latest, so nothing is in flight during the product that follows.
    """
    commits = sum(one.name == "LDGDEPBAR" for one in loop)
    waits = [
        int(one.operands.split("0x")[1].split()[0], 16) for one in loop if one.name == "DEPBAR" and "0x" in one.operands
    ]
    return min(waits) // commits if commits and waits else None
