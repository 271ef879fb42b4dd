"""A translated kernel: basic blocks as Python functions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ptx_machine.parser import Instruction, Kernel

EXIT = -1  # stands for the end of the kernel where a block is expected


@dataclass
class Block:
    """A basic block.

    `function(warps, registers)` executes it and returns the next block. When its branch diverges, the two paths meet
    again at `join`, its immediate post-dominator; `divergent` are the blocks on the way there.
    """

    instructions: list[Instruction]
    successors: set[int]
    join: int = EXIT
    divergent: frozenset[int] = frozenset()
    function: Callable | None = None

    @cached_property
    def ends_at_barrier(self) -> bool:
        return bool(self.instructions) and self.instructions[-1].opcode in ("bar.sync", "bar.cta.sync")


@dataclass
class Program:
    """`unfenced` are indices of wgmma instructions whose registers are not ordered by wgmma.fence."""

    kernel: Kernel
    blocks: list[Block]
    registers: list[str]
    unfenced: list[int]
    source: str


@dataclass(frozen=True)
class WgmmaOp:
    """The static properties of a wgmma instruction. Slots are positions in the list of registers."""

    pc: int
    columns: int
    transposed_a: bool
    transposed_b: bool
    bf16: bool
    accumulator_slots: list[int]
    a_slots: list[int]  # empty if A is in shared memory
