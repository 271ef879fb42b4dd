"""Translates a kernel to Python: a function per basic block, a numpy operation per instruction.

Registers are vectors over lanes. The generated code calls what it needs beyond numpy by name.
"""

import numpy as np

from ptx_machine import arithmetic, async_copy, global_access, lanes, shared_access, wgmma
from ptx_machine.control_flow import basic_blocks, live_out
from ptx_machine.emit_arithmetic import Arithmetic
from ptx_machine.emit_memory import Lanes, Matrices, Memory
from ptx_machine.emitter import Context
from ptx_machine.memory import SharedMemory
from ptx_machine.parser import Kernel, parse
from ptx_machine.program import Program

_MODULES = (np, arithmetic, async_copy, global_access, lanes, shared_access, wgmma)
_DTYPES = {name: np.dtype(name) for name in ("b1", *(f"{t}{size}" for t in "iu" for size in (1, 2, 4, 8)))}
_DTYPES |= {name: np.dtype(name) for name in ("f2", "f4", "f8")}


class BlockEmitter(Arithmetic, Memory, Lanes, Matrices):
    """All instructions that the machine supports."""


def translate(ptx: str) -> Program:
    """The kernel of a PTX module.

    Raises:
        PtxError: the kernel has an instruction that is not supported. The message names its line.
    """
    kernel = parse(ptx)
    blocks, labels = basic_blocks(kernel)
    registers = sorted(kernel.widths)
    slots = {name: slot for slot, name in enumerate(registers)}
    context = Context(kernel, _shared_symbols(kernel), labels, slots, _wgmma_registers(kernel))
    functions, pc = [], 0
    for index, (block, live) in enumerate(zip(blocks, live_out(blocks, set(registers)), strict=True)):
        emitter = BlockEmitter(context, pc, index + 1, live)
        functions.append(emitter.block(f"block_{index}", len(block.instructions)))
        pc += len(block.instructions)
    source = "\n".join(functions)
    namespace = {name: value for module in _MODULES for name, value in vars(module).items()}
    namespace |= _DTYPES | context.constants
    exec(compile(source, f"<{kernel.name}>", "exec"), namespace)
    for index, block in enumerate(blocks):
        block.function = namespace[f"block_{index}"]
    return Program(kernel, blocks, registers, context.unfenced, source)


def _shared_symbols(kernel: Kernel) -> dict[str, int]:
    """The addresses of shared memory symbols. Dynamic shared memory comes last."""
    symbols, address = {}, SharedMemory.BASE
    for name, size in sorted(kernel.shared.items(), key=lambda item: -item[1]):
        symbols[name] = address
        address += size + -size % 16
    return symbols


def _wgmma_registers(kernel: Kernel) -> set[str]:
    """Registers that any wgmma accumulates in or reads."""
    operands = [
        operand
        for instruction in kernel.instructions
        if instruction.opcode.startswith("wgmma.mma_async")
        for operand in instruction.operands[:2]
    ]
    return {name for operand in operands if isinstance(operand, tuple) for name in operand}
