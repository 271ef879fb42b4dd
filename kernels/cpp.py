"""Launchers of the C++ extension (csrc/, built as `atk._C`): CPU, float32 / bfloat16 / float16, multi-threaded.

Shapes: N_a clips, N_t captions, L_a frames, L_t tokens, D channels. Callers have checked and allocated everything.
"""

from pathlib import Path

import torch
from torch import Tensor

import atk

try:
    from atk import _C
except ImportError as error:
    _C = None
    _IMPORT_ERROR = str(error)

_REBUILD = "install a C++17 compiler (or point CXX at one) and reinstall audio-text-kernels"


def unavailable() -> str | None:
    """None when the extension is there, else why not and how to get it."""
    if _C is not None:
        return None
    build_error = Path(atk.__file__).with_name("_build_error.txt")
    if build_error.is_file():
        return f"the C++ extension was not built: {build_error.read_text().splitlines()[0]}; {_REBUILD}"
    return f"the C++ extension cannot be imported ({_IMPORT_ERROR}); {_REBUILD}"


def max_mean_forward(
    audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None, sim: Tensor, index: Tensor | None
) -> None:
    """Writes `sim[i,j] = mean_{t valid} max_{l valid} <audio[i,t], text[j,l]>` (3.6) and the winning tokens.

    Args:
        audio: `[N_a, L_a, D]`, contiguous, float32 | bfloat16 | float16.
        text: `[N_t, L_t, D]`, contiguous, the dtype of `audio`.
        audio_mask: `[N_a, L_a]` bool, contiguous; None: every frame is valid.
        text_mask: `[N_t, L_t]` bool, contiguous; None: every token is valid.
        sim: `[N_a, N_t]` float32, written whole; 0 where the clip or the caption has nothing valid.
        index: `[N_a, N_t, L_a]` uint8 | int16 | int32, position of the winning token for every valid frame (the
            first on ties), elsewhere left as it is; None: not wanted.
    """
    _problem(audio, text, audio_mask, text_mask, index).forward(sim.data_ptr())


def max_mean_backward(
    grad: Tensor,
    audio: Tensor,
    text: Tensor,
    audio_mask: Tensor | None,
    text_mask: Tensor | None,
    index: Tensor,
    grad_audio: Tensor,
    grad_text: Tensor,
) -> None:
    """Writes the gradients of `max_mean_forward`, summed in float32 in a fixed order, whatever the thread count.

    Args:
        grad: `[N_a, N_t]` float32, contiguous, dL/dsim.
        index: what the forward wrote for the same inputs.
        grad_audio: like `audio`, written whole: `sum_j grad[i,j] / n_i * text[j, index[i,j,t]]`, n_i valid frames.
        grad_text: like `text`, written whole: `sum_{i,t: index[i,j,t] = l} grad[i,j] / n_i * audio[i,t]`.
    """
    problem = _problem(audio, text, audio_mask, text_mask, index)
    problem.backward(grad.data_ptr(), grad_audio.data_ptr(), grad_text.data_ptr())


def _problem(
    audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None, index: Tensor | None
) -> "_C.MaxMean":
    n_a, l_a, d = audio.shape
    n_t, l_t, _ = text.shape
    return _C.MaxMean(
        audio=audio.data_ptr(),
        text=text.data_ptr(),
        audio_mask=0 if audio_mask is None else audio_mask.data_ptr(),
        text_mask=0 if text_mask is None else text_mask.data_ptr(),
        index=0 if index is None else index.data_ptr(),
        index_bytes=1 if index is None else index.element_size(),
        dtype=getattr(_C.Dtype, str(audio.dtype).removeprefix("torch.")),
        n_a=n_a,
        n_t=n_t,
        l_a=l_a,
        l_t=l_t,
        d=d,
        threads=torch.get_num_threads(),
    )
