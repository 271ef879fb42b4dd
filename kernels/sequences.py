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


class Packed(NamedTuple):
    """Buffers of the Triton kernels: `table_sections` in int32, packed text, and packed frames if they are moved."""

    tables: Tensor
    tokens: Tensor
    frames: Tensor


def tile_width(dtype: torch.dtype) -> int:
    """Rows in a tile of packed text. With twice as many scores, no registers are left for the maximum."""
    return 64 if dtype == torch.float32 else 128


def frame_sizes(dtype: torch.dtype) -> tuple[int, int]:
    """Frames in a tile, for the two tables of tiles that are prepared: those that launch configurations use."""
    return (32, 64) if dtype == torch.float32 else (64, 128)


def packed_width(D: int) -> int:
    """D rounded up to 32 or a multiple of 64, so that channel tiles are full and aligned."""
    return 32 if D <= 32 else D + -D % 64


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


def packed_rows(rows: int, num_sequences: int, longest: int, has_mask: bool, width: int, pairs: bool) -> int:
    """An upper bound on the rows of packed text: captions in tiles of `width` rows, by length class.

    Args:
        rows: tokens of all captions, padding included.
        num_sequences: the number of captions.
        longest: an upper bound on the tokens of a caption.
        has_mask: whether some tokens may be padding.
        width: rows of a tile.
        pairs: whether each caption has tiles of its own.
    """
    if pairs:
        bound = rows + width * num_sequences
    elif longest > width or has_mask or rows != num_sequences * longest:
        # A caption takes at most twice its rows or the 8 of the first class. Each class can end in a partial tile.
        bound = 2 * rows + 8 * num_sequences + 6 * width
    else:
        tokens = next(limit for limit in (8, 16, 32, 64, 128) if longest <= limit)
        bound = tokens * num_sequences
    return bound + -bound % width


def table_sections(
    N_a: int, T_a: int, audio_has_mask: bool, N_t: int, longest: int, R: int, dtype: torch.dtype
) -> dict[str, int]:
    """Sizes of the tables that the Triton kernels prepare, by name, in int32; multiples of 4 keep them aligned.

    Args:
        N_a: the number of clips.
        T_a: frames of all clips, padding included.
        audio_has_mask: whether some frames may be padding.
        N_t: the number of captions.
        longest: an upper bound on the tokens of a caption.
        R: rows of packed text, as `packed_rows` gives.
        dtype: of the embeddings.
    """
    width = tile_width(dtype)
    small, large = frame_sizes(dtype)
    sections = {
        "clip_length": N_a,
        "caption_length": N_t,
        "column": N_a,
        "bounds": 8,
        "slots": 4 * N_t,
        "positions": longest + -longest % width,
        "text_tiles": 2 * (R // width),
        "token_source": R,
        "first_small": N_a + 1,
        "tiles_small": 4 * (T_a // small + N_a),
        "first_large": N_a + 1,
        "tiles_large": 4 * (T_a // large + N_a),
        "frame_source": T_a if audio_has_mask else 0,
    }
    return {name: size + -size % 4 for name, size in sections.items()}


def empty_packed(
    audio: Tensor,
    N_a: int,
    audio_has_mask: bool,
    text: Tensor,
    N_t: int,
    longest: int,
    text_has_mask: bool,
    pairs: bool,
) -> Packed:
    """Uninitialized buffers for what the forward prepares and the backward uses again.

    Args:
        audio: rows of N_a clips, [T_a, D].
        N_a: the number of clips.
        audio_has_mask: whether some frames may be padding.
        text: rows of N_t captions, [T_t, D].
        N_t: the number of captions.
        longest: an upper bound on the tokens of a caption.
        text_has_mask: whether some tokens may be padding.
        pairs: whether clip i is compared with caption i only.
    """
    width, D = tile_width(text.dtype), packed_width(text.shape[1])
    R = packed_rows(text.shape[0], N_t, longest, text_has_mask, width, pairs)
    sections = table_sections(N_a, audio.shape[0], audio_has_mask, N_t, longest, R, text.dtype)
    moved = audio_has_mask or audio.shape[1] != D
    return Packed(
        audio.new_empty(sum(sections.values()), dtype=torch.int32),
        text.new_empty(R, D),
        audio.new_empty(audio.shape[0] if moved else 0, D),
    )


def from_padded(value: Tensor, mask: Tensor | None) -> Sequences:
    """Packs padded sequences `value` `[N, L, D]` with a bool `mask` `[N, L]` (None: all valid); padding stays in.

    Every packed sequence has L rows. The mask marks the valid ones.
    """
    N, L, D = value.shape
    cu_seqlens = (
        torch.arange(0, (N + 1) * L, L, dtype=torch.int32, device=value.device)
        if L
        else torch.zeros(N + 1, dtype=torch.int32, device=value.device)
    )
    return Sequences(value.reshape(N * L, D), cu_seqlens, None if mask is None else mask.reshape(N * L), L)


def from_cu_seqlens(rows: Tensor, cu_seqlens: Tensor, longest: int | None) -> Sequences:
    """Wraps packed `rows` `[T, D]` with `cu_seqlens` `[N + 1]` int32.

    If `longest` is None, the largest length is read from the device, which synchronizes.
    """
    if longest is None:
        longest = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
    return Sequences(rows, cu_seqlens, None, longest)
