"""Layouts of matrix instructions: which lane and register holds an element, and where it is in shared memory.

In all of them lane = 4 * row + pair, and a register of half precision holds elements 2 * pair and 2 * pair + 1 of a row
of eight. W warps are converted at once; the last axis of arrays of registers is W * 32 lanes.
"""

from functools import lru_cache

import numpy as np

u2, u4 = np.dtype("u2"), np.dtype("u4")


def unpack_a(registers: np.ndarray, W: int) -> np.ndarray:
    """A [W, 16, 16] as 16-bit patterns from its four registers [4, lanes]."""
    # right half, lower half, warp, row, pair, element
    x = np.ascontiguousarray(registers).view(u2).reshape(2, 2, W, 8, 4, 2)
    return x.transpose(2, 1, 3, 0, 4, 5).reshape(W, 16, 16)


def unpack_b(registers: np.ndarray, W: int) -> np.ndarray:
    """B [W, 16, 8] as 16-bit patterns from its two registers [2, lanes]."""
    x = np.ascontiguousarray(registers).view(u2).reshape(2, W, 8, 4, 2)  # lower half, warp, column, pair, element
    return x.transpose(1, 0, 3, 4, 2).reshape(W, 16, 8)


def unpack_accumulator(registers: np.ndarray, W: int) -> np.ndarray:
    """C or D [W, 16, N] in float32 from its N / 2 registers [N / 2, lanes]."""
    x = registers.reshape(-1, 2, 2, W, 8, 4)  # group of eight columns, lower half, element, warp, row, pair
    return x.transpose(3, 1, 4, 0, 5, 2).reshape(W, 16, -1)


def pack_accumulator(d: np.ndarray) -> np.ndarray:
    """The inverse of `unpack_accumulator`."""
    W, _, N = d.shape
    x = d.reshape(W, 2, 8, N // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4)
    return np.ascontiguousarray(x).reshape(N // 2, W * 32)


def pack_matrices(matrices: np.ndarray, trans: bool) -> np.ndarray:
    """`ldmatrix`: registers [count, lanes] from 8 x 8 matrices [W, count, 8, 8]."""
    W, count = matrices.shape[:2]
    x = matrices.transpose(0, 1, 3, 2) if trans else matrices
    return np.ascontiguousarray(x.transpose(1, 0, 2, 3)).view(u4).reshape(count, W * 32)


def unpack_matrices(registers: np.ndarray, W: int, trans: bool) -> np.ndarray:
    """`stmatrix`: 8 x 8 matrices [W, count, 8, 8] from registers [count, lanes]."""
    x = np.ascontiguousarray(registers).view(u2).reshape(len(registers), W, 8, 8).transpose(1, 0, 2, 3)
    return np.ascontiguousarray(x.transpose(0, 1, 3, 2) if trans else x)


@lru_cache(maxsize=4096)
def tile_addresses(descriptor: int, rows: int, transposed: bool) -> np.ndarray:
    """The address of each element [rows, 16] of a wgmma operand: rows of A or columns of B, by 16 of K.

    The descriptor holds the start address, the leading and the stride offset in units of 16 bytes, and the swizzle
    mode. Swizzling permutes 16-byte chunks by an exclusive or with higher bits of their address.

    Args:
        transposed: whether the rows are contiguous in memory, rather than K.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    mode, base_offset = descriptor >> 62, descriptor >> 49 & 7
    if base_offset:
        raise NotImplementedError("wgmma descriptors with a base offset")
    width = (16, 128, 64, 32)[mode]  # bytes in a row of a swizzle atom
    row, k = np.arange(rows)[:, None], np.arange(16)[None, :]
    if not transposed:  # an atom is eight rows, each of `width` contiguous bytes along K
        along_k = k * 2 if mode else k // 8 * leading + k % 8 * 2
        address = start + row // 8 * stride + row % 8 * width + along_k
    else:  # an atom is eight of K, each of `width` contiguous bytes along the rows
        length = width // 2
        row_step, k_step = (leading, stride) if mode else (stride, leading)
        address = start + row // length * row_step + row % length * 2 + k // 8 * k_step + k % 8 * width
    return address ^ (address >> 3 & width - 16)
