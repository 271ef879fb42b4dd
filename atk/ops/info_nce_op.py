"""The autograd op behind `atk.info_nce`: log-sum-exps of the logits along both axes, on every backend.

Shapes: N_a clips, N_t captions, D channels; logits `S = scale * audio @ text^T`. Saved for the backward: the inputs,
the log-sum-exps, and the logits if they are few. Beyond that, memory is linear in N_a and N_t.
"""

from typing import Any

import torch
from torch import Tensor

from atk.ops import info_nce_chunked, reference
from atk.ops.custom_op import custom_op, without_autocast
from atk.ops.once_differentiable import raising_backward

LOGIT_BUDGET = 256 << 20  # bytes; the chunked backend keeps the logits for the backward if they take no more
_PAIRS_AT_A_TIME = 4096  # widened to float32 together, for the logits of the positives
_NO_SECOND_DERIVATIVE = "atk.info_nce has no second derivative: use backend='reference', which has one"


def dispatch(
    audio: Tensor, text: Tensor, logit_scale: Tensor | float, positive: Tensor | None, columns: bool, backend: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-sum-exps of the logits S along rows and columns, and the logits of the positives.

    Args:
        audio: `[N_a, D]`.
        text: `[N_t, D]`.
        logit_scale: factor of the inner products in S.
        positive: int64 `[N_a]`, the caption of each clip, or None.
        columns: whether to compute the log-sum-exps of the columns.
        backend: as returned by `choose`.

    Returns:
        `rows_i = logsumexp_j(S_ij)` [N_a], `columns_j = logsumexp_i(S_ij)` [N_t] (None unless `columns`), and
        `S[i, positive_i]` [N_a] (None if `positive` is None); float32, or float64 for float64 input. Products of 16-bit
        embeddings are accumulated in float32.
    """
    if audio.dtype != text.dtype:  # the checks allow this only under autocast
        audio, text = audio.float(), text.float()
    scale = as_scalar(logit_scale, audio)
    dtype = scale.dtype
    if backend == "reference":
        with torch.autocast(audio.device.type, enabled=False):
            return reference.pairwise_logsumexp(audio.to(dtype), text.to(dtype), scale, positive, columns)
    keep = backend == "chunked" and keeps_logits(audio, text, scale)
    row_lse, column_lse, positive_logits, _ = _forward(audio, text, scale, positive, columns, backend, keep)
    return row_lse, column_lse if columns else None, None if positive is None else positive_logits


def as_scalar(value: Tensor | float, audio: Tensor) -> Tensor:
    """`value` as a scalar tensor on the device of `audio`, in float32, or in float64 if `audio` is."""
    dtype = torch.float64 if audio.dtype == torch.float64 else torch.float32
    if isinstance(value, Tensor):
        return value.reshape(()).to(audio.device, dtype)
    return torch.full((), float(value), dtype=dtype, device=audio.device)


def keeps_logits(audio: Tensor, text: Tensor, *scalars: Tensor) -> bool:
    """Whether the chunked backends keep the logits: if there will be a backward, and they are within the budget."""
    differentiable = torch.is_grad_enabled() and any(value.requires_grad for value in (audio, text, *scalars))
    return differentiable and audio.shape[0] * text.shape[0] * scalars[0].dtype.itemsize <= LOGIT_BUDGET


@custom_op("info_nce_forward")
def _forward(
    audio: Tensor, text: Tensor, scale: Tensor, positive: Tensor | None, columns: bool, backend: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row and column log-sum-exps [N_a], [N_t], logits of the positives [N_a], and all logits [N_a, N_t].

    Results that are not requested have no elements.
    """
    outputs = _empty_outputs(audio, text, scale, positive, columns, backend, keep)
    if audio.shape[0] == 0 or text.shape[0] == 0:
        for output in outputs:
            output.fill_(-torch.inf)
        return outputs
    with without_autocast(audio.device.type):
        if backend == "triton":
            from atk.kernels import info_nce

            row_lse, column_lse = info_nce.forward(audio.contiguous(), text.contiguous(), scale, columns)
            positive_logits = None if positive is None else _positive_logits(audio, text, scale, positive)
        else:
            kept = outputs[3] if keep else None
            row_lse, column_lse, positive_logits = info_nce_chunked.forward(audio, text, scale, positive, columns, kept)
    return (
        row_lse,
        outputs[1] if column_lse is None else column_lse,
        outputs[2] if positive_logits is None else positive_logits,
        outputs[3],
    )


@_forward.register_fake
def _empty_outputs(
    audio: Tensor, text: Tensor, scale: Tensor, positive: Tensor | None, columns: bool, backend: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row_lse = scale.new_empty(audio.shape[0])
    column_lse = scale.new_empty(text.shape[0] if columns else 0)
    positive_logits = scale.new_empty(0 if positive is None else audio.shape[0])
    logits = scale.new_empty((audio.shape[0], text.shape[0]) if keep else (0, 0))
    return row_lse, column_lse, positive_logits, logits


def _positive_logits(audio: Tensor, text: Tensor, scale: Tensor, positive: Tensor) -> Tensor:
    """`S[i, positive_i]` [N_a] in float32."""
    chunks = zip(audio.split(_PAIRS_AT_A_TIME), positive.split(_PAIRS_AT_A_TIME), strict=True)
    return scale * torch.cat([(clips.float() * text[captions].float()).sum(1) for clips, captions in chunks])


@custom_op("info_nce_backward")
def _backward(
    audio: Tensor, text: Tensor, scale: Tensor, rows: Tensor, columns: Tensor | None, grad_rows: Tensor,
    grad_columns: Tensor | None, positive: Tensor | None, grad_positive: Tensor | None, logits: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of audio, text, and scale. `logits` None: the forward kept none."""
    if audio.shape[0] == 0 or text.shape[0] == 0:
        return torch.zeros_like(audio), torch.zeros_like(text), torch.zeros_like(scale)
    arguments = (
        audio.contiguous(), text.contiguous(), scale, rows.contiguous(), _contiguous(columns), grad_rows.contiguous(),
        _contiguous(grad_columns), _contiguous(positive), _contiguous(grad_positive),
    )  # fmt: skip
    with without_autocast(audio.device.type):
        if backend == "triton":
            from atk.kernels import info_nce

            return info_nce.backward(*arguments)
        return info_nce_chunked.backward(*arguments, logits)


def _contiguous(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


@_backward.register_fake
def _empty_gradients(audio: Tensor, text: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return audio.new_empty(audio.shape), text.new_empty(text.shape), scale.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    audio, text, scale, positive, columns, ctx.backend, keep = inputs
    row_lse, column_lse, _, logits = output
    saved = audio, text, scale, row_lse, column_lse if columns else None, positive, logits if keep else None
    ctx.save_for_backward(*saved)
    ctx.mark_non_differentiable(logits)
    ctx.set_materialize_grads(False)  # a gradient of zeros for the logits would take as much memory as they do


def _differentiate(
    ctx: Any, grad_rows: Tensor | None, grad_columns: Tensor | None, grad_positive: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    audio, text, scale, rows, columns, positive, logits = ctx.saved_tensors
    grad_rows = torch.zeros_like(rows) if grad_rows is None else grad_rows
    if columns is not None and grad_columns is None:
        grad_columns = torch.zeros_like(columns)
    if positive is not None and grad_positive is None:
        grad_positive = torch.zeros_like(rows)
    grads = _backward(
        audio, text, scale, rows, columns, grad_rows, None if columns is None else grad_columns, positive,
        None if positive is None else grad_positive, logits, ctx.backend,
    )  # fmt: skip
    return *grads, None, None, None, None


_forward.register_autograd(_differentiate, _save)
_backward.register_autograd(raising_backward(_NO_SECOND_DERIVATIVE))
