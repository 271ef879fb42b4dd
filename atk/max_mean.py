"""Frame-token max-mean similarity (3.6): checks, the `torch.library` op over the backends, and the public call."""

import torch
import torch.nn.functional as F
from torch import Tensor

from atk import checks, reference
from atk.backend import choose

DIRECTIONS = ("audio", "text", "both")
_NO_SECOND_DERIVATIVE = (
    "atk.max_mean_similarity has no second derivative: differentiate its gradient with plain PyTorch"
)


def max_mean_similarity(
    audio: Tensor,
    text: Tensor,
    audio_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    normalize: bool = False,
    direction: str = "audio",
    backend: str = "auto",
) -> Tensor:
    """Score every clip against every caption by the mean over frames of the best token (thesis eq. 3.6).

    `sim[i, j] = (1 / L_a) * sum_t max_l <audio[i, t], text[j, l]>`, over valid frames t and valid tokens l. With
    unit-length embeddings (or `normalize=True`) the inner product is the cosine. No backend but `"reference"` ever
    holds the `N_a x N_t x L_a x L_t` scores.

    Args:
        audio: frame embeddings `[N_a, L_a, D]`, float32, bfloat16 or float16 (float64: `"reference"` only).
        text: token embeddings `[N_t, L_t, D]`, same dtype and device.
        audio_mask: boolean `[N_a, L_a]`, True = valid frame; None = all. Holes are allowed.
        text_mask: boolean `[N_t, L_t]`, True = valid token; None = all.
        normalize: divide every embedding by its L2 norm first.
        direction: `"audio"` looks from frames to tokens as above; `"text"` takes for each token the best frame and
            the mean over tokens; `"both"` is the average of the two (FILIP).
        backend: `"auto"`, `"reference"`, `"cpp"` or `"triton"`; see `atk.backends()`.

    Returns:
        `[N_a, N_t]` scores in float32 (float64 for float64 input). Padding contributes nothing, whatever it holds; a
        clip without a valid frame or a caption without a valid token scores 0 with zero gradient; ties go to the
        first token; NaN in a valid position propagates as in `torch.max`. Under autocast the inputs are cast to its
        dtype, as for a matrix product.

    Raises:
        ValueError, TypeError: a shape, dtype, device or mask does not fit; the message names the argument.
        atk.BackendError: the backend asked for cannot run here.
        RuntimeError: when a second derivative is taken.
    """
    checks.embeddings("audio", audio, "N_a, L_a, D")
    checks.embeddings("text", text, "N_t, L_t, D", like=("audio", audio))
    checks.mask("audio_mask", audio_mask, "audio", audio)
    checks.mask("text_mask", text_mask, "text", text)
    checks.one_of("direction", direction, DIRECTIONS)
    if normalize:
        audio, text = normalized(audio, audio_mask), normalized(text, text_mask)
    if audio.dtype != torch.float64 and torch.is_autocast_enabled(audio.device.type):
        dtype = torch.get_autocast_dtype(audio.device.type)
        audio, text = audio.to(dtype), text.to(dtype)
    backend = choose(backend, audio.device, audio.dtype)
    if direction == "audio":
        return _similarity(audio, text, audio_mask, text_mask, backend)
    by_text = _similarity(text, audio, text_mask, audio_mask, backend).T
    if direction == "text":
        return by_text
    return (_similarity(audio, text, audio_mask, text_mask, backend) + by_text) / 2


def normalized(value: Tensor, mask: Tensor | None = None) -> Tensor:
    """`value` over its L2 norm along the last axis, computed in float32 at least; masked vectors become 0."""
    if mask is not None:  # the gradient of a norm at NaN padding would be NaN
        value = value.masked_fill(~mask[..., None], 0)
    wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    return F.normalize(wide, dim=-1).to(value.dtype)


def _similarity(
    audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None, backend: str
) -> Tensor:
    if backend == "reference":
        if audio.dtype in (torch.float16, torch.bfloat16):
            audio, text = audio.float(), text.float()
        if not torch.compiler.is_compiling():  # a compiled graph refuses second derivatives itself
            audio, text = _OnceDifferentiable.apply(audio), _OnceDifferentiable.apply(text)
        with torch.autocast(audio.device.type, enabled=False):
            return reference.max_mean_similarity(audio, text, audio_mask, text_mask)
    with_index = torch.is_grad_enabled() and (audio.requires_grad or text.requires_grad)
    return _forward(audio, text, audio_mask, text_mask, backend, with_index)[0]


def _launchers(backend: str):
    if backend == "cpp":
        from atk.kernels import cpp as launchers
    else:
        from atk.kernels import max_mean as launchers
    return launchers


def _index_dtype(tokens: int) -> torch.dtype:
    return torch.uint8 if tokens <= 256 else torch.int16 if tokens <= 32768 else torch.int32


@torch.library.custom_op("atk::max_mean_forward", mutates_args=())
def _forward(
    audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None, backend: str, with_index: bool
) -> tuple[Tensor, Tensor]:
    """Scores [N_a, N_t] and, when asked for, the winning token of each frame [N_a, N_t, L_a] (else empty)."""
    sim, index = _empty_outputs(audio, text, audio_mask, text_mask, backend, with_index)
    if audio.numel() == 0 or text.numel() == 0:
        return sim.zero_(), index
    _launchers(backend).max_mean_forward(
        *_contiguous(audio, text, audio_mask, text_mask), sim, index if with_index else None
    )
    return sim, index


@_forward.register_fake
def _empty_outputs(audio, text, audio_mask, text_mask, backend, with_index):
    sim = audio.new_empty((audio.shape[0], text.shape[0]), dtype=torch.float32)
    shape = (audio.shape[0], text.shape[0], audio.shape[1]) if with_index else (0,)
    return sim, audio.new_empty(shape, dtype=_index_dtype(text.shape[1]))


@torch.library.custom_op("atk::max_mean_backward", mutates_args=())
def _backward(
    grad: Tensor,
    audio: Tensor,
    text: Tensor,
    audio_mask: Tensor | None,
    text_mask: Tensor | None,
    index: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to audio and text from the saved winners."""
    grad_audio, grad_text = _empty_gradients(grad, audio, text, audio_mask, text_mask, index, backend)
    if audio.numel() == 0 or text.numel() == 0:
        return grad_audio.zero_(), grad_text.zero_()
    _launchers(backend).max_mean_backward(
        grad.contiguous(), *_contiguous(audio, text, audio_mask, text_mask), index, grad_audio, grad_text
    )
    return grad_audio, grad_text


@_backward.register_fake
def _empty_gradients(grad, audio, text, audio_mask, text_mask, index, backend):
    return audio.new_empty(audio.shape), text.new_empty(text.shape)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _save(ctx, inputs, output):
    audio, text, audio_mask, text_mask, ctx.backend, _ = inputs
    ctx.save_for_backward(audio, text, audio_mask, text_mask, output[1])


def _differentiate(ctx, grad, _):
    audio, text, audio_mask, text_mask, index = ctx.saved_tensors
    return *_backward(grad, audio, text, audio_mask, text_mask, index, ctx.backend), None, None, None, None


def _refuse(ctx, *grads):
    raise RuntimeError(_NO_SECOND_DERIVATIVE)


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_refuse)


class _OnceDifferentiable(torch.autograd.Function):
    """The identity, whose gradient refuses to be differentiated: the reference then behaves as the kernels do."""

    @staticmethod
    def forward(ctx, value):
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        return _Constant.apply(grad)


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad):
        return grad.view_as(grad)

    backward = staticmethod(_refuse)
