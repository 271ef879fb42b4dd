"""One-hot matrices of winners as left operands of products, built in the registers that the matrix units read."""

import triton
import triton.language as tl

from atk.kernels.winners import _INTERPRETED


@triton.jit
def token_positions(positions, first, W: tl.constexpr, LT: tl.constexpr, dtype: tl.constexpr):
    """Positions of the W tokens of a tile in their captions, `first` onward: [W], to compare with winners.

    In half precision they are loaded from `positions`, 0, 1, 2, ...; see `one_hot`. In float32 they are computed,
    because products on CUDA cores would hold whole rows of the matrix in registers.
    """
    position = tl.arange(0, W) & (LT - 1)
    if dtype == tl.float32:
        position += first
    else:
        position = tl.load(positions + first + position)
    return position


@triton.jit
def one_hot(winner, position, value, dtype: tl.constexpr, index_dtype: tl.constexpr):
    """`value` (float32, at most 1) in `dtype` where `winner == position`, 0 elsewhere.

    All have the shape of the result. `winner` and `position` are integers; winners that were stored as `index_dtype`
    uint8 take a quarter of the instructions.

    The assembly compares two positions at a time: the bits of small integers are those of distinct float16 numbers.
    Equality gives the bits 0x3C00, which are 1 in float16 and 2^-7 in bfloat16.

    Triton builds the matrix in registers only if each argument comes from loads inside of the loop, from loads and
    constants outside of it, and operations on single elements. Otherwise it goes through shared memory: slower, but
    with the same result.
    """
    if index_dtype != tl.uint8 or dtype == tl.float32 or _INTERPRETED:
        matrix = tl.where(winner == position, value, 0.0).to(dtype)
    elif dtype == tl.float16:
        matrix = tl.inline_asm_elementwise(
            "{ .reg .b32 a; set.eq.f16x2.f16x2 a, $1, $2; mul.rn.f16x2 $0, a, $3; }", "=r,r,r,r",
            [winner.to(tl.uint16), position.to(tl.uint16), value.to(tl.float16)], tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        value = (value * 128.0).to(tl.bfloat16)
        matrix = tl.inline_asm_elementwise(
            "{ .reg .b32 a; set.eq.f16x2.f16x2 a, $1, $2; fma.rn.bf16x2 $0, a, $3, $4; }", "=r,r,r,r,r",
            [winner.to(tl.uint16), position.to(tl.uint16), value, tl.zeros_like(value)], tl.bfloat16, is_pure=True,
            pack=2,
        )  # fmt: skip
    return matrix
