"""The Music Tagging Transformer (Won et al. 2021) as TTMR uses it: residual blocks, batch norms, learned positions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.audio import AudioEncoder, AudioEncoderConfig, LogMel

_POSITIONS = 512  # output frames with a position of their own; [CLS] has another one


class _Decibels(LogMel):
    """Mel spectrograms in dB, with the floor of torchaudio."""

    def compress(self, power: Tensor) -> Tensor:
        return 10 * power.clamp(min=1e-10).log10()


class _FrameBatchNorm(nn.BatchNorm2d):
    """Batch norm of `[N, T, mel, C]` over the valid frames of a batch; the other frames become 0, as beyond a clip."""

    def forward(self, input: Tensor, mask: Tensor) -> Tensor:  # noqa: A002  # pyrefly: ignore[bad-override]
        if self.training and not bool(mask.all()):
            rows = super().forward(input[mask].transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
            return rows.new_zeros(input.shape).masked_scatter(mask[:, :, None, None], rows)
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) * mask[..., None, None]


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norms, added to the input (through a third one if the channels differ), ReLU,
    and max pooling."""

    def __init__(self, in_channels: int, out_channels: int, mel_bins: int, time_pool: int):
        super().__init__()
        self.first = _convolution(in_channels, out_channels)
        self.first_norm = _FrameBatchNorm(out_channels)
        self.second = _convolution(out_channels, out_channels)
        self.second_norm = _FrameBatchNorm(out_channels)
        self.shortcut: nn.Module | None = None
        if in_channels != out_channels:
            self.shortcut = _convolution(in_channels, out_channels)
            self.shortcut_norm = _FrameBatchNorm(out_channels)
        self.pool = (time_pool, 2)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # x is [N, T, mel, C] in memory and 0 outside the mask [N, T].
        y = F.relu(self.first_norm(_over_time_and_mel(self.first, x), mask))
        y = self.second_norm(_over_time_and_mel(self.second, y), mask)
        if self.shortcut is not None:
            x = self.shortcut_norm(_over_time_and_mel(self.shortcut, x), mask)
        y = F.relu(F.max_pool2d((x + y).permute(0, 3, 1, 2), self.pool).permute(0, 2, 3, 1))
        mask = mask[:, self.pool[0] - 1 :: self.pool[0]]
        return y * mask[..., None, None], mask


class MusicTaggingTransformer(AudioEncoder):
    """Waveforms to frame features, as `AudioEncoder`, by the network that TTMR trains.

    It differs from `AudioEncoder` in residual blocks with batch norms, four poolings of the time axis by 2, learned
    positions that include `[CLS]`, the attention's dropout and biases, and spectrograms in dB.

    In evaluation mode, an embedding depends on nothing but its clip. In training mode, batch norms use the statistics
    of the valid frames of the clips that are encoded at a time.
    """

    time_pool = (2, 2, 2, 2)
    spectrogram = _Decibels
    block = _ResidualBlock

    def __init__(self, config: AudioEncoderConfig):
        super().__init__(config)
        self.input_norm = _FrameBatchNorm(1)
        self.positions = nn.Parameter(torch.randn(1 + _POSITIONS, config.width))
        nn.init.normal_(self.cls)
        self.dropout = nn.Dropout(config.dropout)
        for layer in self.transformer.layers:
            attention: Any = layer.self_attn
            attention.dropout = 0.0  # only its output has dropout
            attention.register_parameter("in_proj_bias", None)

    @property
    def inputs(self) -> tuple[nn.Module, ...]:
        """The modules before the first layer."""
        return (self.input_norm,)

    @property
    def longest_seconds(self) -> float:
        """Length of the longest clip that has positions, in seconds; the rest of longer ones is not used."""
        return _POSITIONS * self.frame_seconds

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `AudioEncoder.forward`; clips are cut to `longest_seconds`, and padding may hold any values."""
        longest = _POSITIONS * self.frame_stride * self.config.hop
        audio, lengths = audio[:, :longest], lengths.clamp(max=longest)
        valid = torch.arange(audio.shape[1], device=audio.device) < lengths[:, None]
        return super().forward(torch.where(valid, audio, 0), lengths)

    def local_features(self, mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `AudioEncoder.local_features`, after a batch norm of the spectrograms."""
        return super().local_features(self.input_norm(mel, mask), mask)

    def with_cls(self, x: Tensor) -> Tensor:
        """As `AudioEncoder.with_cls`, with learned positions."""
        x = torch.cat([self.cls.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
        return self.dropout(x + self.positions[: x.shape[1]].to(x.dtype))


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Without a bias, which the batch norm after it would remove."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


def _over_time_and_mel(conv: nn.Module, x: Tensor) -> Tensor:
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
