"""`cp.async`: copies from global to shared memory that complete when they are waited for."""

from dataclasses import dataclass

import numpy as np

from ptx_machine.global_access import active_lanes, record_grid_read, resolve
from ptx_machine.shadow import stamp
from ptx_machine.shared_access import checked, report
from ptx_machine.warps import Warps

u1, i8 = np.dtype("u1"), np.dtype("i8")


@dataclass
class Copy:
    """One instruction. Each lane copies `available` bytes, and fills the rest of `size` bytes with zeros."""

    targets: np.ndarray
    sources: np.ndarray
    size: int
    available: np.ndarray
    warps: np.ndarray
    pc: int


def start_copy(warps: Warps, targets, sources, size: int, available, mask, pc: int) -> None:
    """`cp.async`."""
    lanes, cta = active_lanes(mask), warps.cta
    if len(targets[lanes]) == 0:
        return
    targets = checked(warps, targets[lanes], size, pc)
    available = np.full(len(targets), size, i8) if available is None else available[lanes].astype(i8)
    if (available > size).any():
        warps.fault("cp.async with a source larger than its target", pc)
    copy = Copy(targets, sources[lanes], size, available, warps.warp[lanes], pc)
    stamps = stamp(cta.phase, copy.warps)
    report(warps, cta.shared.shadow.record_copy(targets, size, stamps, cta.phase, cta.tick()), targets, pc)
    if cta.grid.options.eager:
        _transfer(warps, copy)
    warps.open_copies.append(copy)


def commit_copies(warps: Warps) -> None:
    """`cp.async.commit_group`."""
    warps.copy_groups.append(warps.open_copies)
    warps.open_copies = []


def wait_copies(warps: Warps, groups: int) -> None:
    """`cp.async.wait_group`: completes all but the last `groups` groups."""
    cta = warps.cta
    while len(warps.copy_groups) > groups:
        for copy in warps.copy_groups.pop(0):
            if not cta.grid.options.eager:
                _transfer(warps, copy)
            cta.shared.shadow.complete_copy(copy.targets, copy.size, stamp(cta.phase, copy.warps), cta.tick())


def _transfer(warps: Warps, copy: Copy) -> None:
    data = np.zeros((len(copy.targets), copy.size), u1)
    for size in np.unique(copy.available[copy.available > 0]):
        accesses = np.flatnonzero(copy.available == size)
        data[accesses, :size] = _read(warps, copy.sources[accesses], int(size), copy)
    warps.cta.shared.rows(copy.size)[copy.targets // copy.size] = data


def _read(warps: Warps, addresses: np.ndarray, size: int, copy: Copy) -> np.ndarray:
    """The bytes [accesses, size] at these addresses."""
    data = np.zeros((len(addresses), size), u1)
    for allocation, accesses, offsets in resolve(warps, addresses, size, "read", copy.pc, alignment=copy.size):
        data[accesses] = allocation.gather(offsets, size)
        record_grid_read(warps, allocation, offsets, size, copy.pc)
    return data
