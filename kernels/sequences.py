"""Batches of sequences as the kernels take them: the rows of all sequences, one after another."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sequences(NamedTuple):
    """N sequences in T rows of D channels: sequence s is `rows[cu_seqlens[s] : cu_seqlens[s + 1]]`.

    `rows` is `[T, D]`; `cu_seqlens` `[N + 1]` int32 on the same device, from 0 to T; `mask` `[T]` boolean, True =
    valid, or None when every row is; `longest` an upper bound on the lengths that the host knows. The kernels want all
    of them contiguous.
    """

    rows: Tensor
    cu_seqlens: Tensor
    mask: Tensor | None
    longest: int

    @property
    def number(self) -> int:
        """N."""
        return self.cu_seqlens.shape[0] - 1


def index_dtype(longest: int) -> torch.dtype:
    """The type of the winners in captions of up to `longest` tokens."""
    return torch.uint8 if longest <= 256 else torch.int16 if longest <= 32768 else torch.int32


def from_padded(value: Tensor, mask: Tensor | None) -> Sequences:
    """The sequences of `value` `[N, L, D]` with the mask `[N, L]`."""
    number, length, width = value.shape
    cu_seqlens = torch.arange(number + 1, dtype=torch.int32, device=value.device) * length
    rows, mask = value.reshape(number * length, width), None if mask is None else mask.reshape(number * length)
    return Sequences(rows, cu_seqlens, mask, length)


def from_cu_seqlens(rows: Tensor, cu_seqlens: Tensor, longest: int | None) -> Sequences:
    """The sequences of packed `rows`; without `longest` it is read from the device."""
    if longest is None:
        longest = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
    return Sequences(rows, cu_seqlens, None, longest)
