"""Audio encoder: log-mel spectrogram, four convolutions, and a Transformer with a `[CLS]` token (thesis ch. 3)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.layers import Layer, MelSpectrogram, check_layer, layer_number
from atk.models.spec_augment import SpecAugment
from atk.nn.positions import sinusoids
from atk.ops.checks import one_of

_TIME_POOL = (2, 2, 1, 1)  # time pooling of the four convolutions; each also halves the mel axis
FRAME_STRIDE = math.prod(_TIME_POOL)  # spectrogram frames per output frame


AudioType = Literal["auto", "cnn14", "music-tagging-transformer"]


@dataclass(frozen=True)
class AudioEncoderConfig:
    """A pretrained audio encoder, or the size of a new one. The defaults are small enough to train on two CPU cores.

    Args:
        type: "auto": without `pretrained`, a log-mel front end and a Music Tagging Transformer of the sizes below; with
            it, whatever the checkpoint of transformers holds. "cnn14": CNN14 of PANNs. "music-tagging-transformer":
            the encoder of Won et al. with the pooling of TTMR (see `atk.models.music_tagging`), of the sizes below.
        pretrained: local folder or hub name of AST, Whisper, wav2vec 2.0 or a relative such as HuBERT, or a ClapModel,
            whose own feature extractor, sample rate, and sizes then apply; with "cnn14", a published checkpoint such
            as `Cnn14_mAP=0.431.pth`, for which only `sample_rate` is needed.
        sample_rate: sample rate of the waveforms, in Hz.
        mel_bins: number of mel bands, a multiple of 16.
        window: FFT length, in samples.
        hop: hop length, in samples. One output frame covers 4 hops, or 16 of a "music-tagging-transformer".
        channels: output channels of the four convolutions, or of the six blocks of CNN14.
        width: width of the Transformer.
        layers: number of Transformer layers.
        heads: number of attention heads.
        dropout: dropout rate in the Transformer.
        frame_layer: layer that the frame features are taken from; 0 = the input of the Transformer, None = the last
            layer. Frames of lower layers see less of the rest of the clip, so alignment maps are sharper. "auto": 1 if
            `type` is "auto", `pretrained` is None, and the loss aligns frames and tokens; otherwise the last layer.
    """

    type: AudioType = "auto"
    pretrained: str | None = None
    sample_rate: int = 16000
    mel_bins: int = 64
    window: int = 1024
    hop: int = 320
    channels: tuple[int, ...] = (16, 32, 64, 64)
    width: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    frame_layer: Layer = "auto"

    def __post_init__(self) -> None:
        one_of("type", self.type, get_args(AudioType))
        check_layer("frame_layer", self.frame_layer)
        if self.type == "music-tagging-transformer" and self.pretrained is not None:
            raise ValueError(f"pretrained must be null for type {self.type!r}, got {self.pretrained!r}")
        if self.type == "cnn14" or self.pretrained is not None:  # checked when the encoder is created
            return
        if not 0 <= layer_number(self.frame_layer, self.layers) <= self.layers:
            raise ValueError(
                f'frame_layer must be in 0..layers ({self.layers}), None, or "auto", got {self.frame_layer}'
            )
        if self.mel_bins % 16 or self.mel_bins <= 0:
            raise ValueError(f"mel_bins must be a positive multiple of 16, got {self.mel_bins}")
        if not 0 < self.hop <= self.window:
            raise ValueError(f"hop must be in 1..window ({self.window}) samples, got {self.hop}")
        if len(self.channels) != len(_TIME_POOL):
            raise ValueError(f"channels must have four entries, got {self.channels}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")


class LogMel(MelSpectrogram):
    """Waveforms `[N, S]` in [-1, 1] to log-mel spectrograms `[N, ceil(S / hop), mel_bins]`.

    Each frame is centered on its hop and sees zeros outside the clip, so padding a batch changes no valid frame.
    """

    def __init__(self, config: AudioEncoderConfig):
        super().__init__(config.sample_rate, config.window, config.hop, config.mel_bins)

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log-mel spectrograms scaled to roughly unit range.

        Args:
            audio: waveforms `[N, S]`.
            lengths: valid samples of each clip `[N]`, int64.

        Returns:
            Spectrograms `[N, ceil(S / hop), mel_bins]`, float32, and the number of valid frames of each clip `[N]`.
        """
        frames = (lengths + self.hop - 1) // self.hop
        margin = self.window - self.hop
        samples = (max(audio.shape[1], 1) + self.hop - 1) // self.hop * self.hop  # ONNX rounds -(-a // b) down
        audio = F.pad(audio, (margin // 2, samples - audio.shape[1] + margin - margin // 2))
        return self.compress(self.power(audio)), frames

    def compress(self, power: Tensor) -> Tensor:
        """The logarithm of power spectra: silence, log(1e-5), maps to -1.9 and a full-scale tone to about 4."""
        return (torch.log(power + 1e-5) + 4) / 4


class _ConvBlock(nn.Module):
    """3 x 3 convolution, layer norm per frame, max pooling, ReLU.

    Each frame is normalized by itself, so clips of a batch do not affect each other.
    """

    def __init__(self, in_channels: int, out_channels: int, mel_bins: int, time_pool: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.LayerNorm([mel_bins, out_channels])
        self.pool = (time_pool, 2)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # x is [N, T, mel, C] in memory, so neither the norm nor the convolution copies it; mask is [N, T].
        x = self.conv((x * mask[..., None, None]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # The order of ReLU and pooling does not matter to the result, but pooled values are a quarter as many.
        x = F.relu(F.max_pool2d(self.norm(x).permute(0, 3, 1, 2), self.pool).permute(0, 2, 3, 1))
        return x, mask[:, self.pool[0] - 1 :: self.pool[0]]


class AudioEncoder(nn.Module):
    """Waveforms to frame features: log-mel, four convolutions that downsample time by 4, and a `[CLS]` Transformer."""

    time_pool: ClassVar[tuple[int, ...]] = _TIME_POOL
    spectrogram: ClassVar[type[LogMel]] = LogMel
    block: ClassVar[type[nn.Module]] = _ConvBlock

    def __init__(self, config: AudioEncoderConfig):
        super().__init__()
        self.config = config
        self.width = config.width
        self.log_mel = self.spectrogram(config)
        self.augment: SpecAugment | None = None
        self.append_last = False  # append the features of the last layer to those of `frame_layer`, `[.., 2 * width]`
        sizes = [1, *config.channels]
        self.convs = nn.ModuleList(
            self.block(sizes[i], sizes[i + 1], config.mel_bins >> i, pool) for i, pool in enumerate(self.time_pool)
        )
        self.project = nn.Linear(config.channels[-1] * (config.mel_bins >> len(_TIME_POOL)), config.width)
        self.cls = nn.Parameter(torch.randn(config.width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        norm = nn.LayerNorm(config.width)
        self.transformer = nn.TransformerEncoder(layer, config.layers, norm, enable_nested_tensor=False)
        self.frame_layer = layer_number(config.frame_layer, config.layers)

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        return self.config.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one output frame, in seconds."""
        return self.frame_stride * self.config.hop / self.config.sample_rate

    @property
    def frame_stride(self) -> int:
        """Spectrogram frames per output frame."""
        return math.prod(self.time_pool)

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode clips.

        Args:
            audio: waveforms `[N, S]` at `config.sample_rate`, zero-padded.
            lengths: valid samples of each clip `[N]`, int64.

        Returns:
            `[CLS]` features `[N, width]`, frame features `[N, L_a, width]`, and the frame mask `[N, L_a]`, boolean. A
            clip shorter than one output frame counts as one frame.
        """
        frame_samples = self.frame_stride * self.config.hop
        if audio.shape[1] < frame_samples:
            audio = F.pad(audio, (0, frame_samples - audio.shape[1]))
        mel, frames = self.log_mel(audio, lengths.clamp(min=1))
        frames = frames.clamp(min=self.frame_stride)
        if self.augment is not None:
            mel = self.augment(mel, frames, audio, lengths)
        mask = torch.arange(mel.shape[1], device=mel.device) < frames[:, None]
        x, mask = self.local_features(mel[..., None].to(self.cls.dtype), mask)
        x = self.with_cls(self.project(x.flatten(2)))
        padding = F.pad(~mask, (1, 0))
        outputs = [x]
        for layer in self.transformer.layers:
            outputs.append(layer(outputs[-1], src_key_padding_mask=padding))
        norm = self.transformer.norm
        assert norm is not None  # __init__ passes one
        frames = norm(outputs[self.frame_layer][:, 1:])
        if self.append_last:
            frames = torch.cat([frames, norm(outputs[-1][:, 1:])], 2)
        return norm(outputs[-1][:, 0]), frames, mask

    def local_features(self, mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the convolutions on spectrograms `[N, T, mel_bins, 1]`: `[N, L_a, mel, C]`, and the mask `[N, L_a]`."""
        for conv in self.convs:
            mel, mask = conv(mel, mask)
        return mel, mask

    def with_cls(self, x: Tensor) -> Tensor:
        """The input of the Transformer `[N, 1 + L_a, width]`: frames with positions, after the `[CLS]` input."""
        x = x + sinusoids(x.shape[1], x.shape[2], x.device).to(x.dtype)
        return torch.cat([self.cls.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
