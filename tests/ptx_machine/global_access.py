"""Loads and stores of global memory, checked."""

import numpy as np

from ptx_machine.memory import Allocation
from ptx_machine.shadow import stamp
from ptx_machine.warps import Warps

u1 = np.dtype("u1")
ALL = slice(None)
CONFLICT = "lanes of a store write different values to the same address"


def active_lanes(mask: np.ndarray | None) -> np.ndarray | slice:
    """The lanes whose predicate is true, as a slice if that is all of them."""
    return ALL if mask is None else np.flatnonzero(mask)


def load_global(warps: Warps, addresses, mask, width: int, count: int, pc: int) -> np.ndarray:
    """`count` values of `width` bytes in each lane: [count, lanes], 0 where the mask is false."""
    loaded = np.zeros((count, warps.lanes), f"u{width}")
    lanes = active_lanes(mask)
    addresses = addresses[lanes]
    if len(addresses) == 0:
        return loaded
    values = np.zeros((count, len(addresses)), f"u{width}")
    for allocation, accesses, offsets in resolve(warps, addresses, width * count, "read", pc):
        _record_read(warps, allocation, offsets, width * count, warps.warp[lanes][accesses], pc)
        if width in allocation.views:
            values[:, accesses] = allocation.views[width][offsets // width + np.arange(count)[:, None]]
        else:
            values[:, accesses] = allocation.gather(offsets, width * count).view(f"u{width}").T
    loaded[:, lanes] = values
    return loaded


def store_global(warps: Warps, addresses, values, mask, pc: int) -> None:
    """Stores one value or a vector of values of each lane."""
    lanes = active_lanes(mask)
    addresses = addresses[lanes]
    if len(addresses) == 0:
        return
    data = np.stack(values, 1)[lanes].view(u1)  # [accesses, bytes]
    size = data.shape[1]
    for allocation, accesses, offsets in resolve(warps, addresses, size, "write", pc):
        written = data[accesses]
        _record_write(warps, allocation, offsets, written, warps.warp[lanes][accesses], pc)
        allocation.bytes[offsets[:, None] + np.arange(size)] = written
        if (allocation.gather(offsets, size) != written).any():
            warps.fault(CONFLICT, pc, f"in {allocation.name}")


def resolve(warps: Warps, addresses, size: int, action: str, pc: int, alignment: int = 0) -> list[tuple]:
    """The allocations that are accessed, as in `GlobalMemory.resolve`. Reports misaligned and other addresses.

    `alignment` is `size` unless given.
    """
    if (addresses % np.uint64(alignment or size)).any():
        warps.fault("misaligned access of global memory", pc, f"{alignment or size} bytes")
    memory = warps.cta.grid.memory
    inside, outside = memory.resolve(addresses, size)
    if outside is not None:
        place = memory.describe(int(addresses[outside][0]))
        warps.fault(f"out-of-bounds {action} of global memory", pc, f"{size} bytes at {place}")
    return inside


def _record_read(warps: Warps, allocation: Allocation, offsets, size: int, warp_of_access, pc: int) -> None:
    places, phase = record_grid_read(warps, allocation, offsets, size, pc), warps.cta.phase
    stamps = stamp(phase, warp_of_access).repeat(size)
    _report(warps, allocation, allocation.shadow.warps.record_read(places.ravel(), 1, stamps, phase), pc)


def record_grid_read(warps: Warps, allocation: Allocation, offsets, size: int, pc: int) -> np.ndarray:
    """Checks reads against the accesses of other CTAs. Returns the bytes that are read, in the shadow."""
    places = offsets[:, None] + allocation.shadow_offset + np.arange(size)
    for fault in allocation.shadow.record_read(places, warps.cta.index):
        warps.fault(fault, pc, f"of {allocation.name}")
    return places


def _record_write(warps: Warps, allocation: Allocation, offsets, data, warp_of_access, pc: int) -> None:
    shadow, size, phase = allocation.shadow, data.shape[1], warps.cta.phase
    places = offsets[:, None] + allocation.shadow_offset + np.arange(size)
    for fault in shadow.record_write(places, warps.cta.index):
        warps.fault(fault, pc, f"of {allocation.name}")
    stamps = stamp(phase, warp_of_access).repeat(size)
    unchanged = (allocation.gather(offsets, size) == data).reshape(-1, 1)
    _report(warps, allocation, shadow.warps.record_write(places.ravel(), 1, stamps, phase, 0, unchanged), pc)


def _report(warps: Warps, allocation: Allocation, faults: dict[str, np.ndarray], pc: int) -> None:
    for fault, accesses in faults.items():
        if accesses.any():
            warps.fault(f"global {fault}", pc, f"of {allocation.name}")
