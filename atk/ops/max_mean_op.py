"""The `torch.library` ops behind max-mean similarity: scores and their gradients, normalised rows, on every backend.

T_a rows of frames and T_t rows of tokens belong to N_a clips and N_t captions, D channels; see `atk.kernels.sequences`.
"""

import torch
from torch import Tensor

from atk.kernels.sequences import Sequences, index_dtype
from atk.ops import checks, reference
from atk.ops.once_differentiable import once_differentiable, refuse

INDEX_BUDGET = 1 << 30  # bytes of winning tokens that save_index=None keeps for the backward
_NO_SECOND_DERIVATIVE = (
    "atk.max_mean_similarity has no second derivative: differentiate its gradient with plain PyTorch"
)


def score(
    audio: Sequences, text: Sequences, *, pairs: bool, sparse: bool, save_index: bool | None, backend: str
) -> Tensor:
    """`sim` `[N_a, N_t]` (3.6), or `[N]` for `pairs`, in float32 at least."""
    if backend == "reference":
        rows = (side.rows if side.rows.dtype == torch.float64 else side.rows.float() for side in (audio, text))
        if not torch.compiler.is_compiling():  # a compiled graph refuses second derivatives itself
            rows = (once_differentiable(row, _NO_SECOND_DERIVATIVE) for row in rows)
        audio, text = (side._replace(rows=row) for side, row in zip((audio, text), rows, strict=True))
        (audio, audio_mask), (text, text_mask) = reference.pad(audio), reference.pad(text)
        with torch.autocast(audio.device.type, enabled=False):
            return reference.max_mean_similarity(audio, text, audio_mask, text_mask, pairs=pairs)
    if save_index is None:
        save_index = (1 if pairs else text.number) * audio.rows.shape[0] * index_dtype(
            text.longest
        ).itemsize <= INDEX_BUDGET
    with_index = save_index and torch.is_grad_enabled() and (audio.rows.requires_grad or text.rows.requires_grad)
    return _forward(*audio, *text, pairs, sparse, backend, with_index)[0]


def normalize_rows(rows: Tensor, mask: Tensor | None, backend: str) -> Tensor:
    """`rows` `[T, D]` over their L2 norms; rows masked out or shorter than 1e-12 become 0, with gradient 0."""
    return reference.normalize(rows, mask) if backend == "reference" else _normalize(rows, mask, backend)[0]


def _launchers(backend: str):
    if backend == "cpp":
        from atk.kernels import cpp as launchers
    else:
        from atk.kernels import max_mean as launchers
    return launchers


def _sequences(name: str, rows: Tensor, cu_seqlens: Tensor, mask: Tensor | None, longest: int) -> Sequences:
    if rows.device.type == "cpu":  # where looking costs nothing, and a wrong number would reach foreign memory
        checks.cu_seqlens_values(name, cu_seqlens, rows, longest)
    return Sequences(rows.contiguous(), cu_seqlens.contiguous(), None if mask is None else mask.contiguous(), longest)


@torch.library.custom_op("atk::max_mean_forward", mutates_args=())
def _forward(
    audio: Tensor, cu_audio: Tensor, audio_mask: Tensor | None, longest_audio: int,
    text: Tensor, cu_text: Tensor, text_mask: Tensor | None, longest_text: int,
    pairs: bool, sparse: bool, backend: str, with_index: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Scores [N_a, N_t] (pairs: [N]) and, if asked for, the winners [N_t, T_a] (pairs: [T_a]; else empty).

    `sparse` is for the backward: many gradients of scores will be exactly 0.
    """
    sim, index = _empty_outputs(
        audio, cu_audio, audio_mask, longest_audio, text, cu_text, text_mask, longest_text,
        pairs, sparse, backend, with_index,
    )  # fmt: skip
    if audio.numel() == 0 or text.numel() == 0:
        return sim.zero_(), index
    sides = (
        _sequences("audio", audio, cu_audio, audio_mask, longest_audio),
        _sequences("text", text, cu_text, text_mask, longest_text),
    )
    _launchers(backend).max_mean_forward(*sides, sim, index if with_index else None, pairs)
    return sim, index


@_forward.register_fake
def _empty_outputs(
    audio, cu_audio, audio_mask, longest_audio, text, cu_text, text_mask, longest_text,
    pairs, sparse, backend, with_index,
):  # fmt: skip
    clips, captions = cu_audio.shape[0] - 1, cu_text.shape[0] - 1
    sim = audio.new_empty((clips,) if pairs else (clips, captions), dtype=torch.float32)
    shape = (audio.shape[0],) if pairs else (captions, audio.shape[0])
    return sim, audio.new_empty(shape if with_index else (0,), dtype=index_dtype(longest_text))


@torch.library.custom_op("atk::max_mean_backward", mutates_args=())
def _backward(
    grad: Tensor, index: Tensor,
    audio: Tensor, cu_audio: Tensor, audio_mask: Tensor | None, longest_audio: int,
    text: Tensor, cu_text: Tensor, text_mask: Tensor | None, longest_text: int,
    pairs: bool, sparse: bool, backend: str, with_index: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of audio and text rows, from the winners or, without them, by computing them again."""
    grad_audio, grad_text = audio.new_empty(audio.shape), text.new_empty(text.shape)
    if audio.numel() == 0 or text.numel() == 0:
        return grad_audio.zero_(), grad_text.zero_()
    sides = (
        _sequences("audio", audio, cu_audio, audio_mask, longest_audio),
        _sequences("text", text, cu_text, text_mask, longest_text),
    )
    _launchers(backend).max_mean_backward(
        grad.contiguous(), *sides, index if with_index else None, grad_audio, grad_text, pairs, sparse
    )
    return grad_audio, grad_text


@_backward.register_fake
def _empty_gradients(grad, index, audio, cu_audio, audio_mask, longest_audio, text, *rest):
    return audio.new_empty(audio.shape), text.new_empty(text.shape)


@torch.library.custom_op("atk::normalize_rows", mutates_args=())
def _normalize(rows: Tensor, mask: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """Unit rows [T, D] and the inverse norms [T] in float32, 0 where the row is masked out or too short."""
    unit, inverse_norm = _empty_unit(rows, mask, backend)
    if rows.numel():
        mask = None if mask is None else mask.contiguous()
        _launchers(backend).normalize_rows(rows.contiguous(), mask, unit, inverse_norm)
    return unit, inverse_norm


@_normalize.register_fake
def _empty_unit(rows, mask, backend):
    return rows.new_empty(rows.shape), rows.new_empty(rows.shape[0], dtype=torch.float32)


@torch.library.custom_op("atk::normalize_rows_backward", mutates_args=())
def _normalize_backward(grad: Tensor, unit: Tensor, inverse_norm: Tensor, backend: str) -> Tensor:
    """`inverse_norm * (grad - <grad, unit> unit)` [T, D]."""
    grad_rows = torch.empty_like(unit)
    if unit.numel():
        _launchers(backend).normalize_rows_backward(grad.contiguous(), unit, inverse_norm, grad_rows)
    return grad_rows


@_normalize_backward.register_fake
def _empty_like_unit(grad, unit, inverse_norm, backend):
    return torch.empty_like(unit)


def _save_scores(ctx, inputs, output):
    audio, cu_audio, audio_mask, ctx.longest_audio, text, cu_text, text_mask, ctx.longest_text, *ctx.options = inputs
    ctx.save_for_backward(output[1], audio, cu_audio, audio_mask, text, cu_text, text_mask)


def _differentiate_scores(ctx, grad, _):
    index, *audio_and_text = ctx.saved_tensors
    audio, text = audio_and_text[:3], audio_and_text[3:]
    grads = _backward(grad, index, *audio, ctx.longest_audio, *text, ctx.longest_text, *ctx.options)
    return grads[0], None, None, None, grads[1], *[None] * 7


def _save_norms(ctx, inputs, output):
    ctx.backend = inputs[2]
    ctx.save_for_backward(*output)


def _differentiate_norms(ctx, grad, _):
    return _normalize_backward(grad, *ctx.saved_tensors, ctx.backend), None, None


_forward.register_autograd(_differentiate_scores, setup_context=_save_scores)
_normalize.register_autograd(_differentiate_norms, setup_context=_save_norms)
_backward.register_autograd(refuse(_NO_SECOND_DERIVATIVE))
_normalize_backward.register_autograd(refuse(_NO_SECOND_DERIVATIVE))
