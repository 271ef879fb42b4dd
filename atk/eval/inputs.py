"""Audio as `Embedder` takes it: paths and waveforms, alone or in a list."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from atk.data import Clip, audio_info
from atk.extras import optional_imports

with optional_imports:
    import soundfile

Waveform = Tensor | np.ndarray
Audio = str | Path | Waveform | Sequence[str | Path | Waveform]


class _InMemory:
    """A waveform that is read like a file, and so cut, resampled, and checked like one."""

    def __init__(self, name: str, waveform: np.ndarray, sample_rate: int):
        self.name = name
        content = io.BytesIO()
        soundfile.write(content, waveform, sample_rate, format="WAV", subtype="FLOAT")
        self.content = content.getvalue()
        self.size = len(self.content)

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        return self.content


def as_clip(index: int, item: Any, sample_rate: int) -> Clip:
    """A clip for the loader, from a path or a waveform `[S]`."""
    if isinstance(item, (str, Path)):
        return Clip(str(item), Path(item), (), audio_info(item).seconds)
    name = f"audio[{index}]"
    if not isinstance(item, (Tensor, np.ndarray)):
        raise TypeError(f"{name} must be a path or a waveform, got {type(item).__name__}")
    values = item.detach().float().cpu().numpy() if isinstance(item, Tensor) and item.is_floating_point() else item
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        raise TypeError(f"{name} must be floating-point with full scale +-1, got {item.dtype}")
    if values.ndim != 1:
        raise ValueError(f"{name} must be a waveform of shape [S], got {list(values.shape)}")
    recording = _InMemory(name, values, sample_rate)
    return Clip(name, recording, (), audio_info(recording).seconds)


def as_list(audio: Any) -> list[Any]:
    """The clips of what `embed_audio` takes: one path or waveform, or several."""
    single = isinstance(audio, (str, Path)) or getattr(audio, "ndim", None) == 1
    return [audio] if single else list(audio)
