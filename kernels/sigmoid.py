"""Launchers for the streaming sigmoid loss in Triton. Results are bitwise reproducible; nothing synchronizes.

Shapes: N_a clips, N_t captions, D channels; logits S = scale * audio @ text^T + bias. Beyond inputs and results, memory
is 32 MiB of workspace and float32 sums of the gradients, linear in N_a and N_t.
"""

import torch
from torch import Tensor

from atk.kernels.info_nce import GROUP, embedding_gradients, packed
from atk.kernels.launch import Device, cdiv, column_span, on_device, sigmoid_launch
from atk.kernels.sigmoid_kernels import sigmoid_grad_kernel, sigmoid_loss_kernel

__all__ = ["backward", "forward"]


def forward(audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positive: Tensor | None) -> Tensor:
    """losses_i = sum_j softplus(S_ij), with -S_ij instead for j = positive_i, in one pass.

    Args:
        audio: [N_a, D] float32, bfloat16 or float16, contiguous. Products accumulate in float32.
        text: [N_t, D] of the same dtype, contiguous.
        scale, bias: float32 scalar tensors on the same device.
        positive: [N_a] int64, contiguous: the caption of each clip, -1 for none; None: no clip has one.

    Returns:
        losses [N_a] in float32, 0 if there is nothing to sum over.
    """
    with on_device(audio.device):
        N_a, N_t = len(audio), len(text)
        if N_a == 0 or N_t == 0:
            return torch.zeros(N_a, dtype=torch.float32, device=audio.device)
        audio, text = packed(audio), packed(text)
        D = audio.shape[1]
        device = Device.of(audio.device)
        launch = sigmoid_launch(audio.dtype, D, device)
        row_tiles, column_tiles = cdiv(N_a, launch.rows), cdiv(N_t, launch.columns)
        span = column_span(row_tiles, column_tiles, device)
        parts = cdiv(column_tiles, span)
        loss_parts = torch.empty(parts, N_a, dtype=torch.float32, device=audio.device)
        sigmoid_loss_kernel[(row_tiles * parts,)](
            audio, text, scale, bias, positive, loss_parts, N_a, N_t, D, span, GROUP=GROUP, **launch.meta()
        )
        return loss_parts.sum(0)


def backward(
    audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positive: Tensor | None, grad_losses: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of audio, text, scale and bias, from recomputed logits.

        dS_ij = grad_losses_i sigmoid(S_ij), or -grad_losses_i sigmoid(-S_ij) for j = positive_i
        grad_audio = scale * dS @ text, grad_text = scale * dS^T @ audio, grad_scale = sum dS * (audio @ text^T),
        grad_bias = sum dS

    In half precision, dS is rounded before the products.

    Args:
        audio, text, scale, bias, positive: as passed to `forward`.
        grad_losses: [N_a] float32.

    Returns:
        grad_audio [N_a, D] and grad_text [N_t, D] of the dtype of the inputs, and two float32 scalars.
    """
    with on_device(audio.device):
        if len(audio) == 0 or len(text) == 0:
            return torch.zeros_like(audio), torch.zeros_like(text), torch.zeros_like(scale), torch.zeros_like(bias)
        grad_losses = grad_losses.contiguous()  # the gradient of a mean arrives as an expanded scalar
        largest = torch.linalg.vector_norm(grad_losses, torch.inf).clamp(min=1e-30)  # a bound on |dS|, not 0
        unit = largest / 2**14  # scale of the weights

        def grad_logits(clips: Tensor, captions: Tensor, weights: Tensor, i: slice, j: slice) -> Tensor:
            targets = None if positive is None else positive[i]
            return _grad_logits(clips, captions, scale, bias, targets, grad_losses[i], largest, weights, j.start)

        grad_audio, grad_text, parts = embedding_gradients(audio, text, unit * scale, grad_logits)
        grad_scale, grad_bias = torch.cat(parts, 1).sum(1) * unit
        return grad_audio, grad_text, grad_scale.clone(), grad_bias.clone()  # an op's results share no storage


def _grad_logits(
    audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positive: Tensor | None, grad_losses: Tensor,
    largest: Tensor, weights: Tensor, first_column: int,
) -> Tensor:  # fmt: skip
    """Computes the gradients of one chunk of logits, scaled by 2^14 / largest.

    Args:
        audio: [M, D], packed.
        text: [N, D] of the same dtype, packed.
        scale, bias: float32 scalars.
        positive: [M] int64, the caption of each row, or None.
        grad_losses: [M] float32.
        largest: float32 scalar, an upper bound on the gradients' magnitude.
        weights: written, [M, stride] of the dtype of the inputs; stride is a multiple of 16. Only N columns matter.
        first_column: caption of the first column.

    Returns:
        [2, tiles] float32: the sums over each tile of weights * (audio @ text^T), and of weights.
    """
    M, D = audio.shape
    N = len(text)
    launch = sigmoid_launch(audio.dtype, D, Device.of(audio.device))
    programs = cdiv(M, launch.rows) * cdiv(N, launch.columns)
    parts = largest.new_empty(2, programs)
    sigmoid_grad_kernel[(programs,)](
        audio, text, scale, bias, positive, grad_losses, largest, weights, parts[0], parts[1], M, N, D,
        weights.stride(0), first_column, **launch.meta(),
    )  # fmt: skip
    return parts
