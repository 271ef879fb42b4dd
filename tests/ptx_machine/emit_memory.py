"""Loads, stores, asynchronous copies, and control flow as calls of the machine."""

from ptx_machine.emitter import Emitter
from ptx_machine.parser import PtxError, immediate
from ptx_machine.program import WgmmaOp

_ADDRESS = {"shared": "u4", "global": "u8"}


class Memory(Emitter):
    """Instructions that access memory or end a block."""

    def _space(self) -> str:
        """The address space of the current instruction."""
        spaces = {"shared", "shared_cta", "global", "local", "const", "param"} & set(self.parts)
        if len(spaces) != 1 or spaces & {"local", "const"}:
            raise PtxError("address space")
        return spaces.pop().removesuffix("_cta")

    def op_ld(self, results, address) -> None:
        results = results if isinstance(results, tuple) else (results,)
        dtype, space = self.dtype(), self._space()
        if space == "param":
            position = [name for name, _ in self.kernel.params].index(address.base)
            self.emit(f"t = [param(W, {position}, {address.offset}, {dtype})]")
        else:
            address = self.address(address, _ADDRESS[space])
            self.call(f"load_{space}", address, self.mask(), dtype[1], len(results))
        bits = dtype.replace("f", "u")
        for k, register in enumerate(results):
            extended = self.natural(register, signed=dtype[0] == "i")
            self.set(register, extended, f"t[{k}].view({bits}).astype({extended}, copy=False)")

    def op_st(self, address, values) -> None:
        space, dtype = self._space(), f"u{self.dtype()[1]}"
        if space == "param":
            raise PtxError("address space")
        values = values if isinstance(values, tuple) else (values,)
        narrowed = ", ".join(self._narrowed(value, dtype) for value in values)
        self.call(f"store_{space}", self.address(address, _ADDRESS[space]), f"({narrowed},)", self.mask())

    def _narrowed(self, value: str, dtype: str) -> str:
        """A value to store, whose register may be wider than the access."""
        if value not in self.kernel.widths or self.natural(value) == dtype:
            return self.vector(value, dtype)
        return f"{self.value(value, self.natural(value))}.astype({dtype})"

    def op_cp(self, *operands) -> None:
        opcode = self.instruction.opcode
        if opcode == "cp.async.commit_group":
            self.emit("commit_copies(W)")
        elif opcode == "cp.async.wait_group":
            self.emit(f"wait_copies(W, {immediate(operands[0])})")
        elif opcode == "cp.async.wait_all":
            self.emit("commit_copies(W)")
            self.emit("wait_copies(W, 0)")
        elif opcode.startswith(("cp.async.ca.shared", "cp.async.cg.shared")):
            target, source, size, *source_size = operands
            addresses = self.address(target, "u4"), self.address(source, "u8")
            available = self.vector(source_size[0], "u4") if source_size else "None"
            self.call("start_copy", *addresses, immediate(size), available, self.mask())
        else:
            raise PtxError("copy")

    def op_bra(self, label) -> None:
        target = self.context.labels[label]
        if self.instruction.predicate is None:
            self.leave(str(target))
        else:
            self.leave(f"W.branch({self.mask()}, {target}, {self.next_block})")

    def op_ret(self) -> None:
        self.unpredicated()
        self.leave("-1")

    op_exit = op_ret

    def op_bar(self, *operands) -> None:
        if self.instruction.opcode == "bar.warp.sync":
            return
        self.unpredicated()
        if self.instruction.opcode not in ("bar.sync", "bar.cta.sync") or operands != ("0",):
            raise PtxError("barrier other than bar.sync 0 of all warps")
        self.leave(str(self.next_block))

    def op_fence(self) -> None:
        if self.instruction.opcode != "fence.proxy.async.shared::cta":
            raise PtxError("fence")
        self.emit("fence_proxy(W)")


class Lanes(Emitter):
    """Instructions that exchange values between the lanes of a warp."""

    def op_shfl(self, result, value, lane, clamp, _members) -> None:
        self.unpredicated()
        result, valid = result if isinstance(result, tuple) else (result, "_")
        lane = self.value(lane, "u4") if immediate(lane) is None else immediate(lane)
        self.emit(f"t = shuffle(W, {self.vector(value, 'u4')}, {self.parts[2]!r}, {lane}, {int(clamp, 0)})")
        self.set(result, "u4", "t[0]")
        self.set(valid, "b1", "t[1]")

    def op_redux(self, result, value, _members) -> None:
        functions = {
            "add": "add", "min": "minimum", "max": "maximum", "and": "bitwise_and", "or": "bitwise_or",
            "xor": "bitwise_xor",
        }  # fmt: skip
        dtype = self.dtype()
        rows = f"{self.vector(value, dtype)}.reshape(-1, 32)"
        self.set(result, dtype, f"{functions[self.parts[2]]}.reduce({rows}, 1, {dtype}).repeat(32)")

    def op_ldmatrix(self, results, address) -> None:
        count = self._matrix_count(results)
        self.call("load_matrices", self.address(address, "u4"), count, "trans" in self.parts)
        self.set_all(results, "u4")

    def op_stmatrix(self, address, values) -> None:
        self._matrix_count(values)
        self.call("store_matrices", self.address(address, "u4"), self.tuple(values, "u4"), "trans" in self.parts)

    def _matrix_count(self, registers) -> int:
        """The number of 8 x 8 matrices that ldmatrix or stmatrix accesses."""
        self.unpredicated()
        count = len(registers) if isinstance(registers, tuple) else 1
        if self.parts[1:5] != ["sync", "aligned", "m8n8", f"x{count}"] or self.parts[-1] != "b16":
            raise PtxError("shape")
        return count


class Matrices(Emitter):
    """Matrix products of a warp (mma) and of four warps (wgmma)."""

    def op_mma(self, results, a, b, c) -> None:
        self.unpredicated()
        *shape, a_type, b_type, c_type = self.parts[1:]
        if shape != ["sync", "aligned", "m16n8k16", "row", "col", "f32"] or c_type != "f32":
            raise PtxError("shape or accumulator")
        bf16 = self._is_bf16(a_type, b_type)
        self.emit(f"t = mma(W, {self.tuple(a, 'u4')}, {self.tuple(b, 'u4')}, {self.tuple(c, 'f4')}, {bf16})")
        self.set_all(results, "f4")

    def _is_bf16(self, a_type: str, b_type: str) -> bool:
        if a_type not in ("f16", "bf16") or a_type != b_type:
            raise PtxError("type")
        return a_type == "bf16"

    def op_wgmma(self, *operands) -> None:
        self.unpredicated()
        action = self.parts[1]
        if action == "mma_async":
            self._wgmma(*operands)
        elif action == "commit_group":
            self.emit("commit_wgmma(W)")
        elif action == "wait_group":
            # Ends the block, because results in flight are replaced by their values in R.
            self.leave(str(self.next_block), f"wait_wgmma(W, {immediate(operands[0])})")
        elif action == "fence":
            self.fenced, self.changed_since_fence = True, set()
        else:
            raise PtxError("wgmma")

    def _wgmma(self, results, a, b, scale, *flags) -> None:
        sync, aligned, shape, c_type, a_type, b_type = self.parts[2:]
        columns, depth = map(int, shape.removeprefix("m64n").split("k"))
        flags = [immediate(flag) for flag in flags]
        if (sync, aligned, c_type, depth) != ("sync", "aligned", "f32", 16) or flags[:2] != [1, 1]:
            raise PtxError("shape or accumulator")
        if len(results) != columns // 2:
            raise PtxError("number of registers")
        a_registers = a if isinstance(a, tuple) else ()
        transposed_a, transposed_b = (0, flags[2]) if a_registers else flags[2:]
        slots = [[self.context.slots[name] for name in names] for names in (results, a_registers)]
        name = f"wgmma_{self.pc}"
        self.context.constants[name] = WgmmaOp(
            self.pc, columns, bool(transposed_a), bool(transposed_b), self._is_bf16(a_type, b_type), *slots
        )
        registers = [*results, *a_registers]
        if not self.fenced or self.changed_since_fence & set(registers):
            self.context.unfenced.append(self.pc)
        accumulators = f"[{', '.join(map(self.raw, results))}]"
        a = f"[{', '.join(map(self.raw, a))}]" if a_registers else self.value(a, "u8")
        self.emit(f"t = start_wgmma(W, {name}, {accumulators}, {a}, {self.value(b, 'u8')}, {self.vector(scale, 'b1')})")
        for k, register in enumerate(registers):
            self.assign(register, "x", f"t[{k}]")
        self.changed_since_fence -= set(registers)
