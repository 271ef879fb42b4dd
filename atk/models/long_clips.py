"""What HTS-AT takes of a clip that is longer than its input: the start, a crop, or the whole clip by feature fusion."""

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from atk.models.clap_features import ClapFeatures

LongClips = Literal["start", "crop", "fusion"]
LONG_CLIPS = get_args(LongClips)


def crops(audio: Tensor, lengths: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Cut longer clips to `samples` samples at a position that depends only on their length, so that results repeat.

    Args:
        audio: waveforms `[N, S]`.
        lengths: valid samples of each clip `[N]`, int64.
        samples: length of a crop.

    Returns:
        Waveforms `[N, min(S, samples)]` and their lengths.
    """
    excess = (lengths - samples).clamp(min=0)
    starts = [int(_stream(int(extra)).integers(int(extra) + 1)) for extra in excess]
    width = min(audio.shape[1], samples)
    index = torch.tensor(starts, device=audio.device)[:, None] + torch.arange(width, device=audio.device)
    return audio.gather(1, index.clamp(max=max(0, audio.shape[1] - 1))), lengths.clamp(max=samples)


def fused(features: "ClapFeatures", audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The input of a model with feature fusion: of longer clips, the whole clip shrunk and a chunk of each third.

    The chunks are drawn as by `transformers.ClapFeatureExtractor`, but at positions that depend only on the length.

    Args:
        features: log-mel features of the model.
        audio: waveforms `[N, S]`.
        lengths: valid samples of each clip `[N]`, int64.

    Returns:
        Features `[N, 4, frames, mel_bins]`, and which clips are fused `[N, 1]`, boolean.
    """
    mel = features(audio, lengths).clone()
    longer = torch.zeros(len(audio), 1, dtype=torch.bool, device=audio.device)
    frames = mel.shape[2]
    for row, length in enumerate(lengths.tolist()):
        if length <= features.samples:
            continue
        whole = features.spectrogram(audio[row : row + 1, :length])[0]
        if len(whole) == frames:  # it exceeds the input by less than a hop
            mel[row] = whole
            continue
        longer[row] = True
        shrunk = F.interpolate(whole[None, None], (frames, whole.shape[1]), mode="bilinear", align_corners=False)
        starts = _thirds(len(whole) - frames + 1, length)
        mel[row] = torch.stack([shrunk[0, 0], *(whole[start : start + frames] for start in starts)])
    return mel, longer


def _thirds(positions: int, length: int) -> list[int]:
    """One position of each third of `range(positions)`; 0 for a third without any."""
    stream = _stream(length)
    parts = np.array_split(np.arange(positions), 3)
    return [int(stream.choice(part)) if len(part) else 0 for part in parts]


def _stream(length: int) -> np.random.Generator:
    return np.random.default_rng(length)
