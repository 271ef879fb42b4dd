"""Packed batches of sequences, the input format of the kernels: the rows of all sequences, concatenated."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sequences(NamedTuple):
    """N sequences packed into T rows of D channels; sequence s is `rows[cu_seqlens[s] : cu_seqlens[s + 1]]`.

    `rows` is `[T, D]`. `cu_seqlens` is `[N + 1]` int32 on the same device and runs from 0 to T. `mask` is `[T]` bool,
    True = valid, or None if every row is valid. `longest` is an upper bound on the sequence lengths, known to the host.
    The kernels require contiguous tensors.
    """

    rows: Tensor
    cu_seqlens: Tensor
    mask: Tensor | None
    longest: int

    @property
    def num_sequences(self) -> int:
        """The number of sequences, N."""
        return self.cu_seqlens.shape[0] - 1


def index_dtype(longest: int) -> torch.dtype:
    """The dtype of winner indices for captions of up to `longest` tokens: uint8, int16, or int32."""
    return torch.uint8 if longest <= 256 else torch.int16 if longest <= 32768 else torch.int32


def index_columns(rows: int, num_sequences: int, longest: int, has_mask: bool) -> int:
    """Columns of the winner indices that the Triton kernels save for clips of `rows` frames in total.

    Each clip begins at a multiple of 16, and tiles of up to 128 frames are read past the end of the last one.

    Args:
        rows: frames of all clips, padding included.
        num_sequences: the number of clips.
        longest: an upper bound on the frames of a clip.
        has_mask: whether some frames may be padding.
    """
    if not has_mask and rows == num_sequences * longest:
        columns = num_sequences * (longest + -longest % 16)
    else:
        columns = rows + 15 * num_sequences
    return columns + -columns % 16 + 128


def from_padded(value: Tensor, mask: Tensor | None) -> Sequences:
    """Packs padded sequences `value` `[N, L, D]` with a bool `mask` `[N, L]` (None: all valid); padding stays in.

    Every packed sequence has L rows. The mask marks the valid ones.
    """
    N, L, D = value.shape
    cu_seqlens = torch.arange(N + 1, dtype=torch.int32, device=value.device) * L
    return Sequences(value.reshape(N * L, D), cu_seqlens, None if mask is None else mask.reshape(N * L), L)


def from_cu_seqlens(rows: Tensor, cu_seqlens: Tensor, longest: int | None) -> Sequences:
    """Wraps packed `rows` `[T, D]` with `cu_seqlens` `[N + 1]` int32.

    If `longest` is None, the largest length is read from the device, which synchronizes.
    """
    if longest is None:
        longest = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
    return Sequences(rows, cu_seqlens, None, longest)
