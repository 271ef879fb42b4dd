"""One-hot matrices of winners as left operands of products, built in the registers that the matrix units read."""

import triton
import triton.language as tl

from atk.kernels.winners import _INTERPRETED

# Compares two positions at a time: the bits of small integers are distinct half-precision numbers. In both types
# equality gives the bits 0x3C00, which are 1 in float16 and 2^-7 in bfloat16.
_FLOAT16 = tl.constexpr("{ .reg .b32 a; set.eq.f16x2.f16x2 a, $1, $2; mul.rn.f16x2 $0, a, $3; }")
_BFLOAT16 = tl.constexpr("{ .reg .b32 a; set.eq.f16x2.f16x2 a, $1, $2; fma.rn.bf16x2 $0, a, $3, $4; }")


@triton.jit
def one_hot(winner, position, value, dtype: tl.constexpr, index_dtype: tl.constexpr):
    """`value` (float32, at most 1) in `dtype` where `winner == position`, 0 elsewhere.

    All have the shape of the result. `winner` and `position` are integers; indices that were
    stored as `index_dtype` uint8 take a quarter of the instructions.

    Triton builds the matrix in registers only if each argument comes from loads inside of the loop, from loads and
    constants outside of it, and operations on single elements. Otherwise it goes through shared memory: slower, but
    with the same result.
    """
    if index_dtype != tl.uint8 or dtype == tl.float32 or _INTERPRETED:
        return tl.where(winner == position, value, 0.0).to(dtype)
    winner = winner.to(tl.uint16)
    position = position.to(tl.uint16)
    if dtype == tl.float16:
        return tl.inline_asm_elementwise(
            _FLOAT16, "=r,r,r,r", [winner, position, value.to(dtype)], dtype=tl.float16, is_pure=True, pack=2
        )
    value = (value * 128.0).to(dtype)
    return tl.inline_asm_elementwise(
        _BFLOAT16,
        "=r,r,r,r,r",
        [winner, position, value, tl.zeros_like(value)],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )
