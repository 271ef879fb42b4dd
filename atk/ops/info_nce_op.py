"""The `torch.library` op behind InfoNCE: log-sum-exps of logits along both axes, on every backend.

Shapes: N_a clips, N_t captions, D channels; logits `S = scale * audio @ text^T`. Kept for the backward: the inputs and
the log-sum-exps, so memory is linear in N_a and N_t.
"""

import torch
from torch import Tensor

from atk.ops import reference
from atk.ops.once_differentiable import refuse

_PAIRS_AT_A_TIME = 4096  # widened for the logits of the positives
_NO_SECOND_DERIVATIVE = "atk.info_nce has no second derivative: use backend='reference', which has one"


def dispatch(
    audio: Tensor, text: Tensor, logit_scale: Tensor | float, positive: Tensor | None, columns: bool, backend: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """rows_i = logsumexp_j(S_ij) [N_a], columns_j = logsumexp_i(S_ij) [N_t] if wanted, S[i, positive_i] [N_a] if given.

    All in float32, or float64 for float64; 16-bit embeddings are multiplied with sums in float32.
    """
    if audio.dtype != text.dtype:  # which only autocast lets through
        audio, text = audio.float(), text.float()
    dtype = torch.float64 if audio.dtype == torch.float64 else torch.float32
    if isinstance(logit_scale, Tensor):
        scale = logit_scale.reshape(()).to(audio.device, dtype)
    else:
        scale = torch.full((), float(logit_scale), dtype=dtype, device=audio.device)
    if backend == "reference":
        with torch.autocast(audio.device.type, enabled=False):
            return reference.pairwise_logsumexp(audio.to(dtype), text.to(dtype), scale, positive, columns)
    rows, column_lse, paired = _forward(audio, text, scale, positive, columns, backend)
    return rows, column_lse if columns else None, None if positive is None else paired


@torch.library.custom_op("atk::info_nce_forward", mutates_args=())
def _forward(
    audio: Tensor, text: Tensor, scale: Tensor, positive: Tensor | None, columns: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """rows [N_a], columns [N_t] ([0] if not wanted) and the logits of the positives [N_a] ([0] without)."""
    results = _empty_outputs(audio, text, scale, positive, columns, backend)
    if len(audio) == 0 or len(text) == 0:
        return tuple(result.fill_(-torch.inf) for result in results)
    with torch.autocast(audio.device.type, enabled=False):
        if backend == "triton":
            from atk.kernels import info_nce

            found = info_nce.forward(audio.contiguous(), text.contiguous(), scale, columns)
            found = *found, None if positive is None else _paired_logits(audio, text, scale, positive)
        else:
            from atk.ops import info_nce_chunked

            found = info_nce_chunked.forward(audio, text, scale, positive, columns)
    return tuple(empty if value is None else value for empty, value in zip(results, found, strict=True))


@_forward.register_fake
def _empty_outputs(audio, text, scale, positive, columns, backend):
    sizes = len(audio), len(text) if columns else 0, 0 if positive is None else len(audio)
    return tuple(scale.new_empty(size) for size in sizes)


def _paired_logits(audio: Tensor, text: Tensor, scale: Tensor, positive: Tensor) -> Tensor:
    chunks = zip(audio.split(_PAIRS_AT_A_TIME), positive.split(_PAIRS_AT_A_TIME), strict=True)
    return scale * torch.cat([(clips.float() * text[captions].float()).sum(1) for clips, captions in chunks])


@torch.library.custom_op("atk::info_nce_backward", mutates_args=())
def _backward(
    audio: Tensor, text: Tensor, scale: Tensor, rows: Tensor, columns: Tensor | None, grad_rows: Tensor,
    grad_columns: Tensor | None, positive: Tensor | None, grad_positive: Tensor | None, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of audio, text and scale."""
    if len(audio) == 0 or len(text) == 0:
        return torch.zeros_like(audio), torch.zeros_like(text), torch.zeros_like(scale)
    if backend == "triton":
        from atk.kernels import info_nce as launchers
    else:
        from atk.ops import info_nce_chunked as launchers
    tensors = rows, columns, grad_rows, grad_columns, positive, grad_positive
    tensors = (None if value is None else value.contiguous() for value in tensors)
    with torch.autocast(audio.device.type, enabled=False):
        return launchers.backward(audio.contiguous(), text.contiguous(), scale, *tensors)


@_backward.register_fake
def _empty_gradients(audio, text, scale, *rest):
    return audio.new_empty(audio.shape), text.new_empty(text.shape), scale.new_empty(())


def _save(ctx, inputs, output):
    audio, text, scale, positive, columns, ctx.backend = inputs
    rows, column_lse, _ = output
    ctx.save_for_backward(audio, text, scale, rows, column_lse if columns else None, positive)


def _differentiate(ctx, grad_rows, grad_columns, grad_paired):
    *inputs, columns, positive = ctx.saved_tensors
    grads = grad_rows, None if columns is None else grad_columns, positive, None if positive is None else grad_paired
    return *_backward(*inputs, columns, *grads, ctx.backend), None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(refuse(_NO_SECOND_DERIVATIVE))
