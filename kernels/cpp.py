"""Launchers of the C++ extension (csrc/, built as `atk._C`): CPU, float32 / bfloat16 / float16, multi-threaded.

Shapes: N_a clips in T_a rows of frames, N_t captions in T_t rows of tokens, D channels. Callers have checked and
allocated everything, and launch nothing of size 0.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from atk.kernels.sequences import Sequences

try:
    from atk import _C
except ImportError as error:
    _C = None
    _IMPORT_ERROR = str(error)

WORKSPACE_BYTES = 64 << 20  # of winners that the backward finds again at a time, unless one caption needs more
_BUILD_ERROR = Path(importlib.util.find_spec("atk").origin).with_name("_build_error.txt")  # written by setup.py
_REBUILD = "install a C++17 compiler (or point CXX at one) and reinstall audio-text-kernels"


def unavailable() -> str | None:
    """None when the extension is there, else why not and how to get it."""
    if _C is not None:
        return None
    if _BUILD_ERROR.is_file():
        return f"the C++ extension was not built: {_BUILD_ERROR.read_text().splitlines()[0]}; {_REBUILD}"
    return f"the C++ extension cannot be imported ({_IMPORT_ERROR}); {_REBUILD}"


def max_mean_forward(audio: Sequences, text: Sequences, sim: Tensor, index: Tensor | None, pairs: bool) -> None:
    """Writes `sim[i,j] = mean_{t valid} max_{l valid} <audio[i,t], text[j,l]>` (3.6) and the winning tokens.

    Where the CPU has AVX-512 with VNNI and BF16, int8 products rule out most tokens of float32 and float16 captions
    first; the winner is the maximum of float32 scores all the same.

    Args:
        audio: N_a clips `[T_a, D]`, float32 | bfloat16 | float16.
        text: N_t captions `[T_t, D]`, the dtype of `audio`.
        sim: `[N_a, N_t]` float32, contiguous, written whole; 0 where the clip or the caption has nothing valid.
        index: `[N_t, T_a]` uint8 | int16 | int32 by `text.longest` (up to 256, up to 32768, more), contiguous. The
            first entries of a row are the winners of the valid frames, in order, the first token on ties; tokens are
            counted within their caption without the padding. None: not wanted.
        pairs: clip i against caption i only: `sim` is `[N]`, `index` `[T_a]`.
    """
    _problem(audio, text, pairs).forward(*_winners(index, text), sim.data_ptr())


def max_mean_backward(
    grad: Tensor,
    audio: Sequences,
    text: Sequences,
    index: Tensor | None,
    grad_audio: Tensor,
    grad_text: Tensor,
    pairs: bool,
    sparse: bool,
) -> None:
    """Writes the gradients of `max_mean_forward`, summed in float32 in a fixed order, whatever the thread count.

    Args:
        grad: `[N_a, N_t]` (with `pairs` `[N]`) float32, contiguous, dL/dsim. Pairs where it is 0 cost nothing.
        index: what the forward wrote for the same inputs; None: the winners are found again, for as many captions at
            a time as `WORKSPACE_BYTES` hold, with bitwise the same gradients.
        grad_audio: `[T_a, D]`, written whole: `sum_j grad[i,j] / n_i * text[j, index[i,j,t]]`, n_i valid frames.
        grad_text: `[T_t, D]`, written whole: `sum_{i,t: index[i,j,t] = l} grad[i,j] / n_i * audio[i,t]`.
        sparse: a hint that is not needed here.
    """
    outputs = grad.data_ptr(), grad_audio.data_ptr(), grad_text.data_ptr()
    _problem(audio, text, pairs).backward(*_winners(index, text), WORKSPACE_BYTES, *outputs)


def normalize_rows(rows: Tensor, mask: Tensor | None, unit: Tensor, inverse_norm: Tensor) -> None:
    """Writes `unit = rows / ||rows||` and `inverse_norm = 1 / ||rows||`, with norms in float32.

    Both are 0 for rows that are masked out or whose norm is below 1e-12; NaN in a row makes both NaN.

    Args:
        rows, unit: `[T, D]`, contiguous, of one dtype: float32 | bfloat16 | float16.
        mask: `[T]` bool, contiguous, True = valid; None: every row is valid.
        inverse_norm: `[T]` float32.
    """
    count, d = rows.shape
    _C.normalize_rows(
        rows.data_ptr(), _dtype(rows), _address(mask), count, d, torch.get_num_threads(), unit.data_ptr(),
        inverse_norm.data_ptr(),
    )  # fmt: skip


def normalize_rows_backward(grad: Tensor, unit: Tensor, inverse_norm: Tensor, grad_rows: Tensor) -> None:
    """Writes `grad_rows = inverse_norm * (grad - <grad, unit> unit)`, 0 where `inverse_norm` is 0.

    Args:
        grad, unit, grad_rows: `[T, D]`, contiguous, of one dtype; products are summed in float32.
        inverse_norm: `[T]` float32, as `unit` written by `normalize_rows`.
    """
    count, d = grad.shape
    _C.normalize_rows_backward(
        grad.data_ptr(), unit.data_ptr(), _dtype(grad), inverse_norm.data_ptr(), count, d, torch.get_num_threads(),
        grad_rows.data_ptr(),
    )  # fmt: skip


def _problem(audio: Sequences, text: Sequences, pairs: bool) -> "_C.MaxMean":
    return _C.MaxMean(
        audio=_sequences(audio),
        text=_sequences(text),
        dtype=_dtype(audio.rows),
        d=audio.rows.shape[1],
        pairs=pairs,
        threads=torch.get_num_threads(),
    )


def _sequences(value: Sequences) -> "_C.Sequences":
    return _C.Sequences(
        rows=value.rows.data_ptr(),
        cu_seqlens=value.cu_seqlens.data_ptr(),
        mask=_address(value.mask),
        count=value.number,
        total=value.rows.shape[0],
    )


def _winners(index: Tensor | None, text: Sequences) -> tuple[int, int]:
    """Address (0: none) and bytes of an entry."""
    return _address(index), 1 if text.longest <= 256 else 2 if text.longest <= 32768 else 4


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dtype(rows: Tensor) -> "_C.Dtype":
    return getattr(_C.Dtype, str(rows.dtype).removeprefix("torch."))
