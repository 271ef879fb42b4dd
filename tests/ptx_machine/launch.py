"""Executes a launch: the CTAs of a grid, one after another."""

import random
import time

import numpy as np

from ptx_machine.cta import CTA
from ptx_machine.grid import Grid, Options
from ptx_machine.memory import GlobalMemory
from ptx_machine.program import Program
from ptx_machine.report import Fault, LaunchRecord, Report


def launch(
    program: Program,
    size: tuple[int, int, int],
    arguments: list[tuple[str, int, int] | int | float],
    shared_size: int,
    report: Report,
    options: Options,
) -> None:
    """Executes a kernel.

    Args:
        size: of the grid.
        arguments: for each parameter a number, or the (name, pointer, bytes) of a tensor.
        shared_size: bytes of shared memory.
        report: gets faults, and a record of the launch.
    """
    start = time.perf_counter()
    memory = GlobalMemory({tensor[0]: tensor[1:] for tensor in arguments if isinstance(tensor, tuple)})
    params = _params(program, arguments, memory)
    executions = np.zeros(len(program.blocks), np.int64)
    grid = Grid(program, size, params, memory, shared_size, report, options, executions)
    for instruction in (program.kernel.instructions[pc] for pc in program.unfenced):
        name, detail = "wgmma registers not ordered by wgmma.fence", "ptxas inserts one (C7519) or serializes"
        report.add(Fault(name, program.kernel.name, instruction.source, instruction.line, detail), note=True)
    order = list(range(int(np.prod(size))))
    random.Random(options.seed).shuffle(order)
    phase = 1
    for index in order:
        cta = CTA(grid, index, phase)
        cta.run()
        phase = cta.phase + 1
    report.launches.append(LaunchRecord(program, size, executions, time.perf_counter() - start))


def _params(program: Program, arguments: list, memory: GlobalMemory) -> list[bytes]:
    """The bytes of the parameters."""
    bases = {allocation.name: allocation.base for allocation in memory.allocations}
    params = []
    for (_, ptx_type), argument in zip(program.kernel.params, arguments, strict=True):
        bits = int(ptx_type[1:])
        if ptx_type[0] == "f":
            params.append(np.array(argument, f"f{bits // 8}").tobytes())
        else:
            value = bases[argument[0]] if isinstance(argument, tuple) else int(argument) % 2**bits
            params.append(value.to_bytes(bits // 8, "little"))
    return params
