"""The autograd op behind `atk.sigmoid_loss`: the summed loss of each clip, on every backend.

Shapes: N_a clips, N_t captions, D channels; logits `S = scale * audio @ text^T + bias`. Only the inputs are saved for
the backward.
"""

from typing import Any

import torch
from torch import Tensor

from atk.ops import reference, sigmoid_chunked
from atk.ops.custom_op import custom_op, without_autocast
from atk.ops.info_nce_op import as_scalar, keeps_logits
from atk.ops.once_differentiable import raising_backward

_NO_SECOND_DERIVATIVE = "atk.sigmoid_loss has no second derivative: use backend='reference', which has one"


def dispatch(
    audio: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float, positive: Tensor | None,
    backend: str,
) -> Tensor:  # fmt: skip
    """`-sum_j log sigmoid(z_ij S_ij)` for each clip i, where z is 1 for its positive and -1 for the other captions.

    Args:
        audio: `[N_a, D]`.
        text: `[N_t, D]`.
        logit_scale: factor of the inner products in S.
        logit_bias: added to them.
        positive: int64 `[N_a]`, the caption of each clip, -1 for none; None: no clip has a positive.
        backend: as returned by `choose`.

    Returns:
        [N_a] in float32, or float64 for float64 input. Products of 16-bit embeddings are accumulated in float32.
    """
    if audio.dtype != text.dtype:  # the checks allow this only under autocast
        audio, text = audio.float(), text.float()
    scale, bias = as_scalar(logit_scale, audio), as_scalar(logit_bias, audio)
    if backend == "reference":
        with torch.autocast(audio.device.type, enabled=False):
            logits = (audio.to(scale.dtype) @ text.to(scale.dtype).T) * scale + bias
            return reference.sigmoid_losses(logits, positive)
    keep = backend == "chunked" and keeps_logits(audio, text, scale, bias)
    return _forward(audio, text, scale, bias, positive, backend, keep)[0]


@custom_op("sigmoid_loss_forward")
def _forward(
    audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positive: Tensor | None, backend: str, keep: bool
) -> tuple[Tensor, Tensor]:
    """The summed loss of each clip [N_a], and the logits without the bias [N_a, N_t] ([0, 0] unless `keep`)."""
    losses, logits = _empty_outputs(audio, text, scale, bias, positive, backend, keep)
    if audio.shape[0] == 0 or text.shape[0] == 0:
        return losses.zero_(), logits
    with without_autocast(audio.device.type):
        if backend == "triton":
            from atk.kernels import sigmoid

            losses = sigmoid.forward(audio.contiguous(), text.contiguous(), scale, bias, _contiguous(positive))
        else:
            losses = sigmoid_chunked.forward(audio, text, scale, bias, positive, logits if keep else None)
    return losses, logits


@_forward.register_fake
def _empty_outputs(
    audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positive: Tensor | None, backend: str, keep: bool
) -> tuple[Tensor, Tensor]:
    return scale.new_empty(audio.shape[0]), scale.new_empty((audio.shape[0], text.shape[0]) if keep else (0, 0))


@custom_op("sigmoid_loss_backward")
def _backward(
    audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positive: Tensor | None, logits: Tensor | None,
    grad_losses: Tensor, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of audio, text, scale and bias. `logits` None: the forward kept none."""
    if audio.shape[0] == 0 or text.shape[0] == 0:
        return torch.zeros_like(audio), torch.zeros_like(text), torch.zeros_like(scale), torch.zeros_like(bias)
    arguments = audio.contiguous(), text.contiguous(), scale, bias, _contiguous(positive), grad_losses.contiguous()
    with without_autocast(audio.device.type):
        if backend == "triton":
            from atk.kernels import sigmoid

            return sigmoid.backward(*arguments)
        return sigmoid_chunked.backward(*arguments, logits)


def _contiguous(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


@_backward.register_fake
def _empty_gradients(audio: Tensor, text: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return audio.new_empty(audio.shape), text.new_empty(text.shape), scale.new_empty(()), scale.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.backend, keep = inputs
    ctx.save_for_backward(*tensors, output[1] if keep else None)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # a gradient of zeros for the logits would take as much memory as they do


def _differentiate(ctx: Any, grad_losses: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_losses is None:
        return (None,) * 7
    return *_backward(*ctx.saved_tensors, grad_losses, ctx.backend), None, None, None


_forward.register_autograd(_differentiate, _save)
_backward.register_autograd(raising_backward(_NO_SECOND_DERIVATIVE))
