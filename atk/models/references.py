"""Reference clips of the captioner: checks, and the silence around their sound."""

import torch
from torch import Tensor

from atk.models.layers import check_waveforms

_SILENT = 2.0**-16  # smaller samples are 0 in a 16-bit file


def check_references(
    audio: Tensor, lengths: Tensor, references: Tensor | None, reference_lengths: Tensor | None
) -> None:
    """Check clips `[N, S]` and their references `[N, R, S_ref]`, or None for both arguments of the references.

    Raises:
        TypeError, ValueError: as in `check_waveforms`, or the references do not match the clips.
    """
    check_waveforms(audio, lengths)
    if references is None and reference_lengths is None:
        return
    if references is None or reference_lengths is None:
        raise ValueError("references and reference_lengths must be given together")
    if references.dim() != 3 or len(references) != len(audio):
        raise ValueError(f"references must have shape [{len(audio)}, R, S_ref], got {list(references.shape)}")
    if reference_lengths.shape != references.shape[:2]:
        expected = list(references.shape[:2])
        raise ValueError(f"reference_lengths must have shape {expected}, got {list(reference_lengths.shape)}")


def trim_silence(audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off the silence before and after the sound of each waveform.

    Args:
        audio: waveforms `[P, S]`.
        lengths: valid samples of each waveform `[P]`, int64.

    Returns:
        Waveforms `[P, S_sound]`, with padding of any values, and their lengths `[P]`; 0 for a silent waveform.
    """
    samples = torch.arange(audio.shape[1], device=audio.device)
    sounding = (audio.abs() >= _SILENT) & (samples < lengths[:, None])
    first = torch.where(sounding, samples, audio.shape[1]).amin(1)
    end = torch.where(sounding, samples + 1, 0).amax(1)
    lengths = (end - first).clamp(min=0)
    index = first[:, None] + samples[: max(lengths.tolist(), default=0)]
    return audio.gather(1, index.clamp(max=audio.shape[1] - 1)), lengths
