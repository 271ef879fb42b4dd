"""The winning token of each frame and caption, from a tile of scores [BLOCK_A, W] of W = C * LT rows of packed text.

Padding repeats the first token of its caption, so it never wins. Ties go to the first token.
"""

import os

import torch
import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_LOWEST = tl.constexpr(-torch.finfo(torch.float32).max)
_UP = tl.constexpr(2.0**60)
_DOWN = tl.constexpr(2.0**-60)
_STEEP = tl.constexpr(2.0**100)
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
def best_scores(scores, BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr):
    """Best score of each caption, [BLOCK_A, C]; NaN if any score is."""
    return _token_max(tl.reshape(scores, (BLOCK_A, C, LT)))


@triton.jit
def first_winners(scores, best, BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr):
    """Position of the first token that attains a finite `best`, [BLOCK_A, C] int32; arbitrary where `best` is not.

    Tokens are ranked by 2^100 (score - best) * scale - position: the first term is 0 for the best tokens, and at most
    -2^11 for the others, because scaling by a power of two is exact and makes any difference of scores at least 2^-89.
    That takes two multiply-adds and a maximum per score. Comparisons and selections would take four instructions of the
    slower pipe for comparisons.
    """
    scale = tl.where(tl.abs(best) < _UP, _UP, _DOWN)
    shift = (-best * scale)[:, :, None, None, None]
    # Position 8 k + 2 q + e: a thread of the matrix units holds all k and e of one q, so 8 k + e are constants.
    scores = tl.reshape(scores, (BLOCK_A, C, LT // 8, 4, 2))
    difference = tl.fma(scores, scale[:, :, None, None, None], shift)
    constant = 8 * tl.arange(0, LT // 8)[:, None, None] + tl.arange(0, 2)[None, None, :]
    rank = tl.fma(difference, _STEEP, -constant[None, None].to(tl.float32))
    rank = tl.max(tl.max(rank, 4), 2)  # [BLOCK_A, C, 4]
    rank = tl.max(rank - 2 * tl.arange(0, 4)[None, None, :].to(tl.float32), 2)
    # The bits of 2^23 + n end in those of n, and adding is faster than converting.
    return (8388608.0 - rank).to(tl.int32, bitcast=True) - 0x4B000000


@triton.jit
def first_winners_or_nan(scores, best, BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr):
    """Position of the first token that attains `best`, or of the first NaN if there is one, [BLOCK_A, C] int32."""
    # With a NaN limit every score would match.
    limit = tl.where(best == best, best, _LOWEST)[:, :, None]
    scores = tl.reshape(scores, (BLOCK_A, C, LT))
    position = tl.where((scores < limit) | (scores > limit), NO_WINNER, tl.arange(0, LT)[None, None, :])
    return tl.min(position, 2)
