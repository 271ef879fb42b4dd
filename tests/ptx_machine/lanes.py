"""Special registers, parameters, shuffles, and mma: what generated code calls for values of lanes."""

import numpy as np

from ptx_machine.arithmetic import matrix_product
from ptx_machine.fragments import pack_accumulator, unpack_a, unpack_accumulator, unpack_b
from ptx_machine.warps import Warps

u4, i8 = np.dtype("u4"), np.dtype("i8")


def splat(warps: Warps, scalar) -> np.ndarray:
    """A scalar in all lanes."""
    return np.full(warps.lanes, scalar)


def special(warps: Warps, name: str) -> np.ndarray:
    """A special register such as %tid.x, without the percent sign."""
    by_lane = {"tid.x": warps.tid, "laneid": warps.lane, "warpid": warps.warp}
    if name in by_lane:
        return by_lane[name].astype(u4)
    return splat(warps, u4.type(warps.cta.special[name]))


def param(warps: Warps, position: int, offset: int, dtype: np.dtype) -> np.ndarray:
    """A parameter of the kernel."""
    return splat(warps, np.frombuffer(warps.cta.grid.params[position], dtype, 1, offset)[0])


def shuffle(warps: Warps, value, mode: str, lane, clamp: int) -> tuple[np.ndarray, np.ndarray]:
    """`shfl`: values of other lanes, and whether the lane was in range; if not, a lane keeps its value."""
    key = mode, lane if isinstance(lane, int) else None, clamp
    if key[1] is None:
        source, valid = _shuffle_lanes(warps, mode, (lane & 31).astype(i8), clamp)
    elif key in warps.shuffles:
        source, valid = warps.shuffles[key]
    else:
        source, valid = warps.shuffles[key] = _shuffle_lanes(warps, mode, lane & 31, clamp)
    return value[source], valid


def _shuffle_lanes(warps: Warps, mode: str, lane, clamp: int) -> tuple[np.ndarray, np.ndarray]:
    bound, segment = clamp & 31, clamp >> 8 & 31
    lowest = warps.lane & segment
    highest = lowest | (bound & ~segment)
    sources = {
        "idx": lowest | (lane & ~segment & 31),
        "up": warps.lane - lane,
        "down": warps.lane + lane,
        "bfly": warps.lane ^ lane,
    }
    source = sources[mode]
    valid = source >= highest if mode == "up" else source <= highest
    return warps.first_lane + np.where(valid, source, warps.lane), valid


def mma(warps: Warps, a, b, c, bf16: bool) -> np.ndarray:
    """`mma`: D = A @ B + C for 16 x 8 x 16 in each warp."""
    a, b = unpack_a(np.stack(a), warps.count), unpack_b(np.stack(b), warps.count)
    return pack_accumulator(matrix_product(a, b, bf16) + unpack_accumulator(np.stack(c), warps.count))
