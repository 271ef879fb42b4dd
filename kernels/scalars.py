"""Reductions of vectors to scalars.

With Triton 3.6 and 3.7, reducing a vector that comes from a product does not compile for compute capability 10.0: the
pass that chooses layouts in tensor memory fails, or takes the process down. These functions reduce a matrix of one row.
"""

import triton
import triton.language as tl


@triton.jit
def scalar_max(x):
    """The largest element of x [N]."""
    return tl.max(tl.reshape(x, (1, x.shape[0])), 1).item()


@triton.jit
def scalar_min(x):
    """The smallest element of x [N]."""
    return tl.min(tl.reshape(x, (1, x.shape[0])), 1).item()


@triton.jit
def scalar_sum(x):
    """The sum of x [N]."""
    return tl.sum(tl.reshape(x, (1, x.shape[0])), 1).item()
