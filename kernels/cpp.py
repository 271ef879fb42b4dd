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
        dtype=_dtype(rows),
        mask=_address(mask),
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
        dtype=_dtype(grad),
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


def add_exponentials(logits: Tensor, shift: float, row_sums: Tensor, column_sums: Tensor | None) -> None:
    """Adds the sums of `e^(logits - shift)` along both axes, in the same order for any number of threads.

    Args:
        logits: `[M, N]` float32 whose rows are contiguous.
        shift: at least `logits.max() - 88`.
        row_sums, column_sums: `[M]` and `[N]` float32, contiguous; column_sums None: they are not needed.
    """
    sums = {"row_sums": row_sums.data_ptr(), "column_sums": _address(column_sums)}
    _logits(logits, shift).add_exponentials(threads=torch.get_num_threads(), **sums)


def logit_gradients(
    logits: Tensor,
    shift: float,
    row_factors: Tensor,
    column_factors: Tensor | None,
    pairs: tuple[Tensor, Tensor] | None,
    out: Tensor,
) -> float:
    """Writes `out = e^(logits - shift) * (row_factors[:, None] + column_factors)` in one pass.

    Args:
        logits, shift: as in `add_exponentials`.
        row_factors, column_factors: `[M]` and `[N]` float32, contiguous; column_factors None: zeros.
        pairs: `[M]` int64 and `[M]` float32, contiguous: for each row, a column, and what is written there instead. A
            column out of range: there is none.
        out: `[M, N]`, float32 or bfloat16, whose rows are contiguous. In float32, it may be `logits` itself.

    Returns:
        `sum logits * out`, before `out` is rounded.
    """
    columns, gradients = (None, None) if pairs is None else pairs
    return _logits(logits, shift).gradients(
        row_factors=row_factors.data_ptr(),
        column_factors=_address(column_factors),
        pair_columns=_address(columns),
        pair_gradients=_address(gradients),
        threads=torch.get_num_threads(),
        out=out.data_ptr(),
        out_dtype=_dtype(out),
        out_stride=out.stride(0),
    )


def _logits(values: Tensor, shift: float) -> Any:
    """The `_C.Logits` that points to `values`."""
    rows, columns = values.shape
    return _C.Logits(values=values.data_ptr(), rows=rows, columns=columns, stride=values.stride(0), shift=shift)


def _problem(audio: Sequences, text: Sequences, pairs: bool) -> Any:
    """The `_C.MaxMean` of one call."""
    return _C.MaxMean(
        audio=_sequences(audio),
        text=_sequences(text),
        dtype=_dtype(audio.rows),
        D=audio.rows.shape[1],
        pairs=pairs,
        threads=torch.get_num_threads(),
    )


def _sequences(value: Sequences) -> Any:
    """The `_C.Sequences` that points to `value`."""
    return _C.Sequences(
        rows=value.rows.data_ptr(),
        cu_seqlens=value.cu_seqlens.data_ptr(),
        mask=_address(value.mask),
        num_sequences=value.num_sequences,
        num_rows=value.rows.shape[0],
    )


def _winners(index: Tensor | None, text: Sequences) -> tuple[int, int]:
    """The address of `index` (0 if None) and the bytes per entry."""
    return _address(index), index_dtype(text.longest).itemsize


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dtype(rows: Tensor) -> Any:
    """The `_C.Dtype` of `rows`."""
    return getattr(_C.Dtype, str(rows.dtype).removeprefix("torch."))
