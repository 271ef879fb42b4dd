"""`wgmma`: products of four warps, which read shared memory and registers until they are waited for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ptx_machine.arithmetic import matrix_product
from ptx_machine.fragments import pack_accumulator, tile_addresses, unpack_a, unpack_accumulator
from ptx_machine.program import WgmmaOp
from ptx_machine.shadow import COPYING, MANY, READ_RACE, READ_TOO_EARLY, UNINITIALIZED, stamp
from ptx_machine.warps import Warps

f4, u4 = np.dtype("f4"), np.dtype("u4")
READ_IN_FLIGHT = "register of a wgmma in flight is read"
COPIED_IN_FLIGHT = "register of a wgmma in flight is copied"
OVERWRITTEN_IN_FLIGHT = "register of a wgmma in flight is overwritten"
MEMORY_OVERWRITTEN = "write to shared memory that a wgmma in flight reads"
NOT_FENCED = "wgmma reads a write that no fence.proxy.async orders"


class InFlight:
    """A register that a wgmma accumulates in, or an operand that it reads, until the wgmma is waited for."""

    def __init__(self, wgmma: Wgmma, slot: int, position: int, operand: np.ndarray | None = None):
        self.wgmma, self.slot, self.position, self.operand = wgmma, slot, position, operand

    def view(self, dtype: np.dtype) -> np.ndarray:
        """Called by any use of the register. Reports it if the wgmma is in flight."""
        if not self.wgmma.done:
            role = "accumulator" if self.operand is None else "operand"
            self.wgmma.warps.fault(READ_IN_FLIGHT, self.wgmma.op.pc, f"{role} {self.position}")
        return self.value().view(dtype)

    def value(self) -> np.ndarray:
        return self.wgmma.registers()[self.position] if self.operand is None else self.operand


@dataclass
class Wgmma:
    """D += A @ B, of which each warp has 16 rows.

    Attributes:
        accumulators: the registers of D before: arrays, or those of an earlier wgmma in flight.
        a: registers [4, lanes], or the addresses [W, 16, 16] of A in shared memory.
        b: addresses [1 or W, columns, 16].
        done: whether it has been waited for.
        superseded: whether another wgmma accumulates in the same registers.
    """

    warps: Warps
    op: WgmmaOp
    accumulates: bool
    accumulators: list
    a: np.ndarray
    b: np.ndarray
    start: int
    done: bool = False
    superseded: bool = False
    in_flight: list[InFlight] = field(default_factory=list)
    result: np.ndarray | None = None
    result_registers: np.ndarray | None = None

    def compute(self) -> np.ndarray:
        """D [W, 16, columns], from the present contents of shared memory when first called."""
        if self.result is None:
            memory, W = self.warps.cta.shared.views[2], self.warps.count
            a = unpack_a(self.a, W) if self.op.a_slots else memory[self.a >> 1]
            b = memory[self.b >> 1].transpose(0, 2, 1)
            d = matrix_product(a.reshape(len(b), -1, 16), b, self.op.bf16).reshape(W, 16, self.op.columns)
            self.result = d + self._accumulator() if self.accumulates else d
            self.accumulators = []
        return self.result

    def _accumulator(self) -> np.ndarray:
        first = self.accumulators[0]
        if isinstance(first, InFlight) and self.accumulators == first.wgmma.in_flight[: len(self.accumulators)]:
            return first.wgmma.compute()
        values = [value.value() if isinstance(value, InFlight) else value for value in self.accumulators]
        return unpack_accumulator(np.stack([value.view(f4) for value in values]), self.warps.count)

    def registers(self) -> np.ndarray:
        """The registers of D."""
        if self.result_registers is None:
            self.result_registers = pack_accumulator(self.compute())
        return self.result_registers

    def memory_operands(self) -> list[np.ndarray]:
        """Addresses of operands in shared memory."""
        return [self.b] if self.op.a_slots else [self.a, self.b]


def start_wgmma(warps: Warps, op: WgmmaOp, accumulators: list, a, b, scale) -> list[InFlight]:
    """`wgmma.mma_async`. Returns the registers that are in flight: accumulators, then registers of A.

    Args:
        a: registers, or the descriptor in each lane.
        b: the descriptor in each lane.
        scale: whether to add the accumulators, in each lane.
    """
    if any((value.reshape(-1, 32) != value.reshape(-1, 32)[:, :1]).any() for value in (b, scale)):
        warps.fault("operands of a wgmma differ between lanes", op.pc)
    a = np.stack([_operand(value) for value in a]) if op.a_slots else _a_addresses(warps, op, a)
    tiles = [tile_addresses(descriptor, op.columns, op.transposed_b) for descriptor in b[::32].tolist()]
    b_addresses = _checked_operand(warps, np.stack(tiles), op.pc)
    if (b == b[0]).all():
        b_addresses = b_addresses[:1]
    for value in accumulators:
        if isinstance(value, InFlight) and value.operand is None:
            value.wgmma.superseded = True
    wgmma = Wgmma(warps, op, bool(scale[0]), accumulators, a, b_addresses, warps.cta.time)
    wgmma.in_flight = [InFlight(wgmma, slot, k) for k, slot in enumerate(op.accumulator_slots)]
    wgmma.in_flight += [InFlight(wgmma, slot, k, a[k]) for k, slot in enumerate(op.a_slots)]
    for register in wgmma.in_flight:
        warps.registers[register.slot] = register
    if warps.cta.grid.options.eager:
        wgmma.compute()
    warps.open_wgmmas.append(wgmma)
    return wgmma.in_flight


def _a_addresses(warps: Warps, op: WgmmaOp, descriptors: np.ndarray) -> np.ndarray:
    """The addresses [W, 16, 16] of the rows of A that belong to each warp."""
    tiles = [tile_addresses(descriptor, 64, op.transposed_a) for descriptor in descriptors[::32].tolist()]
    rows = [tile[warp % 4 * 16 :][:16] for tile, warp in zip(tiles, warps.warp_ids, strict=True)]
    return _checked_operand(warps, np.stack(rows), op.pc)


def commit_wgmma(warps: Warps) -> None:
    """`wgmma.commit_group`."""
    warps.wgmma_groups.append(warps.open_wgmmas)
    warps.open_wgmmas = []


def wait_wgmma(warps: Warps, groups: int) -> None:
    """`wgmma.wait_group`: completes all but the last `groups` groups, and replaces their registers by values."""
    while len(warps.wgmma_groups) > groups:
        for wgmma in warps.wgmma_groups.pop(0):
            wgmma.compute()
            _complete(warps, wgmma)
    for slot, value in enumerate(warps.registers):
        if isinstance(value, InFlight) and value.wgmma.done:
            warps.registers[slot] = value.value()


def copied(warps: Warps, value: np.ndarray | InFlight, pc: int) -> np.ndarray | InFlight:
    """A move of a register that may be in flight."""
    if isinstance(value, InFlight) and not value.wgmma.done:
        warps.fault(COPIED_IN_FLIGHT, pc, f"position {value.position}")
    return value


def fence_proxy(warps: Warps) -> None:
    """`fence.proxy.async`: makes earlier writes visible to wgmma."""
    warps.proxy_fences = [*warps.proxy_fences[-15:], (warps.cta.phase, warps.cta.tick())]


def _operand(value: np.ndarray | InFlight) -> np.ndarray:
    """A register of A, which may be an operand of another wgmma in flight, but not its accumulator."""
    return value.operand if isinstance(value, InFlight) and value.operand is not None else value.view(u4)


def _complete(warps: Warps, wgmma: Wgmma) -> None:
    """Marks a wgmma as done, and checks that its memory and registers were left alone while it was in flight."""
    wgmma.done = True
    shadow = warps.cta.shared.shadow
    for addresses in wgmma.memory_operands():
        if shadow.time[addresses].max() > wgmma.start:
            warps.fault(MEMORY_OVERWRITTEN, wgmma.op.pc)
        shadow.read[addresses] = _reader(warps)
    for register in wgmma.in_flight:
        present = warps.registers[register.slot]
        if present is register or wgmma.superseded:
            continue
        reread = isinstance(present, InFlight) and register.operand is not None and present.operand is not None
        if not reread:
            warps.fault(OVERWRITTEN_IN_FLIGHT, wgmma.op.pc, f"register {register.position}")


def _checked_operand(warps: Warps, addresses: np.ndarray, pc: int) -> np.ndarray:
    """Addresses [W, rows, 16] of an operand in shared memory, those out of bounds replaced. Reports faults."""
    shared = warps.cta.shared
    first, last = shared.BASE, shared.end - 2
    if addresses.min() < first or addresses.max() > last:
        detail = f"{addresses.min() - first} to {addresses.max() + 2 - first} of {shared.size}"
        warps.fault("out-of-bounds operand of a wgmma", pc, detail)
        addresses = addresses.clip(first, last)
    _check_writes(warps, addresses.reshape(warps.count, -1), pc)
    shared.shadow.read[addresses] = _reader(warps)
    return addresses


def _reader(warps: Warps) -> np.ndarray:
    """The stamp of a read by these warps."""
    return stamp(warps.cta.phase, np.array(MANY) if warps.count > 1 else warps.warp_ids)


def _check_writes(warps: Warps, addresses: np.ndarray, pc: int) -> None:
    """Checks that each warp's addresses [W, elements] are written, behind a barrier and a proxy fence."""
    cta, shadow = warps.cta, warps.cta.shared.shadow
    written, phase = shadow.written[addresses], cta.phase
    by = "by a wgmma"
    if written.min() < 0:
        warps.fault(UNINITIALIZED, pc, by)
    if (written == COPYING).any():
        warps.fault(READ_TOO_EARLY, pc, by)
    elif ((written >= phase * 64) & (written != stamp(phase, warps.warp_ids)[:, None])).any():
        warps.fault(READ_RACE, pc, by)
    last_fence = warps.proxy_fences[-1][0] if warps.proxy_fences else -1
    if written.max() >> 6 < max(last_fence, 1):
        return  # these warps fenced in a later phase than that of the last write, so every write is covered
    times = shadow.time[addresses]
    for write in np.unique(written[(written != COPYING) & (written >= 64)]).tolist():
        if not cta.is_fenced(write >> 6, write & 63, int(times[written == write].max()), warps):
            warps.fault(NOT_FENCED, pc, f"written by warp {write & 63}")
            return
