"""Launchers of the C++ extension (csrc/, built as `atk._C`): multithreaded CPU kernels for all dtypes but float64.

Shapes: N_a clips in T_a rows of frames, N_t captions in T_t rows of tokens, D channels. Callers check the arguments,
allocate the outputs, and launch nothing of size 0.
"""

import importlib
import importlib.resources
from typing import Any

import torch
from torch import Tensor

from atk.kernels.sequences import Sequences, index_dtype

_PACKAGE = __name__.partition(".")[0]
_C: Any = None  # the extension
_IMPORT_ERROR = ""
try:
    _C = importlib.import_module(f"{_PACKAGE}._C")
except ImportError as error:
    _IMPORT_ERROR = str(error)

WORKSPACE_BYTES = 64 << 20  # for the winner indices that are recomputed at a time; exceeded if one caption needs more
_BUILD_ERROR = importlib.resources.files(_PACKAGE) / "_build_error.txt"  # written by setup.py
_REBUILD = "install a C++17 compiler (or point CXX at one) and reinstall audio-text-kernels"


def unavailable() -> str | None:
    """Why the extension is unavailable and how to fix it; None if it is available."""
    if _C is not None:
        return None
    if _BUILD_ERROR.is_file():
        return f"the C++ extension was not built: {_BUILD_ERROR.read_text().splitlines()[0]}; {_REBUILD}"
    return f"the C++ extension cannot be imported ({_IMPORT_ERROR}); {_REBUILD}"


def extension() -> Any:
    """The module `atk._C`; only if `unavailable` returns None."""
    return _C


def max_mean_forward(audio: Sequences, text: Sequences, sim: Tensor, index: Tensor | None, pairs: bool) -> None:
    """Writes `sim[i,j] = mean_{t valid} max_{l valid} <audio[i,t], text[j,l]>` (3.6) and the winning tokens.

    On CPUs with int8 dot products, large calls in float32 or float16, and in bfloat16 if there are no products of
    bfloat16, first rule out most tokens with them. The winners are still those of float32 scores.

    Args:
        audio: N_a clips `[T_a, D]`, float32 | bfloat16 | float16.
        text: N_t captions `[T_t, D]`, same dtype as `audio`.
        sim: `[N_a, N_t]` float32, contiguous, fully overwritten; 0 if the clip or the caption has no valid rows.
        index: `[N_t, T_a]` of `index_dtype(text.longest)`, contiguous, or None to skip the winners. A row starts with
            the winners of the valid frames, in order; the first token wins ties. An entry is the token's index among
            the valid tokens of its caption.
        pairs: whether to compare clip i with caption i only; `sim` is then `[N]`, and `index` is `[T_a]`.
    """
    index_address, index_bytes = _winners(index, text)
    _problem(audio, text, pairs).forward(index=index_address, index_bytes=index_bytes, sim=sim.data_ptr())


def max_mean_padded(
    audio: Tensor,
    text: Tensor,
    audio_mask: Tensor | None,
    text_mask: Tensor | None,
    sim: Tensor,
    index: Tensor | None,
) -> None:
    """`max_mean_forward` for padded embeddings, with less overhead in Python.

    Args:
        audio, text: `[N_a, L_a, D]` and `[N_t, L_t, D]`, contiguous, of the same dtype.
        audio_mask, text_mask: boolean `[N_a, L_a]` and `[N_t, L_t]`, contiguous, True = valid; None = all valid.
        sim: as in `max_mean_forward`.
        index: as in `max_mean_forward`, `[N_t, N_a * L_a]`.
    """
    clips, frames, D = audio.shape
    captions, tokens, _ = text.shape
    _C.max_mean_padded(
        audio=audio.data_ptr(),
        audio_mask=address(audio_mask),
        clips=clips,
        frames=frames,
        text=text.data_ptr(),
        text_mask=address(text_mask),
        captions=captions,
        tokens=tokens,
        dtype=dtype(audio),
        D=D,
        threads=torch.get_num_threads(),
        index=address(index),
        index_bytes=index_dtype(tokens).itemsize,
        sim=sim.data_ptr(),
    )


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
    """Writes the gradients of `max_mean_forward`, summed in float32, in the same order for any number of threads.

    Args:
        grad: dL/dsim `[N_a, N_t]` (`[N]` with `pairs`), float32, contiguous. Pairs with gradient 0 cost nothing.
        audio, text, pairs: as in `max_mean_forward`.
        index: as written by `max_mean_forward` for the same inputs. If None, the winners are recomputed for as many
            captions at a time as fit in `WORKSPACE_BYTES`; the gradients are bitwise the same.
        grad_audio: `[T_a, D]`, fully overwritten: `sum_j grad[i,j] / n_i * text[j, index[i,j,t]]` for n_i valid frames.
        grad_text: `[T_t, D]`, fully overwritten: `sum_{i,t: index[i,j,t] = l} grad[i,j] / n_i * audio[i,t]`.
        sparse: ignored; a hint for the Triton launcher.
    """
    index_address, index_bytes = _winners(index, text)
    _problem(audio, text, pairs).backward(
        index=index_address,
        index_bytes=index_bytes,
        workspace=WORKSPACE_BYTES,
        grad=grad.data_ptr(),
        grad_audio=grad_audio.data_ptr(),
        grad_text=grad_text.data_ptr(),
    )


def normalize_rows(rows: Tensor, mask: Tensor | None, unit: Tensor, inverse_norm: Tensor) -> None:
    """Writes `unit = rows / ||rows||` and `inverse_norm = 1 / ||rows||`, with norms in float32.

    Both are 0 for rows that are masked out or have a norm below 1e-12. A row with NaN makes both NaN.

    Args:
        rows, unit: `[T, D]`, contiguous, of the same dtype: float32 | bfloat16 | float16.
        mask: `[T]` bool, contiguous, True = valid; None if every row is valid.
        inverse_norm: `[T]` float32.
    """
    T, D = rows.shape
    _C.normalize_rows(
        rows=rows.data_ptr(),
        dtype=dtype(rows),
        mask=address(mask),
        num_rows=T,
        D=D,
        threads=torch.get_num_threads(),
        unit=unit.data_ptr(),
        inverse_norm=inverse_norm.data_ptr(),
    )


def normalize_rows_backward(grad: Tensor, unit: Tensor, inverse_norm: Tensor, grad_rows: Tensor) -> None:
    """Writes `grad_rows = inverse_norm * (grad - <grad, unit> unit)`, 0 where `inverse_norm` is 0.

    Args:
        grad, grad_rows: `[T, D]`, contiguous, of the same dtype as `unit`. Products are summed in float32.
        unit, inverse_norm: `[T, D]` and `[T]` float32, as written by `normalize_rows`.
    """
    T, D = grad.shape
    _C.normalize_rows_backward(
        grad=grad.data_ptr(),
        unit=unit.data_ptr(),
        dtype=dtype(grad),
        inverse_norm=inverse_norm.data_ptr(),
        num_rows=T,
        D=D,
        threads=torch.get_num_threads(),
        grad_rows=grad_rows.data_ptr(),
    )


def multiplies_bfloat16() -> bool:
    """Whether `bfloat16_product` can run: the extension is available, and this CPU multiplies bfloat16."""
    return _C is not None and _C.multiplies_bfloat16()


def bfloat16_product(left: Tensor, right: Tensor, factor: float, out: Tensor) -> None:
    """Writes `out = factor * left @ right^T` without rounding it to bfloat16.

    Args:
        left, right: `[M, D]` and `[N, D]`, bfloat16, contiguous.
        factor: of the sums.
        out: `[M, N]` float32; its rows are contiguous.
    """
    _C.bfloat16_product(
        left=left.data_ptr(),
        right=right.data_ptr(),
        left_rows=left.shape[0],
        right_rows=right.shape[0],
        D=left.shape[1],
        factor=factor,
        threads=torch.get_num_threads(),
        out=out.data_ptr(),
        stride=out.stride(0),
    )


def _problem(audio: Sequences, text: Sequences, pairs: bool) -> Any:
    """The `_C.MaxMean` of one call."""
    return _C.MaxMean(
        audio=_sequences(audio),
        text=_sequences(text),
        dtype=dtype(audio.rows),
        D=audio.rows.shape[1],
        pairs=pairs,
        threads=torch.get_num_threads(),
    )


def _sequences(value: Sequences) -> Any:
    """The `_C.Sequences` that points to `value`."""
    return _C.Sequences(
        rows=value.rows.data_ptr(),
        cu_seqlens=value.cu_seqlens.data_ptr(),
        mask=address(value.mask),
        num_sequences=value.num_sequences,
        num_rows=value.rows.shape[0],
    )


def _winners(index: Tensor | None, text: Sequences) -> tuple[int, int]:
    """The address of `index` (0 if None) and the bytes per entry."""
    return address(index), index_dtype(text.longest).itemsize


def address(tensor: Tensor | None) -> int:
    """The address of the first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def dtype(rows: Tensor) -> Any:
    """The `_C.Dtype` of `rows`."""
    return getattr(_C.Dtype, str(rows.dtype).removeprefix("torch."))
