"""Operands and results of instructions as Python source.

A register is an element of the list `R` between blocks. Within a block it is a local variable per dtype that it is
viewed as; `x` stands for whatever dtype it was written as. Arrays of registers are never changed in place.
"""

from dataclasses import dataclass, field

import numpy as np

from ptx_machine.parser import DTYPES, Address, Instruction, Kernel, PtxError, immediate


@dataclass
class Context:
    """What the blocks of a kernel share.

    Attributes:
        symbols: addresses of shared memory symbols.
        labels: blocks that labels refer to.
        slots: positions of registers in `R`.
        wgmma_registers: registers that some wgmma accumulates in or reads.
        constants: names that the generated code uses, and their values.
        unfenced: wgmma instructions whose registers are not ordered by wgmma.fence.
    """

    kernel: Kernel
    symbols: dict[str, int]
    labels: dict[str, int]
    slots: dict[str, int]
    wgmma_registers: set[str]
    constants: dict[str, object] = field(default_factory=dict)
    unfenced: list[int] = field(default_factory=list)


class Emitter:
    """Emits the source of one basic block. Subclasses have a method `op_NAME` for each opcode."""

    def __init__(self, context: Context, pc: int, next_block: int, live_out: set[str]):
        self.context, self.kernel = context, context.kernel
        self.pc = pc  # of the current instruction
        self.next_block, self.live_out = next_block, live_out | context.wgmma_registers
        self.lines: list[str] = []
        self.views: dict[str, list[str]] = {}  # the dtypes for which a register has a local variable
        self.changed: set[str] = set()
        self.returned = False
        self.fenced = False  # whether the block had a wgmma.fence so far
        self.changed_since_fence: set[str] = set()

    @property
    def instruction(self) -> Instruction:
        return self.kernel.instructions[self.pc]

    @property
    def parts(self) -> list[str]:
        """The parts of the current opcode."""
        return self.instruction.parts

    def block(self, name: str, count: int) -> str:
        """The source of a function that executes `count` instructions."""
        for pc in range(self.pc, self.pc + count):
            self.pc = pc
            try:
                self.emit_instruction()
            except (KeyError, TypeError, ValueError, IndexError, PtxError) as error:
                message = f"{self.kernel.name}, line {self.instruction.line}: unsupported {self.instruction.opcode}"
                raise PtxError(f"{message}: {error}") from error
        if not self.returned:
            self.leave(str(self.next_block))
        return "\n".join([f"def {name}(W, R):", *(f" {line}" for line in self.lines)])

    def emit_instruction(self) -> None:
        """Emits the current instruction."""
        getattr(self, f"op_{self.parts[0]}")(*self.instruction.operands)

    def emit(self, line: str) -> None:
        self.lines.append(line)

    def leave(self, following: str, *last_lines: str) -> None:
        """Ends the block: stores live registers, emits the last lines, and returns the block that follows."""
        for register in sorted(self.changed & self.live_out):
            self.emit(f"R[{self.context.slots[register]}] = {self.raw(register)}")
        self.lines += [*last_lines, f"return {following}"]
        self.returned = True

    def call(self, function: str, *arguments) -> None:
        """Emits `t = function(W, ..., pc)`."""
        self.emit(f"t = {function}({', '.join(map(str, ('W', *arguments, self.pc)))})")

    # Operands.

    def constant(self, dtype: str, bits: int) -> str:
        """A scalar of this dtype, given its bits."""
        size = np.dtype(dtype).itemsize
        bits %= 256**size
        name = f"k_{dtype}_{bits}"
        value = np.bool_(bits) if dtype == "b1" else np.array(bits, f"u{size}").view(dtype)[()]
        self.context.constants[name] = value
        return name

    def raw(self, register: str) -> str:
        """A variable that holds the register in any dtype."""
        if register not in self.views:
            self.emit(f"{_variable(register, 'x')} = R[{self.context.slots[register]}]")
            self.views[register] = ["x"]
        return _variable(register, self.views[register][0])

    def value(self, operand: str, dtype: str) -> str:
        """An operand as an array, or as a scalar if it is constant."""
        bits = immediate(operand)
        bits = self.context.symbols.get(operand) if bits is None else bits
        if bits is not None:
            return self.constant(dtype, bits)
        if operand not in self.kernel.widths:
            return f"special(W, {operand[1:]!r}).view({dtype})"
        self._check_width(operand, dtype)
        raw = self.raw(operand)
        if dtype == "b1":
            return raw
        return self._view(operand, dtype, f"{raw}.view({dtype})")

    def values(self, operands, dtype: str) -> list[str]:
        return [self.value(operand, dtype) for operand in operands]

    def vector(self, operand: str, dtype: str) -> str:
        """An operand as an array, also if it is constant."""
        value = self.value(operand, dtype)
        return f"splat(W, {value})" if value in self.context.constants else value

    def tuple(self, operands, dtype: str) -> str:
        """Operands as a tuple of arrays."""
        operands = operands if isinstance(operands, tuple) else (operands,)
        return f"({', '.join(self.vector(operand, dtype) for operand in operands)},)"

    def converted(self, operand: str, dtype: str, wide: str) -> str:
        """An operand of one dtype, converted to another."""
        bits = immediate(operand)
        if bits is not None:
            scalar = np.array([bits % 256 ** int(dtype[1])], f"u{dtype[1]}").view(dtype).astype(wide)
            return self.constant(wide, int(scalar.view(f"u{wide[1]}")[0]))
        value = self.value(operand, dtype)
        if operand not in self.kernel.widths:
            return f"{value}.astype({wide})"
        return self._view(operand, f"{dtype}_{wide}", f"{value}.astype({wide})")

    def _view(self, register: str, view: str, expression: str) -> str:
        name = _variable(register, view)
        if view not in self.views[register]:
            self.emit(f"{name} = {expression}")
            self.views[register].append(view)
        return name

    def address(self, address: Address, dtype: str) -> str:
        base = self.vector(address.base, dtype)
        return f"{base} + {self.constant(dtype, address.offset)}" if address.offset else base

    def mask(self) -> str:
        """The predicate of the current instruction as an expression."""
        if self.instruction.predicate is None:
            return "None"
        return ("~" if self.instruction.negated else "") + self.value(self.instruction.predicate, "b1")

    def unpredicated(self) -> None:
        """Rejects a predicate on the current instruction."""
        if self.instruction.predicate is not None:
            raise PtxError("predicate")

    # Results.

    def set(self, register: str, dtype: str, value: str) -> None:
        """Assigns the result of the current instruction to a register, where its predicate is true."""
        if register == "_":
            return
        self._check_width(register, dtype)
        if self.instruction.predicate:
            value = f"where({self.mask()}, {value}, {self.value(register, dtype)})"
        self.assign(register, dtype, value)

    def assign(self, register: str, dtype: str, value: str) -> None:
        self.emit(f"{_variable(register, dtype)} = {value}")
        self.views[register] = [dtype]
        self.changed.add(register)
        self.changed_since_fence.add(register)

    def set_all(self, registers, dtype: str) -> None:
        """Assigns the rows of `t`."""
        for k, register in enumerate(registers if isinstance(registers, tuple) else (registers,)):
            self.set(register, dtype, f"t[{k}]")

    def dtype(self) -> str:
        """The dtype of the last part of the current opcode."""
        return DTYPES[self.parts[-1]]

    def natural(self, register: str, signed: bool = False) -> str:
        """The integer dtype that has the width of the register."""
        return f"{'i' if signed else 'u'}{self.kernel.widths[register]}"

    def _check_width(self, register: str, dtype: str) -> None:
        width = self.kernel.widths[register]
        if width != (0 if dtype == "b1" else int(dtype[1])):
            raise PtxError(f"register {register} of {width} bytes used as {dtype}")


def _variable(register: str, dtype: str) -> str:
    return f"{register.replace('%', '')}_{dtype}"
