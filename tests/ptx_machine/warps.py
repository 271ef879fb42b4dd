"""Warps that execute together, and what happens when a branch diverges."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from ptx_machine.program import EXIT, Block
from ptx_machine.report import Fault

if TYPE_CHECKING:
    from ptx_machine.async_copy import Copy
    from ptx_machine.cta import CTA
    from ptx_machine.wgmma import Wgmma

i4, i8 = np.dtype("i4"), np.dtype("i8")
# Opcodes that need all warps, or all lanes of a warp.
_NEED_WARPS = ("wgmma", "cp.async.wait", "cp.async.commit")
_NEED_LANES = ("shfl", "redux", "ldmatrix", "stmatrix", "mma")


class Stop(Enum):
    """Why warps stopped."""

    BARRIER = 0
    EXIT = 1
    JOIN = 2


class Diverged(Exception):  # noqa: N818  # control flow, not an error
    """A branch that only some lanes take. `targets`: the next block of the other lanes, and of those that take it."""

    def __init__(self, taken: np.ndarray, targets: tuple[int, int]):
        self.taken, self.targets = taken, targets


class Warps:
    """Warps that execute each instruction together, as a vector of lanes.

    They are whole warps, except on the two paths of a branch that diverged within a warp.
    """

    def __init__(self, cta: CTA, tid: np.ndarray, registers: list | LaneRegisters):
        self.cta, self.tid, self.registers, self.lanes = cta, tid, registers, len(tid)
        self.lane, self.warp = (tid & 31).astype(i8), (tid >> 5).astype(i4)
        self.warp_ids = np.unique(self.warp)
        self.count = len(self.warp_ids)
        self.first_lane = np.repeat(np.arange(self.count) * 32, 32)  # index of lane 0 of each lane's warp
        self.block = 0
        self.open_copies: list[Copy] = []
        self.copy_groups: list[list[Copy]] = []
        self.open_wgmmas: list[Wgmma] = []
        self.wgmma_groups: list[list[Wgmma]] = []
        self.proxy_fences: list[tuple[int, int]] = []  # phase and time
        self.shuffles: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def run(self, join: int | None = None) -> Stop:
        """Executes up to the next barrier, the end of the kernel, or the block `join`."""
        blocks, executions = self.cta.grid.program.blocks, self.cta.grid.executions
        while self.block != join:
            block = blocks[self.block]
            executions[self.block] += self.count
            try:
                following = block.function(self, self.registers)
            except Diverged as diverged:
                following = self._run_both(block, diverged)
            if following == EXIT:
                return Stop.EXIT
            self.block = following
            if block.ends_at_barrier:
                return Stop.BARRIER
        return Stop.JOIN

    def branch(self, taken: np.ndarray, target: int, otherwise: int) -> int:
        """The block after a branch."""
        if taken.all():
            return target
        if not taken.any():
            return otherwise
        raise Diverged(taken, (otherwise, target))

    def _run_both(self, block: Block, diverged: Diverged) -> int:
        """Executes both paths up to the block where they meet, which is returned."""
        program = self.cta.grid.program
        skipped = [program.blocks[index] for index in block.divergent]
        uniform = self.lanes == 32 * self.count and _is_uniform(diverged.taken.reshape(-1, 32))
        if any(block.ends_at_barrier for block in skipped):
            if uniform:
                raise diverged  # CTA.run splits the warps for good
            raise NotImplementedError(f"{program.kernel.name}: barrier after a branch that diverges within a warp")
        forbidden = _NEED_WARPS if uniform else _NEED_WARPS + _NEED_LANES
        for instruction in (instruction for block in skipped for instruction in block.instructions):
            if instruction.opcode.startswith(forbidden):
                raise NotImplementedError(f"{program.kernel.name}: {instruction.opcode} after a divergent branch")
        paths = []
        for taken, target in enumerate(diverged.targets):
            lanes = np.flatnonzero(diverged.taken == taken)
            path = Warps(self.cta, self.tid[lanes], LaneRegisters(self.registers, lanes))
            path.block, path.open_copies = target, self.open_copies
            path.run(block.join)
            paths.append(path)
        for path in paths:
            path.registers.write_back()
        return block.join

    def split(self, diverged: Diverged) -> list[Warps]:
        """Two groups of whole warps that take different paths from here on."""
        if self.wgmma_groups or self.open_wgmmas or self.copy_groups or self.open_copies:
            name = self.cta.grid.program.kernel.name
            raise NotImplementedError(f"{name}: warps diverge with asynchronous operations in flight")
        parts = []
        for taken, target in enumerate(diverged.targets):
            lanes = diverged.taken == taken
            part = Warps(self.cta, self.tid[lanes], [register[lanes] for register in self.registers])
            part.block, part.proxy_fences = target, list(self.proxy_fences)
            parts.append(part)
        return parts

    def fault(self, name: str, pc: int, detail: str = "") -> None:
        """Reports a fault of the instruction `pc`."""
        kernel = self.cta.grid.program.kernel
        instruction = kernel.instructions[pc]
        place = f"CTA {self.cta.index}" + (f", warps {self.warp_ids.tolist()}" if self.count < 4 else "")
        detail = f"{detail}; {place}" if detail else place
        self.cta.grid.report.add(Fault(name, kernel.name, instruction.source, instruction.line, detail))


def _is_uniform(by_warp: np.ndarray) -> bool:
    """Whether all lanes of each warp agree."""
    return bool((by_warp.all(1) | ~by_warp.any(1)).all())


class LaneRegisters:
    """The registers of some lanes, copied from those of all lanes when they are first read."""

    def __init__(self, registers: list | LaneRegisters, lanes: np.ndarray):
        self.registers, self.lanes = registers, lanes
        self.values: dict[int, np.ndarray] = {}
        self.changed: set[int] = set()

    def __getitem__(self, slot: int):
        if slot not in self.values:
            value = self.registers[slot]
            self.values[slot] = value[self.lanes] if isinstance(value, np.ndarray) else value  # or a wgmma in flight
        return self.values[slot]

    def __setitem__(self, slot: int, value: np.ndarray) -> None:
        self.values[slot] = value
        self.changed.add(slot)

    def write_back(self) -> None:
        """Writes changed registers to those of all lanes."""
        for slot in self.changed:
            value = self.registers[slot].copy()
            value[self.lanes] = self.values[slot].view(value.dtype)
            self.registers[slot] = value
