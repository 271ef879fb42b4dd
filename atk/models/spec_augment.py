"""SpecAugment (Park et al. 2019): bands of time and of frequency of a training spectrogram are masked."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_FACTORS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # odd; those of SplitMix64
_SHIFTS = (30, 27, 31)


@dataclass(frozen=True)
class SpecAugmentConfig:
    """SpecAugment on the log-mel spectrograms of training clips; the defaults mask nothing.

    Args:
        time_masks: number of masks along time.
        time_width: largest width of one, as a fraction of the clip.
        mel_masks: number of masks along the mel axis.
        mel_width: largest width of one, as a fraction of the mel bands.
    """

    time_masks: int = 0
    time_width: float = 0.1
    mel_masks: int = 0
    mel_width: float = 0.25

    def __post_init__(self) -> None:
        if self.time_masks < 0 or self.mel_masks < 0:
            raise ValueError(f"time_masks and mel_masks must be at least 0, got {self.time_masks}, {self.mel_masks}")
        if not 0 < self.time_width <= 1 or not 0 < self.mel_width <= 1:
            raise ValueError(f"time_width and mel_width must be in (0, 1], got {self.time_width}, {self.mel_width}")

    @property
    def enabled(self) -> bool:
        """Whether anything is masked."""
        return self.time_masks + self.mel_masks > 0


class SpecAugment(nn.Module):
    """Masks the spectrograms of a batch in training mode; in evaluation mode it returns them unchanged.

    The masks of a clip are a function of `key` and the samples of the clip. They depend neither on the other clips of
    the batch, nor on padding, nor on the rank that holds the clip. Masked values become the mean of the clip.

    Args:
        config: number and width of the masks.
    """

    key: Tensor  # set for every step of training; the same on every rank

    def __init__(self, config: SpecAugmentConfig):
        super().__init__()
        self.config = config
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, mel: Tensor, frames: Tensor, audio: Tensor, lengths: Tensor) -> Tensor:
        """Mask spectrograms.

        Args:
            mel: spectrograms `[N, T, mel_bins]`.
            frames: valid frames of each clip `[N]`, int64.
            audio: the waveforms `[N, S]`, float32, that the spectrograms were computed from.
            lengths: valid samples of each waveform `[N]`, int64.
        """
        config = self.config
        if not self.training or not config.enabled:
            return mel
        draws = _uniform(_fingerprint(audio, lengths) + self.key, 2 * (config.time_masks + config.mel_masks))
        valid = torch.arange(mel.shape[1], device=mel.device) < frames[:, None]
        bands = torch.full_like(frames, mel.shape[2])
        time = _covered(draws[:, : 2 * config.time_masks], frames, config.time_width, mel.shape[1])
        band = _covered(draws[:, 2 * config.time_masks :], bands, config.mel_width, mel.shape[2])
        sums = (mel * valid[..., None]).sum((1, 2))
        mean = sums / (frames.clamp(min=1) * mel.shape[2])
        masked = (time[:, :, None] | band[:, None]) & valid[..., None]
        return torch.where(masked, mean[:, None, None].to(mel.dtype), mel)


def _covered(draws: Tensor, sizes: Tensor, width: float, count: int) -> Tensor:
    """Positions `[N, count]` under masks whose widths and starts are `draws [N, 2 * masks]` in [0, 1)."""
    widths = draws[:, ::2] * width * sizes[:, None]
    starts = draws[:, 1::2] * (sizes[:, None] - widths)
    position = torch.arange(count, device=draws.device)[None, :, None] + 0.5
    return ((position >= starts[:, None]) & (position < (starts + widths)[:, None])).any(2)


def _fingerprint(audio: Tensor, lengths: Tensor) -> Tensor:
    """A hash of the valid samples of each clip `[N]`, int64; sums of integers are exact in any order."""
    bits = audio.detach().float().contiguous().view(torch.int32).long()
    samples = torch.arange(audio.shape[1], device=audio.device)
    return (torch.where(samples < lengths[:, None], bits, 0) * (2 * samples + 1)).sum(1)


def _uniform(keys: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each of the `keys [N]`, by SplitMix64: `[N, count]`, float32."""
    state = _mixed(keys)[:, None] + _FACTORS[0] * torch.arange(1, count + 1, device=keys.device)
    return _logical_shift(_mixed(state), 40).float() / (1 << 24)


def _mixed(value: Tensor) -> Tensor:
    for shift, factor in zip(_SHIFTS, (*_FACTORS[1:], 1), strict=True):
        value = (value ^ _logical_shift(value, shift)) * factor
    return value


def _logical_shift(value: Tensor, bits: int) -> Tensor:
    """`value >> bits` with zeros shifted in; int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
