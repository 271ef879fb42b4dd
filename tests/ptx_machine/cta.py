"""A CTA: its warps, their shared memory, and the order in which they execute."""

import random

import numpy as np

from ptx_machine.async_copy import commit_copies, wait_copies
from ptx_machine.grid import Grid
from ptx_machine.memory import SharedMemory
from ptx_machine.shadow import EQUAL
from ptx_machine.warps import Diverged, Stop, Warps


class Deadlock(Exception):  # noqa: N818
    """Warps wait at a barrier that other warps never reach."""


class CTA:
    """Phases, which barriers separate, are counted across all CTAs of a launch; `phase` is the first one."""

    def __init__(self, grid: Grid, index: int, phase: int):
        self.grid, self.index, self.phase, self.time = grid, index, phase, 1
        self.shared = SharedMemory(grid.shared_size)
        self.random = random.Random(grid.options.seed * 7919 + index)
        x, y, z = grid.size
        place = {"ctaid.x": index % x, "ctaid.y": index // x % y, "ctaid.z": index // (x * y)}
        self.special = place | {"nctaid.x": x, "nctaid.y": y, "nctaid.z": z, "ntid.x": grid.program.kernel.threads}
        self.special |= {"ntid.y": 1, "ntid.z": 1, "tid.y": 0, "tid.z": 0}
        tid = np.arange(grid.program.kernel.threads)
        parts = [tid] if grid.options.lockstep else tid.reshape(-1, 32)
        self.warps = [Warps(self, part, self._uninitialized(len(part))) for part in parts]

    def _uninitialized(self, lanes: int) -> list[np.ndarray]:
        """Registers with arbitrary contents: False, or all bits set."""
        contents = {width: np.full(lanes, 256**width - 1, f"u{width}") for width in (1, 2, 4, 8)}
        contents[0] = np.zeros(lanes, bool)
        kernel = self.grid.program.kernel
        return [contents[kernel.widths[name]] for name in self.grid.program.registers]

    def tick(self) -> int:
        """Advances the clock that orders events within the CTA."""
        self.time += 1
        return self.time

    def run(self) -> None:
        """Executes all warps to the end.

        Raises:
            Deadlock: some warps exit while others wait at a barrier.
        """
        ready, waiting, exited = list(self.warps), [], 0
        with np.errstate(all="ignore"):
            while ready:
                warps = ready.pop(self.random.randrange(len(ready)))
                try:
                    stop = warps.run()
                except Diverged as diverged:
                    parts = warps.split(diverged)
                    self.warps = [*(other for other in self.warps if other is not warps), *parts]
                    ready += parts
                    continue
                if stop is Stop.BARRIER:
                    waiting.append(warps)
                else:
                    exited += warps.count
                    _finish(warps)
                if not ready and waiting:
                    if exited:
                        name = f"{self.grid.program.kernel.name}, CTA {self.index}"
                        raise Deadlock(f"{name}: {exited} warps have exited, others wait at a barrier")
                    self.phase += 1
                    ready, waiting = waiting, []

    def is_fenced(self, phase: int, warp: int, time: int, reader: Warps) -> bool:
        """Whether a proxy fence lies between a write by `warp` and the reader, which is behind a barrier.

        It may be the writer's, after the write; or any warp's, in a phase after that of the write.
        """
        for warps in self.warps:
            writes = warp in warps.warp_ids or warp == EQUAL
            for fence_phase, fence_time in warps.proxy_fences:
                precedes = warps is reader or fence_phase < self.phase
                if precedes and (fence_phase > phase or (writes and fence_time >= time)):
                    return True
        return False


def _finish(warps: Warps) -> None:
    """Completes copies that nothing waits for, so that their accesses are checked; reports a wgmma in flight."""
    commit_copies(warps)
    wait_copies(warps, 0)
    in_flight = [wgmma for group in (*warps.wgmma_groups, warps.open_wgmmas) for wgmma in group]
    if in_flight:
        warps.fault("exit with a wgmma in flight", in_flight[0].op.pc)
