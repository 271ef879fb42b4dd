"""The autograd ops behind `atk.max_mean_similarity`: scores, normalized rows, and their gradients, on every backend.

Shapes: N_a clips packed into T_a rows of frames, N_t captions packed into T_t rows of tokens, D channels; see
`atk.kernels.sequences`. Custom ops take flat arguments, so each `Sequences` is passed as its four fields.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from atk.kernels import cpp
from atk.kernels.sequences import Packed, Sequences, empty_packed, from_padded, index_columns, index_dtype
from atk.ops import checks, max_mean_chunked, reference
from atk.ops.custom_op import contiguous, custom_op
from atk.ops.once_differentiable import once_differentiable, raising_backward

INDEX_BUDGET = 1 << 30  # bytes; save_index=None saves winning tokens for the backward only if they take no more
NO_SECOND_DERIVATIVE = (
    "atk.max_mean_similarity has no second derivative: write it in plain PyTorch to differentiate twice"
)


def score(
    audio: Sequences, text: Sequences, *, pairs: bool, sparse: bool, save_index: bool | None, backend: str
) -> Tensor:
    """`sim` `[N_a, N_t]` (3.6), or `[N]` for `pairs`, in float32 at least."""
    if backend == "reference":
        return _reference_score(audio, text, pairs)
    entries = (1 if pairs else text.num_sequences) * audio.rows.shape[0]
    with_index = _keeps_index(save_index, entries, text.longest, audio.rows, text.rows)
    unchecked = torch.compiler.is_compiling()  # the public functions check values only when they are not compiled
    return _forward(*audio, *text, pairs, sparse, backend, with_index, unchecked)[0]


def _keeps_index(save_index: bool | None, entries: int, longest: int, *rows: Tensor) -> bool:
    """Whether the forward keeps the winning tokens: for a backward, within the budget unless `save_index` is given."""
    if save_index is None:
        save_index = entries * index_dtype(longest).itemsize <= INDEX_BUDGET
    return save_index and torch.is_grad_enabled() and any(value.requires_grad for value in rows)


def padded_score(
    audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None, save_index: bool | None
) -> Tensor:
    """`score` on backend `"cpp"` for padded embeddings, which takes half the time on small inputs.

    `audio` [N_a, L_a, D] and `text` [N_t, L_t, D] have elements, and neither they nor the masks are
    `custom_op.watched`.
    """
    entries = text.shape[0] * audio.shape[0] * audio.shape[1]
    with_index = _keeps_index(save_index, entries, text.shape[1], audio, text)
    if torch.is_grad_enabled() and (audio.requires_grad or text.requires_grad):
        return _PaddedScore.apply(audio, text, audio_mask, text_mask, with_index)
    return _padded_forward(audio, text, audio_mask, text_mask, with_index)[0]


def _padded_forward(
    audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None, with_index: bool
) -> tuple[Tensor, Tensor | None]:
    sim = audio.new_empty((audio.shape[0], text.shape[0]), dtype=torch.float32)
    index = None
    if with_index:
        columns = audio.shape[0] * audio.shape[1]
        index = audio.new_empty((text.shape[0], columns), dtype=index_dtype(text.shape[1]))
    masks = contiguous(audio_mask), contiguous(text_mask)
    cpp.max_mean_padded(audio.contiguous(), text.contiguous(), *masks, sim, index)
    return sim, index


class _PaddedScore(torch.autograd.Function):
    """The forward that `padded_score` describes, with the backward of `score`."""

    @staticmethod
    def forward(
        ctx: Any, audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None, with_index: bool
    ) -> Tensor:
        sim, index = _padded_forward(audio, text, audio_mask, text_mask, with_index)
        ctx.save_for_backward(audio, text, audio_mask, text_mask, index)
        return sim

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (grad,) = grads
        audio, text, audio_mask, text_mask, index = ctx.saved_tensors
        clips, captions = from_padded(audio, audio_mask), from_padded(text, text_mask)
        none = grad.new_empty(0)
        winners = none if index is None else index
        options = False, False, "cpp", index is not None  # pairs, sparse, backend, with_index
        grad_audio, grad_text = _backward(grad, winners, none, none, none, *clips, *captions, *options)
        return grad_audio.view(audio.shape), grad_text.view(text.shape), None, None, None


def _reference_score(audio: Sequences, text: Sequences, pairs: bool) -> Tensor:
    frames, audio_mask = reference.pad(audio._replace(rows=_reference_rows(audio.rows)))
    tokens, text_mask = reference.pad(text._replace(rows=_reference_rows(text.rows)))
    with torch.autocast(frames.device.type, enabled=False):
        return reference.max_mean_similarity(frames, tokens, audio_mask, text_mask, pairs=pairs)


def _reference_rows(rows: Tensor) -> Tensor:
    """`rows` in float32 at least, without a second derivative."""
    if rows.dtype != torch.float64:
        rows = rows.float()
    return once_differentiable(rows, NO_SECOND_DERIVATIVE)


def normalize_rows(rows: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """Divide `rows` `[T, D]` by their L2 norms; masked-out rows and norms below 1e-12 give 0, with zero gradient."""
    plain = backend in ("chunked", "reference")
    return reference.normalize(rows, mask) if plain else _normalize(rows, mask, backend)[0]


def _launchers(backend: str) -> ModuleType:
    if backend == "chunked":
        return max_mean_chunked
    if backend == "cpp":
        return cpp
    from atk.kernels import max_mean

    return max_mean


def _sequences(rows: Tensor, cu_seqlens: Tensor, mask: Tensor | None, longest: int) -> Sequences:
    """Contiguous `Sequences`."""
    return Sequences(rows.contiguous(), cu_seqlens.contiguous(), contiguous(mask), longest)


@custom_op("max_mean_forward")
def _forward(
    audio: Tensor, cu_audio: Tensor, audio_mask: Tensor | None, longest_audio: int,
    text: Tensor, cu_text: Tensor, text_mask: Tensor | None, longest_text: int,
    pairs: bool, sparse: bool, backend: str, with_index: bool, unchecked: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Scores [N_a, N_t] (pairs: [N]) and winning tokens [N_t, columns] (pairs: [columns]; [0] if not `with_index`).

    The other results are what the Triton kernels prepared, for the backward (`Packed`; empty for other backends).
    `sparse` tells the backward to expect many exact zeros in the gradient of the scores. With `unchecked`, the values
    of `cu_audio` and `cu_text` are checked first if they are on the CPU, where that is cheap.
    """
    sim, index, *packed = _empty_outputs(
        audio, cu_audio, audio_mask, longest_audio, text, cu_text, text_mask, longest_text,
        pairs, sparse, backend, with_index, unchecked,
    )  # fmt: skip
    if audio.numel() == 0 or text.numel() == 0:
        return sim.zero_(), index, *packed
    if unchecked and audio.device.type == "cpu":
        checks.cu_seqlens_values("audio", cu_audio, audio, longest_audio)
        checks.cu_seqlens_values("text", cu_text, text, longest_text)
    clips = _sequences(audio, cu_audio, audio_mask, longest_audio)
    captions = _sequences(text, cu_text, text_mask, longest_text)
    kept = {"packed": Packed(*packed)} if backend == "triton" else {}
    _launchers(backend).max_mean_forward(clips, captions, sim, index if with_index else None, pairs, **kept)
    return sim, index, *packed


@_forward.register_fake
def _empty_outputs(
    audio: Tensor, cu_audio: Tensor, audio_mask: Tensor | None, longest_audio: int,
    text: Tensor, cu_text: Tensor, text_mask: Tensor | None, longest_text: int,
    pairs: bool, sparse: bool, backend: str, with_index: bool, unchecked: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    clips, captions = cu_audio.shape[0] - 1, cu_text.shape[0] - 1
    dtype = torch.promote_types(audio.dtype, torch.float32)
    sim = audio.new_empty((clips,) if pairs else (clips, captions), dtype=dtype)
    columns = audio.shape[0]
    packed = Packed(audio.new_empty(0, dtype=torch.int32), text.new_empty(0), audio.new_empty(0))
    if backend == "triton":
        masked = audio_mask is not None, text_mask is not None
        columns = index_columns(columns, clips, longest_audio, masked[0])
        packed = empty_packed(audio, clips, masked[0], text, captions, longest_text, masked[1], pairs)
    shape = (columns,) if pairs else (captions, columns)
    return sim, audio.new_empty(shape if with_index else (0,), dtype=index_dtype(longest_text)), *packed


@custom_op("max_mean_backward")
def _backward(
    grad: Tensor, index: Tensor, tables: Tensor, tokens: Tensor, frames: Tensor,
    audio: Tensor, cu_audio: Tensor, audio_mask: Tensor | None, longest_audio: int,
    text: Tensor, cu_text: Tensor, text_mask: Tensor | None, longest_text: int,
    pairs: bool, sparse: bool, backend: str, with_index: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the audio and text rows, from saved or recomputed winning tokens, and what the forward prepared."""
    grad_audio, grad_text = audio.new_empty(audio.shape), text.new_empty(text.shape)
    if audio.numel() == 0 or text.numel() == 0:
        return grad_audio.zero_(), grad_text.zero_()
    clips = _sequences(audio, cu_audio, audio_mask, longest_audio)
    captions = _sequences(text, cu_text, text_mask, longest_text)
    kept = {"packed": Packed(tables, tokens, frames)} if backend == "triton" else {}
    _launchers(backend).max_mean_backward(
        grad.contiguous(), clips, captions, index if with_index else None, grad_audio, grad_text, pairs, sparse, **kept
    )
    return grad_audio, grad_text


@_backward.register_fake
def _empty_gradients(
    grad: Tensor, index: Tensor, tables: Tensor, tokens: Tensor, frames: Tensor,
    audio: Tensor, cu_audio: Tensor, audio_mask: Tensor | None, longest_audio: int,
    text: Tensor, *_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return audio.new_empty(audio.shape), text.new_empty(text.shape)


@custom_op("normalize_rows")
def _normalize(rows: Tensor, mask: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """Unit rows [T, D] and inverse norms [T] in float32; both are 0 where the row is masked out or too short."""
    unit, inverse_norm = _empty_unit(rows, mask, backend)
    if rows.numel():
        _launchers(backend).normalize_rows(rows.contiguous(), contiguous(mask), unit, inverse_norm)
    return unit, inverse_norm


@_normalize.register_fake
def _empty_unit(rows: Tensor, mask: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), rows.new_empty(rows.shape[0], dtype=torch.float32)


@custom_op("normalize_rows_backward")
def _normalize_backward(grad: Tensor, unit: Tensor, inverse_norm: Tensor, backend: str) -> Tensor:
    """`inverse_norm * (grad - <grad, unit> unit)` [T, D]."""
    grad_rows = torch.empty_like(unit)
    if unit.numel():
        _launchers(backend).normalize_rows_backward(grad.contiguous(), unit, inverse_norm, grad_rows)
    return grad_rows


@_normalize_backward.register_fake
def _empty_like_unit(grad: Tensor, unit: Tensor, inverse_norm: Tensor, backend: str) -> Tensor:
    return torch.empty_like(unit)


def _save_scores(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    audio, cu_audio, audio_mask, ctx.longest_audio, text, cu_text, text_mask, ctx.longest_text, *options = inputs
    *ctx.options, _ = options
    ctx.save_for_backward(*output[1:], audio, cu_audio, audio_mask, text, cu_text, text_mask)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate_scores(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 13
    *prepared, audio, cu_audio, audio_mask, text, cu_text, text_mask = ctx.saved_tensors
    clips = audio, cu_audio, audio_mask, ctx.longest_audio
    captions = text, cu_text, text_mask, ctx.longest_text
    grad_audio, grad_text = _backward(grad, *prepared, *clips, *captions, *ctx.options)
    return grad_audio, None, None, None, grad_text, *[None] * 8


def _save_norms(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.backend = inputs[2]
    ctx.save_for_backward(*output)


def _differentiate_norms(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
    unit, inverse_norm = ctx.saved_tensors
    return _normalize_backward(grad, unit, inverse_norm, ctx.backend), None, None


_forward.register_autograd(_differentiate_scores, _save_scores)
_normalize.register_autograd(_differentiate_norms, _save_norms)
_backward.register_autograd(raising_backward(NO_SECOND_DERIVATIVE))
_normalize_backward.register_autograd(raising_backward(NO_SECOND_DERIVATIVE))
