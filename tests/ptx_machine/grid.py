"""What the CTAs of a launch share."""

from dataclasses import dataclass

import numpy as np

from ptx_machine.memory import GlobalMemory
from ptx_machine.program import Program
from ptx_machine.report import Report


@dataclass(frozen=True)
class Options:
    """How to execute.

    Attributes:
        seed: of the order of CTAs, and of the warps of a CTA between barriers.
        lockstep: execute all warps of a CTA as one vector, which is three times as fast. The checks are the same.
        eager: let cp.async and wgmma act when they are issued, rather than when they are waited for.
    """

    seed: int = 0
    lockstep: bool = False
    eager: bool = False


@dataclass
class Grid:
    """`params` are the bytes of each parameter; `executions[k]` counts the warps that executed basic block k."""

    program: Program
    size: tuple[int, int, int]
    params: list[bytes]
    memory: GlobalMemory
    shared_size: int
    report: Report
    options: Options
    executions: np.ndarray
