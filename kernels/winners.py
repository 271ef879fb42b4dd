"""The largest score of each caption and its position, the inner step of the max-mean forward kernel."""

import os

import torch
import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_LOWEST = tl.constexpr(-torch.finfo(torch.float32).max)
NO_WINNER = tl.constexpr(2**30)


@triton.jit
def _nan_maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _token_max(scores):
    """Max over the last of three axes. NaN propagates, as in torch.max."""
    if _INTERPRETED:  # the interpreter runs custom reductions one element at a time
        nan = tl.max((scores != scores).to(tl.int32), 2)
        best = tl.where(nan != 0, float("nan"), tl.max(scores, 2))
    else:
        best = tl.reduce(scores, 2, _nan_maximum)
    return best


@triton.jit
def _position_of(scores, limit, position):
    """`position` where a score equals `limit` or is NaN, else NO_WINNER."""
    if _INTERPRETED or scores.shape[1] == 1:
        matched = tl.where((scores < limit) | (scores > limit), NO_WINNER, position)
    else:  # with several captions, LLVM would first collect the comparisons in bit masks: 25% more instructions
        matched = tl.inline_asm_elementwise(
            "{ .reg .pred %p; setp.ne.f32 %p, $1, $2; selp.b32 $0, 0x40000000, $3, %p; }",
            "=r,f,f,r", [scores, limit, position], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    return matched


@triton.jit
def winners(scores, l0, BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr):
    """Best score and its position among tokens l0 to l0 + LT of each caption: [BLOCK_A, W] -> two [BLOCK_A, C].

    Ties go to the first token. Padding repeats the first token of its caption, so it never wins. If any score is NaN,
    the first NaN wins.
    """
    best = _token_max(tl.reshape(scores, (BLOCK_A, C, LT)))
    # With a NaN limit every score would match.
    limit = tl.where(best == best, best, _LOWEST)[:, :, None, None, None]
    # Position 8 k + 2 q + e: a thread of the matrix units holds all k and e of one q, so 8 k + e are constants.
    scores = tl.reshape(scores, (BLOCK_A, C, LT // 8, 4, 2))
    constant = (8 * tl.arange(0, LT // 8)[:, None, None] + tl.arange(0, 2)[None, None, :])[None, None]
    first = tl.min(tl.min(_position_of(scores, limit, constant), 4), 2)  # [BLOCK_A, C, 4]
    return best, l0 + tl.min(first + 2 * tl.arange(0, 4)[None, None, :], 2)
