"""Machine code of compiled kernels as the disassembler prints it: instructions, loops, and their usual path."""

import heapq
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Older versions print how an instruction is scheduled on sm_120 after a question mark.
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?(\w+)\s+)?([A-Z][^\s;?]*)\s*([^;?\n]*?)\s*(?:\?[^;\n]*)?;")
_MATRIX = {"HGMMA", "HMMA", "UTCHMMA"}
_SIZE = 16  # bytes of an instruction
_UNUSUAL = 10**6  # more than the instructions of any kernel


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
        """The address that a branch or a call jumps to, None for other instructions."""
        addresses = re.findall(r"0x([0-9a-f]+)", self.operands) if self.name in ("BRA", "CALL") else []
        return int(addresses[-1], 16) if addresses else None

    @property
    def falls_through(self) -> bool:
        """Whether execution can continue at the next instruction: unless this one exits or jumps unconditionally."""
        jumps = self.name == "RET" or (self.name == "BRA" and self.operands.startswith("0x"))
        return self.predicated or not (jumps or (self.name == "EXIT" and not self.operands.strip()))


@dataclass(frozen=True)
class MachineCode:
    """The code of a kernel.

    Attributes:
        instructions: in the order of their addresses.
        registers: per thread.
        local_bytes: local memory per thread (stack and spilled registers); 0 if no instruction accesses it, because
            ptxas 13 reserves stack that it does not use.
    """

    instructions: list[Instruction]
    registers: int
    local_bytes: int


def disassemble(cubin: bytes) -> MachineCode:
    """Disassembles a compiled kernel with the tools in Triton's wheel."""
    registers, reserved = _resources(cubin)
    instructions = parse(_cuobjdump(cubin, "-sass"))
    return MachineCode(instructions, registers, reserved if _accesses_local_memory(instructions) else 0)


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory per thread, as in `MachineCode`; disassembles only if the stack is used."""
    registers, reserved = _resources(cubin)
    return registers, disassemble(cubin).local_bytes if reserved else 0


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory that ptxas reserves, whether or not an instruction accesses them."""
    usage = _cuobjdump(cubin, "--dump-resource-usage")
    match = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cannot read the resource usage that cuobjdump reports: {usage!r}")
    return int(match[1]), int(match[2]) + int(match[3])


def _accesses_local_memory(instructions: Sequence[Instruction]) -> bool:
    return any(one.name in ("LDL", "STL") for one in instructions)


def _cuobjdump(cubin: bytes, option: str) -> str:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        return subprocess.check_output([knobs.nvidia.cuobjdump.path, option, path], text=True, stderr=subprocess.PIPE)


def parse(sass: str) -> list[Instruction]:
    """The instructions in the text that `cuobjdump -sass` prints."""
    return [Instruction(int(m[1], 16), m[2] is not None, m[3], m[4]) for m in _INSTRUCTION.finditer(sass)]


def loops(instructions: Sequence[Instruction]) -> list[list[Instruction]]:
    """The instructions of each loop. Loops are sorted by the address at which their iterations start."""
    successors = _successors(instructions)
    predecessors: list[list[int]] = [[] for _ in instructions]
    for i, following in enumerate(successors):
        for after in following:
            predecessors[after].append(i)
    bodies: dict[int, set[int]] = {}
    for i, following in enumerate(successors):
        for first in (after for after in following if after <= i):
            body, earlier = {first}, [i]
            while earlier:
                one = earlier.pop()
                if one not in body:
                    body.add(one)
                    earlier += predecessors[one]
            if 0 not in body or first == 0:  # else a jump back from code that the compiler moved out of the way
                bodies.setdefault(first, set()).update(body)
    return [[instructions[i] for i in sorted(body)] for _, body in sorted(bodies.items())]


def _successors(instructions: Sequence[Instruction]) -> list[list[int]]:
    """Indices of the instructions that can follow each one. Some calls are jumps, so what they call counts."""
    index = {one.address: i for i, one in enumerate(instructions)}
    successors = []
    for one in instructions:
        addresses = [one.address + _SIZE] if one.falls_through else []
        if one.target is not None:
            addresses.append(one.target)
        successors.append([index[address] for address in addresses if address in index])
    return successors


def product_loops(instructions: Sequence[Instruction]) -> list[list[Instruction]]:
    """The innermost loops with matrix instructions, or if there are none, with multiply-adds."""
    every = loops(instructions)
    for names in (_MATRIX, {"FFMA"}):
        candidates = [loop for loop in every if any(one.name in names for one in loop)]
        innermost = [loop for loop in candidates if not any(_inside(other, loop) for other in candidates)]
        if innermost:
            return innermost
    return []


def _inside(loop: Sequence[Instruction], outer: Sequence[Instruction]) -> bool:
    return len(loop) < len(outer) and set(loop) < set(outer)


def main_loop(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The first of `product_loops`; [] if there is none."""
    return next(iter(product_loops(instructions)), [])


def usual_path(loop: Sequence[Instruction], inner: Sequence[Sequence[Instruction]] = ()) -> list[Instruction]:
    """The shortest way through the body of a loop: without what runs only at a clip's end or for unusual values.

    It runs the `inner` loops, and what a part of the threads runs: between BSSY and the address in its operands.
    """
    starts = {body[0] for body in inner}
    inner_starts = [i for i, one in enumerate(loop) if one in starts]
    divergent = _divergent(loop)
    successors = _successors(loop)
    shortest, previous, queue = {0: 0}, {0: -1}, [(0, 0)]
    last = -1
    while queue and last < 0:
        cost, i = heapq.heappop(queue)
        if 0 in successors[i]:
            last = i
        for after in successors[i]:
            jumps = loop[after].address == loop[i].target and loop[i].falls_through
            unusual = jumps and (i in divergent or any(i < start < after for start in inner_starts))
            new_cost = cost + 1 + _UNUSUAL * unusual
            if new_cost < shortest.get(after, new_cost + 1):
                shortest[after], previous[after] = new_cost, i
                heapq.heappush(queue, (new_cost, after))
    path: list[Instruction] = []
    while last >= 0:
        path.append(loop[last])
        last = previous[last]
    return path[::-1]


def _divergent(loop: Sequence[Instruction]) -> set[int]:
    """Indices of the instructions that only a part of the threads of a warp may run."""
    ends = [(one.address, int(one.operands.split("0x")[1], 16)) for one in loop if one.name == "BSSY"]
    return {i for i, one in enumerate(loop) if any(start < one.address < end for start, end in ends)}


def tile_path(instructions: Sequence[Instruction], trips: int = 1) -> list[tuple[Instruction, int]]:
    """The instructions that a program runs for a tile, and how often: those on the usual path of the main loop, once.

    If another loop surrounds it, a tile is an iteration of that loop, in which each inner loop runs `trips` times.
    Copies before an inner loop count as those that its last iterations leave out.
    """
    inner = product_loops(instructions)
    outer = [loop for loop in loops(instructions) if inner and _inside(inner[0], loop)]
    if not outer:
        return [(one, 1) for one in usual_path(inner[0])] if inner else []
    tile = min(outer, key=len)
    inner = [loop for loop in inner if _inside(loop, tile)]
    repeated = {one for loop in inner for one in loop}
    once = [one for one in usual_path(tile, inner) if one not in repeated and one.name != "LDGSTS"]
    return [(one, trips) for loop in inner for one in usual_path(loop)] + [(one, 1) for one in once]


def tiles_ahead(loop: Sequence[Instruction]) -> int | None:
    """Iterations whose asynchronous copies are still under way after a wait for copies; None without such copies.

    0: the copies that a wait waits for are the latest, so none is under way during the product that follows.
    """
    commits = sum(one.name == "LDGDEPBAR" for one in loop)
    # Scoreboard 0 is that of asynchronous copies.
    waits = [re.match(r"SB0, 0x([0-9a-f]+)", one.operands) for one in loop if one.name == "DEPBAR"]
    groups = [int(wait[1], 16) for wait in waits if wait]
    return min(groups) // commits if commits and groups else None
