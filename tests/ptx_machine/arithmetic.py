"""PTX arithmetic on numpy arrays, where numpy has no operator with the same meaning. Generated code calls it."""

import numpy as np

u1, u2, u4 = np.dtype("u1"), np.dtype("u2"), np.dtype("u4")
f2, f4, f8 = np.dtype("f2"), np.dtype("f4"), np.dtype("f8")
_SMALLEST_NORMAL = np.float32(2.0**-126)


def flush(x):
    """Replaces subnormal numbers by zeros of the same sign."""
    return np.where(np.abs(x) < _SMALLEST_NORMAL, x * np.float32(0), x)


def truncated_quotient(a, b):
    """The integer quotient, rounded toward zero; all ones if the divisor is 0."""
    zero = b == 0
    divisor = np.where(zero, np.ones_like(b), b)
    quotient, remainder = np.divmod(a, divisor)
    if np.asarray(a).dtype.kind == "i":
        quotient = quotient + ((remainder != 0) & ((a < 0) != (divisor < 0))).astype(quotient.dtype)
    return np.where(zero, ~np.zeros_like(quotient), quotient)


def truncated_remainder(a, b):
    """The remainder of `truncated_quotient`."""
    return a - truncated_quotient(a, b) * b


def multiply_high(a, b):
    """The upper half of the product of 32-bit integers."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.itemsize != 4:
        raise NotImplementedError("mul.hi of 64-bit integers")
    wide = np.dtype(f"{a.dtype.kind}8")
    return ((a.astype(wide) * b.astype(wide)) >> wide.type(32)).astype(a.dtype)


def shift_left(a, count):
    """0 if the count is at least the width."""
    bits = 8 * np.asarray(a).dtype.itemsize
    return np.where(count < bits, a << np.minimum(count, bits - 1).astype(np.asarray(a).dtype), np.zeros_like(a))


def shift_right(a, count):
    """0, or the sign of a signed integer, if the count is at least the width."""
    dtype = np.asarray(a).dtype
    bits = 8 * dtype.itemsize
    shifted = a >> np.minimum(count, bits - 1).astype(dtype)
    return shifted if dtype.kind == "i" else np.where(count < bits, shifted, np.zeros_like(a))


def count_leading_zeros(a):
    """Leading zeros of 32-bit integers."""
    return (32 - np.ceil(np.log2(np.asarray(a, u4).astype(f8) + 1))).astype(u4)


def count_bits(a):
    """The number of bits that are set."""
    return np.bitwise_count(a).astype(u4)


def reverse_bits(a):
    """The bits of 32-bit integers in reverse order."""
    bits = np.unpackbits(a.astype(">u4").view(u1)).reshape(-1, 32)[:, ::-1]
    return np.packbits(bits, axis=1).view(">u4").ravel().astype(u4)


def lookup3(a, b, c, table):
    """`lop3`: bit 4a + 2b + c of the table, for each bit of the operands."""
    result = a & u4.type(0)
    for k in range(8):
        if table >> k & 1:
            result = result | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
    return result


def permute_bytes(a, b, selector):
    """`prmt`: each nibble of the selector picks a byte of a or b; its upper bit replicates the byte's sign."""
    result = (a ^ b) & u4.type(0)
    for k in range(4):
        nibble = selector >> 4 * k & 15
        byte = ((b if nibble & 4 else a) >> u4.type(8 * (nibble & 3))) & u4.type(255)
        if nibble & 8:
            byte = np.where(byte & u4.type(128), u4.type(255), u4.type(0))
        result = result | (byte << u4.type(8 * k))
    return result


def unpack(value, dtype):
    """The parts [count, lanes] of a wider register, the lowest first."""
    value = np.ascontiguousarray(value)
    return np.ascontiguousarray(value.view(dtype).reshape(len(value), -1).T)


def widen(bits, bf16):
    """Half-precision bit patterns as float32."""
    return (bits.astype(u4) << u4.type(16)).view(f4) if bf16 else bits.view(f2).astype(f4)


def matrix_product(a, b, bf16):
    """Products of half-precision matrices [..., M, K] and [..., K, N], rounded to float32 once.

    The sums are exact in float64 for all practical inputs, so that equal columns give equal results. Those of float32
    matrices depend on how BLAS groups the columns.
    """
    return np.matmul(widen(a, bf16).astype(f8), widen(b, bf16).astype(f8)).astype(f4)


def narrow(x, bf16):
    """Half-precision bit patterns of float32 numbers, rounded to nearest even."""
    x = np.asarray(x, f4)
    if not bf16:
        return x.astype(f2).view(u2)
    bits = x.view(u4)
    rounded = (bits + (u4.type(0x7FFF) + ((bits >> u4.type(16)) & u4.type(1)))) >> u4.type(16)
    return np.where(np.isnan(x), u4.type(0x7FFF), rounded).astype(u2)


def from_half(register, bf16):
    """One or two half-precision numbers per register, as float64 [lanes] or [lanes, 2]."""
    register = np.asarray(register)
    if register.dtype == u4:
        register = np.ascontiguousarray(register).view(u2).reshape(*register.shape, 2)
    return widen(register, bf16).astype(f8)


def to_half(x, bf16, packed):
    """The inverse of `from_half`, which rounds to float32 first. `packed`: two numbers per register."""
    bits = narrow(x.astype(f4), bf16)
    return np.ascontiguousarray(bits).view(u4).ravel() if packed else bits


def to_integer(x, dtype):
    """Floats with integral values, saturated to an integer type. NaN becomes 0."""
    limits = np.iinfo(dtype)
    clipped = np.where(np.isnan(x), 0, np.clip(x.astype(f8), limits.min, limits.max))
    overflow = clipped >= float(limits.max)
    return np.where(overflow, dtype.type(limits.max), np.where(overflow, 0, clipped).astype(dtype))
