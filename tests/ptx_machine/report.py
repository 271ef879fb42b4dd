"""What a machine reports: faults, notes, and launches."""

from dataclasses import dataclass, field

import numpy as np

from ptx_machine.program import Program


class MachineError(Exception):
    """A kernel did something undefined or unordered. The message lists every fault."""


@dataclass
class Fault:
    """A fault of one instruction: its first occurrence, and how often it occurred."""

    name: str
    kernel: str
    source: str
    line: int
    detail: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.name}: {self.kernel}, {self.source}, PTX line {self.line}: {self.detail} ({self.count}x)"


@dataclass
class LaunchRecord:
    """A finished launch. `executions[k]` counts the warps that executed basic block k."""

    program: Program
    grid: tuple[int, int, int]
    executions: np.ndarray
    seconds: float

    @property
    def kernel(self) -> str:
        return self.program.kernel.name

    @property
    def instructions(self) -> int:
        """The number of warp instructions executed."""
        return int(self.executions @ np.array([len(block.instructions) for block in self.program.blocks]))


@dataclass
class Report:
    """Notes are violations of the PTX specification that ptxas is known to repair."""

    faults: dict[tuple, Fault] = field(default_factory=dict)
    notes: dict[tuple, Fault] = field(default_factory=dict)
    launches: list[LaunchRecord] = field(default_factory=list)

    def add(self, fault: Fault, note: bool = False) -> None:
        """Adds a fault, or counts it if the instruction already has it."""
        entries = self.notes if note else self.faults
        key = fault.name, fault.kernel, fault.line
        if key in entries:
            entries[key].count += 1
        else:
            entries[key] = fault

    def names(self) -> set[str]:
        """The names of all faults."""
        return {fault.name for fault in self.faults.values()}

    def check(self) -> None:
        """Raises MachineError if there are faults."""
        if self.faults:
            raise MachineError("\n".join(map(str, self.faults.values())))
