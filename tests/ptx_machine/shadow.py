"""Shadow memory: the warps and CTAs that last accessed each byte.

A stamp is phase * 64 + warp. Barriers of all warps separate phases, so accesses by different warps within a phase are
unordered. Two warp numbers are reserved: MANY, several warps; EQUAL, several warps that wrote the same value.
"""

import numpy as np

i4 = np.dtype("i4")
MANY, EQUAL = 63, 62
UNWRITTEN, COPYING = -1, 2**30  # COPYING: the target of a cp.async that has not been waited for

UNINITIALIZED = "read of uninitialized shared memory"
READ_TOO_EARLY = "read of a cp.async that has not completed"
READ_RACE = "race: read after a write by another warp, without a barrier"
WRITE_RACE = "race: write after a write by another warp, without a barrier"
OVERWRITE_RACE = "race: write after a read by another warp, without a barrier"
GRID_READ = "grid race: read of a byte that another CTA wrote"
GRID_WRITE = "grid race: write to a byte that another CTA wrote"
GRID_OVERWRITE = "grid race: write to a byte that another CTA read"


def as_rows(array: np.ndarray, size: int) -> np.ndarray:
    """A view [rows, size] without an incomplete last row."""
    return array[: len(array) // size * size].reshape(-1, size)


def stamp(phase: int, warps: np.ndarray) -> np.ndarray:
    """The stamps of accesses by these warps."""
    return (phase * 64 + warps).astype(i4)


class WarpShadow:
    """The last write and read of each byte by the warps of a CTA.

    Methods that record accesses return {fault: mask of the accesses that have it}.
    """

    def __init__(self, size: int, initialized: bool):
        self.written = np.full(size, 0 if initialized else UNWRITTEN, i4)
        self.read = np.zeros(size, i4)
        self.time = np.zeros(size, i4)  # of the last write

    def record_read(self, addresses: np.ndarray, size: int, stamps: np.ndarray, phase: int) -> dict[str, np.ndarray]:
        """Records aligned reads of `size` bytes."""
        rows, stamps, current = addresses // size, stamps[:, None], phase * 64
        written, faults = as_rows(self.written, size)[rows], {}
        unordered = (written >= current) & (written != stamps) & (written != current + EQUAL)
        if unordered.any():
            copying = (written == COPYING).any(1)
            faults[READ_TOO_EARLY] = copying
            faults[READ_RACE] = unordered.any(1) & ~copying
        if written.min() < 0:
            faults[UNINITIALIZED] = (written < 0).any(1)
        last = as_rows(self.read, size)
        others = (last[rows] >= current) & (last[rows] != stamps)
        _record(last, rows, np.where(others, current + MANY, stamps), current + MANY)
        return faults

    def record_write(
        self, addresses: np.ndarray, size: int, stamps: np.ndarray, phase: int, time: int, unchanged: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Records aligned writes. `unchanged` [accesses, size] says which bytes already have the value."""
        rows, stamps, current = addresses // size, stamps[:, None], phase * 64
        last = as_rows(self.written, size)
        unordered = (last[rows] >= current) & (last[rows] != stamps)
        equal = unordered & unchanged & (last[rows] != COPYING)
        faults = self._write_faults(rows, size, stamps, current, unordered & ~equal)
        _record(last, rows, np.where(equal, current + EQUAL, stamps), current + EQUAL)
        as_rows(self.time, size)[rows] = time
        return faults

    def record_copy(
        self, addresses: np.ndarray, size: int, stamps: np.ndarray, phase: int, time: int
    ) -> dict[str, np.ndarray]:
        """Records the start of asynchronous copies."""
        rows, stamps, current = addresses // size, stamps[:, None], phase * 64
        last = as_rows(self.written, size)
        unordered = (last[rows] >= current) & (last[rows] != stamps)
        faults = self._write_faults(rows, size, stamps, current, unordered)
        last[rows] = COPYING
        as_rows(self.time, size)[rows] = time
        return faults

    def complete_copy(self, addresses: np.ndarray, size: int, stamps: np.ndarray, time: int) -> None:
        """Turns copies that have been waited for into writes."""
        rows, last = addresses // size, as_rows(self.written, size)
        last[rows] = np.where(last[rows] == COPYING, stamps[:, None], last[rows])
        as_rows(self.time, size)[rows] = time

    def _write_faults(self, rows, size: int, stamps, current: int, raced) -> dict[str, np.ndarray]:
        readers = as_rows(self.read, size)[rows]
        return {WRITE_RACE: raced.any(1), OVERWRITE_RACE: ((readers >= current) & (readers != stamps)).any(1)}


def _record(last: np.ndarray, rows: np.ndarray, stamps: np.ndarray, several: int) -> None:
    """Stores stamps. Rows that one instruction accesses from several warps get the stamp `several`."""
    last[rows] = stamps
    lost = last[rows] != stamps
    if lost.any():
        last[rows[lost.any(1)]] = several


class GridShadow:
    """The CTAs that accessed each byte of global memory, and the warps of the running CTA that did."""

    def __init__(self, size: int):
        self.writer, self.reader = np.zeros(size, i4), np.zeros(size, i4)  # CTA + 1; 0: none, -1: several
        self.warps = WarpShadow(size, initialized=True)

    def record_read(self, addresses: np.ndarray, cta: int) -> list[str]:
        """Records reads of bytes at these addresses, and returns their faults."""
        faults = [GRID_READ] if _others(self.writer[addresses], cta).any() else []
        self.reader[addresses] = np.where(_others(self.reader[addresses], cta), -1, cta + 1)
        return faults

    def record_write(self, addresses: np.ndarray, cta: int) -> list[str]:
        """Records writes, and returns their faults."""
        faults = [GRID_WRITE] if _others(self.writer[addresses], cta).any() else []
        faults += [GRID_OVERWRITE] if _others(self.reader[addresses], cta).any() else []
        self.writer[addresses] = cta + 1
        return faults


def _others(ctas: np.ndarray, cta: int) -> np.ndarray:
    return (ctas != 0) & (ctas != cta + 1)
