"""Loads and stores of shared memory, checked."""

import numpy as np

from ptx_machine.fragments import pack_matrices, unpack_matrices
from ptx_machine.global_access import CONFLICT, active_lanes
from ptx_machine.memory import SharedMemory
from ptx_machine.shadow import stamp
from ptx_machine.warps import Warps

u1, u2, i8 = np.dtype("u1"), np.dtype("u2"), np.dtype("i8")


def load_shared(warps: Warps, addresses, mask, width: int, count: int, pc: int) -> np.ndarray:
    """`count` values of `width` bytes in each lane: [count, lanes], 0 where the mask is false."""
    lanes = active_lanes(mask)
    loaded = np.zeros((count, warps.lanes), f"u{width}")
    if len(addresses[lanes]):
        loaded[:, lanes] = _read(warps, addresses[lanes], width * count, warps.warp[lanes], pc).view(f"u{width}").T
    return loaded


def store_shared(warps: Warps, addresses, values, mask, pc: int) -> None:
    """Stores one value or a vector of values of each lane."""
    lanes = active_lanes(mask)
    if len(addresses[lanes]):
        _write(warps, addresses[lanes], np.stack(values, 1)[lanes], warps.warp[lanes], pc)


def load_matrices(warps: Warps, addresses, count: int, trans: bool, pc: int) -> np.ndarray:
    """`ldmatrix`: registers [count, lanes]. Lanes 8 k to 8 k + 7 have the addresses of the rows of matrix k."""
    lanes = np.flatnonzero(warps.lane < 8 * count)
    rows = _read(warps, addresses[lanes], 16, warps.warp[lanes], pc).view(u2)
    return pack_matrices(rows.reshape(warps.count, count, 8, 8), trans)


def store_matrices(warps: Warps, addresses, values, trans: bool, pc: int) -> None:
    """`stmatrix`."""
    lanes = np.flatnonzero(warps.lane < 8 * len(values))
    matrices = unpack_matrices(np.stack(values), warps.count, trans)
    _write(warps, addresses[lanes], matrices.reshape(len(lanes), 8), warps.warp[lanes], pc)


def checked(warps: Warps, addresses, size: int, pc: int) -> np.ndarray:
    """The addresses as integers. Reports those that are misaligned or out of bounds, and replaces them."""
    shared, addresses = warps.cta.shared, addresses.astype(i8)
    invalid = (addresses < SharedMemory.BASE) | (addresses > shared.end - size) | (addresses % size != 0)
    if invalid.any():
        offset = int(addresses[invalid][0]) - SharedMemory.BASE
        detail = f"{size} bytes at {offset} of {shared.size}"
        warps.fault("misaligned or out-of-bounds access of shared memory", pc, detail)
    return np.where(invalid, SharedMemory.BASE, addresses)


def report(warps: Warps, faults: dict[str, np.ndarray], addresses: np.ndarray, pc: int) -> None:
    """Reports faults of accesses."""
    for fault, accesses in faults.items():
        if accesses.any():
            warps.fault(fault, pc, f"at {int(addresses[accesses][0]) - SharedMemory.BASE}")


def _read(warps: Warps, addresses, size: int, warp_of_access, pc: int) -> np.ndarray:
    """The bytes [accesses, size] at these addresses."""
    cta, addresses = warps.cta, checked(warps, addresses, size, pc)
    stamps = stamp(cta.phase, warp_of_access)
    report(warps, cta.shared.shadow.record_read(addresses, size, stamps, cta.phase), addresses, pc)
    return cta.shared.rows(size)[addresses // size]


def _write(warps: Warps, addresses, values: np.ndarray, warp_of_access, pc: int) -> None:
    """Writes values [accesses, count]."""
    cta, data = warps.cta, np.ascontiguousarray(values).view(u1)
    size = data.shape[1]
    addresses = checked(warps, addresses, size, pc)
    memory, rows = cta.shared.rows(size), addresses // size
    stamps, unchanged = stamp(cta.phase, warp_of_access), memory[rows] == data
    faults = cta.shared.shadow.record_write(addresses, size, stamps, cta.phase, cta.tick(), unchanged)
    report(warps, faults, addresses, pc)
    memory[rows] = data
    if (memory[rows] != data).any():
        warps.fault(CONFLICT, pc, "in shared memory")
