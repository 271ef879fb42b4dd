"""Arithmetic, logic, moves, and conversions as numpy expressions."""

from ptx_machine.emitter import Emitter
from ptx_machine.parser import DTYPES, PtxError, immediate

_INTEGER = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "min": "minimum({0}, {1})", "max": "maximum({0}, {1})", "neg": "-{0}",
    "abs": "absolute({0})", "div": "truncated_quotient({0}, {1})", "rem": "truncated_remainder({0}, {1})",
    "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "~{0}", "clz": "count_leading_zeros({0})",
    "popc": "count_bits({0})", "brev": "reverse_bits({0})",
}  # fmt: skip
_FLOAT = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "fma": "{0} * {1} + {2}", "neg": "-{0}",
    "abs": "absolute({0})", "min": "fmin({0}, {1})", "max": "fmax({0}, {1})", "min.NaN": "minimum({0}, {1})",
    "max.NaN": "maximum({0}, {1})", "div": "{0} / {1}", "sqrt": "sqrt({0})", "rsqrt": "1 / sqrt({0})",
    "rcp": "1 / {0}", "ex2": "exp2({0})", "lg2": "log2({0})", "sin": "sin({0})", "cos": "cos({0})",
    "tanh": "tanh({0})",
}  # fmt: skip
_COMPARE = {
    "eq": "{0} == {1}", "ne": "{0} != {1}", "lt": "{0} < {1}", "le": "{0} <= {1}", "gt": "{0} > {1}",
    "ge": "{0} >= {1}", "lo": "{0} < {1}", "ls": "{0} <= {1}", "hi": "{0} > {1}", "hs": "{0} >= {1}",
}  # fmt: skip
_COMPARE_FLOAT = _COMPARE | {
    "ne": "({0} < {1}) | ({0} > {1})", "equ": "~(({0} < {1}) | ({0} > {1}))", "neu": "{0} != {1}",
    "ltu": "~({0} >= {1})", "leu": "~({0} > {1})", "gtu": "~({0} <= {1})", "geu": "~({0} < {1})",
    "num": "({0} == {0}) & ({1} == {1})", "nan": "({0} != {0}) | ({1} != {1})",
}  # fmt: skip
_ROUNDING = {"rni": "rint", "rmi": "floor", "rpi": "ceil", "rzi": "trunc"}
_LOGIC = {"and": "&", "or": "|", "xor": "^"}


class Arithmetic(Emitter):
    """Instructions that act on each lane."""

    def emit_instruction(self) -> None:
        if hasattr(self, f"op_{self.parts[0]}"):
            super().emit_instruction()
        else:
            self._elementwise(*self.instruction.operands)

    def modifiers(self, *allowed: str) -> set[str]:
        """The parts between the first and the last of the opcode, of which only some are allowed."""
        modifiers = set(self.parts[1:-1])
        if modifiers - set(allowed):
            raise PtxError(f"modifiers {sorted(modifiers - set(allowed))}")
        return modifiers

    def _elementwise(self, result, *operands) -> None:
        name, last = self.parts[0], self.parts[-1]
        modifiers = self.modifiers("rn", "ftz", "approx", "full", "NaN")
        if "NaN" in modifiers:
            name = f"{name}.NaN"
        if last in ("f16", "bf16", "f16x2", "bf16x2"):
            packed, bf16 = last.endswith("x2"), last.startswith("b")
            dtype = "u4" if packed else "u2"
            values = [f"from_half({value}, {bf16})" for value in self.values(operands, dtype)]
            self.set(result, dtype, f"to_half({_FLOAT[name].format(*values)}, {bf16}, {packed})")
            return
        dtype = self.dtype()
        values = _flushed("ftz" in modifiers, *self.values(operands, dtype))
        (value,) = _flushed("ftz" in modifiers, (_FLOAT if dtype[0] == "f" else _INTEGER)[name].format(*values))
        self.set(result, "u4" if name in ("clz", "popc") else dtype, value)

    def op_fma(self, result, *operands) -> None:
        if self.parts[-1] == "f64":
            raise PtxError("fma of f64")
        if self.parts[-1] != "f32":
            self._elementwise(result, *operands)
            return
        ftz = "ftz" in self.modifiers("rn", "ftz")
        if ftz:
            factors = [f"flush({value}).astype(f8)" for value in self.values(operands, "f4")]
        else:
            factors = [self.converted(operand, "f4", "f8") for operand in operands]
        (value,) = _flushed(ftz, f"({_FLOAT['fma'].format(*factors)}).astype(f4)")
        self.set(result, "f4", value)

    def op_mul(self, result, a, b) -> None:
        dtype = DTYPES.get(self.parts[-1], "f2")
        if dtype[0] == "f":
            self._elementwise(result, a, b)
        elif "wide" in self.modifiers("lo", "hi", "wide"):
            wide = f"{dtype[0]}{2 * int(dtype[1])}"
            self.set(result, wide, f"{self.converted(a, dtype, wide)} * {self.converted(b, dtype, wide)}")
        else:
            template = "multiply_high({}, {})" if "hi" in self.parts else "{} * {}"
            self.set(result, dtype, template.format(*self.values((a, b), dtype)))

    def op_mad(self, result, a, b, c) -> None:
        dtype = wide = self.dtype()
        if "wide" in self.modifiers("lo", "wide"):
            wide = f"{dtype[0]}{2 * int(dtype[1])}"
            a, b = (self.converted(factor, dtype, wide) for factor in (a, b))
        else:
            a, b = self.values((a, b), dtype)
        self.set(result, wide, f"{a} * {b} + {self.value(c, wide)}")

    def op_shl(self, result, a, count) -> None:
        self._shift(result, a, count, "<<", "shift_left")

    def op_shr(self, result, a, count) -> None:
        self._shift(result, a, count, ">>", "shift_right")

    def _shift(self, result, a, count, operator: str, function: str) -> None:
        dtype, constant = self.dtype(), immediate(count)
        if constant is not None and constant < 8 * int(dtype[1]):
            self.set(result, dtype, f"{self.value(a, dtype)} {operator} {self.constant(dtype, constant)}")
        else:
            self.set(result, dtype, f"{function}({self.value(a, dtype)}, {self.vector(count, 'u4')})")

    def op_bfe(self, result, a, position, length) -> None:
        dtype, position, length = self.dtype(), immediate(position), immediate(length)
        bits = 8 * int(dtype[1])
        if position is None or length is None or not 0 < length <= bits - position:
            raise PtxError("field")
        self.set(result, dtype, f"({self.value(a, dtype)} << {bits - position - length}) >> {bits - length}")

    def op_prmt(self, result, a, b, selector) -> None:
        if self.parts[1:] != ["b32"] or immediate(selector) is None:
            raise PtxError("mode or variable selector")
        a, b = self.vector(a, "u4"), self.vector(b, "u4")
        self.set(result, "u4", f"permute_bytes({a}, {b}, {immediate(selector)})")

    def op_lop3(self, result, *operands) -> None:
        *operands, table = operands
        self.set(result, "u4", f"lookup3({', '.join(self.values(operands, 'u4'))}, {immediate(table)})")

    def op_setp(self, result, a, b, *other) -> None:
        comparison, dtype = self.parts[1], self.dtype()
        modifiers = self.modifiers(comparison, "ftz", *_LOGIC)
        values = _flushed("ftz" in modifiers, *self.values((a, b), dtype))
        value = (_COMPARE_FLOAT if dtype[0] == "f" else _COMPARE)[comparison].format(*values)
        if other:
            (operator,) = modifiers & set(_LOGIC)
            value = f"({value}) {_LOGIC[operator]} {self.value(*other, 'b1')}"
        self.set(result, "b1", value)

    def op_set(self, result, a, b) -> None:
        comparison = self.parts[1]
        if self.parts[2:] != ["f16x2", "f16x2"]:
            raise PtxError("set of types other than f16x2")
        a, b = (f"from_half({value}, False)" for value in self.values((a, b), "u4"))
        self.set(result, "u4", f"to_half({_COMPARE_FLOAT[comparison].format(a, b)}, False, True)")

    def op_selp(self, result, a, b, predicate) -> None:
        a, b = self.values((a, b), self.dtype())
        self.set(result, self.dtype(), f"where({self.value(predicate, 'b1')}, {a}, {b})")

    def op_mov(self, result, source) -> None:
        dtype = self.dtype()
        if isinstance(source, tuple):
            part = f"u{int(dtype[1]) // len(source)}"
            parts = f"ascontiguousarray(stack({self.tuple(source, part)}, 1))"
            self.set(result, f"u{dtype[1]}", f"{parts}.view(u{dtype[1]}).ravel()")
        elif isinstance(result, tuple):
            part = f"u{int(dtype[1]) // len(result)}"
            self.emit(f"t = unpack({self.vector(source, dtype)}, {part})")
            self.set_all(result, part)
        elif source in self.context.wgmma_registers and not self.instruction.predicate:
            self.assign(result, "x", f"copied(W, {self.raw(source)}, {self.pc})")
        else:
            self.set(result, dtype, self.vector(source, dtype))

    def op_cvta(self, result, source) -> None:
        self.set(result, "u8", self.value(source, "u8"))

    def op_cvt(self, result, *sources) -> None:
        to, from_ = self.parts[-2:]
        modifiers = set(self.parts[1:-2])
        if modifiers - {"rn", "ftz", *_ROUNDING}:
            raise PtxError(f"modifiers {sorted(modifiers)}")
        if to in ("f16x2", "bf16x2"):
            low, high = (f"narrow({self.vector(source, 'f4')}, {to[0] == 'b'})" for source in reversed(sources))
            self.set(result, "u4", f"ascontiguousarray(stack(({low}, {high}), 1)).view(u4).ravel()")
            return
        (value,) = (self._source(source, from_) for source in sources)
        rounding = [_ROUNDING[modifier] for modifier in modifiers & set(_ROUNDING)]
        if rounding:
            value = f"{rounding[0]}({value})"
        if to == "bf16":
            self.set(result, "u2", f"narrow({value}, True)")
        elif DTYPES[to][0] == "f":
            (value,) = _flushed("ftz" in modifiers, value)
            self.set(result, DTYPES[to], f"{value}.astype({DTYPES[to]})")
        else:
            self._set_integer(result, to, value, from_float=bool(rounding))

    def _set_integer(self, result: str, to: str, value: str, from_float: bool) -> None:
        """Sets a register to a converted integer, extended to the width of the register."""
        dtype = DTYPES[to]
        extended = self.natural(result, signed=dtype[0] == "i")
        value = f"to_integer({value}, {dtype})" if from_float else f"{value}.astype({dtype})"
        self.set(result, extended, f"{value}.astype({extended})")

    def _source(self, source: str, ptx_type: str) -> str:
        """The source of a conversion, whose register may be wider than its type."""
        if ptx_type == "bf16":
            return f"from_half({self.vector(source, 'u2')}, True)"
        dtype = DTYPES[ptx_type]
        if source not in self.kernel.widths or self.kernel.widths[source] == int(dtype[1]):
            return self.vector(source, dtype)
        return f"{self.value(source, self.natural(source))}.astype(u{dtype[1]}).view({dtype})"


def _flushed(ftz: bool, *values: str) -> tuple[str, ...]:
    return tuple(f"flush({value})" for value in values) if ftz else values
