"""CNN14 of PANNs (Kong et al. 2020) up to its frame features, the audio encoder of the captioner and others."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.layers import MelSpectrogram
from atk.models.spec_augment import SpecAugment

FRAME_STRIDE = 32  # spectrogram frames per output frame: five poolings by 2
_BLOCKS = 6
_PUBLISHED = {32000: (1024, 320, 14000.0), 16000: (512, 160, 8000.0), 8000: (256, 80, 4000.0)}  # window, hop, fmax
# The classifier is omitted, and torch.stft replaces the convolution that computes the STFT.
_UNUSED_PREFIXES = ("fc1.", "fc_audioset.", "spectrogram_extractor.")
_FILTERS = "logmel_extractor.melW"


@dataclass(frozen=True)
class Cnn14Config:
    """CNN14: log-mel spectrogram and six blocks of two convolutions. The defaults are small enough for two CPU cores.

    Args:
        sample_rate: sample rate of the waveforms, in Hz.
        mel_bins: number of mel bands, a multiple of 32.
        window: FFT length, in samples; even.
        hop: hop length, in samples. One output frame covers 32 hops.
        fmin: lowest frequency of the mel bands, in Hz.
        fmax: highest frequency of the mel bands, in Hz.
        channels: output channels of the six blocks.
        dropout: dropout rate after each block.
        pretrained: published checkpoint to start from, such as `Cnn14_mAP=0.431.pth`. The settings above must match
            it; see `Cnn14Config.published`.
    """

    sample_rate: int = 16000
    mel_bins: int = 64
    window: int = 512
    hop: int = 160
    fmin: float = 50.0
    fmax: float = 8000.0
    channels: tuple[int, int, int, int, int, int] = (16, 32, 64, 128, 128, 128)
    dropout: float = 0.2
    pretrained: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # JSON and YAML give a list
        if self.mel_bins % FRAME_STRIDE or self.mel_bins <= 0:
            raise ValueError(f"mel_bins must be a positive multiple of {FRAME_STRIDE}, got {self.mel_bins}")
        if self.window % 2 or not 0 < self.hop <= self.window:
            raise ValueError(
                f"window must be even and hop in 1..window samples, got window {self.window}, hop {self.hop}"
            )
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(
                f"fmin and fmax must satisfy 0 <= fmin < fmax <= sample_rate / 2 ({self.sample_rate / 2:g} Hz), "
                f"got {self.fmin:g} and {self.fmax:g}"
            )
        if len(self.channels) != _BLOCKS or min(self.channels) < 1:
            raise ValueError(f"channels must have six positive entries, got {self.channels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @classmethod
    def published(cls, sample_rate: int = 32000, pretrained: str | None = None) -> "Cnn14Config":
        """The settings of a published checkpoint: Cnn14 (32,000 Hz), Cnn14_16k, or Cnn14_8k.

        Args:
            sample_rate: 32000, 16000, or 8000, in Hz.
            pretrained: file of the checkpoint; None = random weights.

        Raises:
            ValueError: no checkpoint was published for this sample rate.
        """
        if sample_rate not in _PUBLISHED:
            raise ValueError(f"sample_rate must be one of {', '.join(map(str, _PUBLISHED))} Hz, got {sample_rate}")
        window, hop, fmax = _PUBLISHED[sample_rate]
        return cls(
            sample_rate=sample_rate,
            window=window,
            hop=hop,
            fmax=fmax,
            channels=(64, 128, 256, 512, 1024, 2048),
            pretrained=pretrained,
        )


class _LogMel(MelSpectrogram):
    """Waveforms `[N, S]` to `10 log10(max(x, 1e-10))` of their mel power spectra `[N, 1 + S // hop, mel_bins]`.

    Frames are centered on multiples of the hop. Each clip is reflect-padded at its own ends, not at those of the batch.
    """

    def __init__(self, config: Cnn14Config):
        slaney = {"norm": "slaney", "mel_scale": "slaney"}
        span = {"f_min": config.fmin, "f_max": config.fmax}
        super().__init__(config.sample_rate, config.window, config.hop, config.mel_bins, **span, **slaney)

    def forward(self, audio: Tensor, lengths: Tensor) -> Tensor:
        audio = audio.float()
        half = self.window // 2
        step = torch.arange(half, device=audio.device).expand(len(audio), -1)
        end = step + lengths[:, None]  # indices of the half window after each clip
        before = audio.gather(1, _reflected(step - half, lengths))
        after = audio.gather(1, _reflected(end, lengths))
        padded = F.pad(torch.cat([before, audio], 1), (0, half)).scatter(1, half + end, after)
        return 10 * torch.log10(self.power(padded).clamp(min=1e-10))


def _reflected(index: Tensor, lengths: Tensor) -> Tensor:
    """Map sample indices `[N, K]` outside clips of `lengths [N]` to those that reflect padding puts there."""
    period = 2 * (lengths[:, None] - 1)
    index = index % period
    return torch.minimum(index, period - index)


class _BatchNorm(nn.BatchNorm1d):
    """Batch norm over the valid frames only; padding frames become 0.

    Takes `input [N, T, F, C]` and the indices `valid [V]` of its valid frames in `[N * T]`, None = all.
    """

    def forward(self, input: Tensor, valid: Tensor | None = None) -> Tensor:  # noqa: A002  (as in the base class)
        clips, frames, bins, channels = input.shape
        if valid is None:
            return super().forward(input.reshape(-1, channels)).view(input.shape)
        rows = input.reshape(clips * frames, bins * channels)
        normed = super().forward(rows.index_select(0, valid).view(-1, channels))
        zeros = normed.new_zeros(rows.shape)
        return zeros.index_copy(0, valid, normed.view(-1, bins * channels)).view(input.shape)


class _ConvBlock(nn.Module):
    """3 x 3 convolution, batch norm, and ReLU, twice. The memory layout stays `[N, T, F, C]`, to avoid copies."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = _BatchNorm(out_channels)
        self.bn2 = _BatchNorm(out_channels)
        nn.init.xavier_uniform_(self.conv1.weight)
        nn.init.xavier_uniform_(self.conv2.weight)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            x = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = F.relu(norm(x, valid))
        return x


class Cnn14(nn.Module):
    """Waveforms to frame features: log-mel spectrogram, six convolution blocks, and mean over the mel axis.

    Parameter names are those of the published checkpoints. Padding a batch changes no valid frame in evaluation mode
    and does not enter the batch statistics in training.
    """

    def __init__(self, config: Cnn14Config):
        super().__init__()
        self.config = config
        self.log_mel = _LogMel(config)
        self.augment: SpecAugment | None = None
        self.bn0 = _BatchNorm(config.mel_bins)
        widths = (1, *config.channels)
        for block in range(_BLOCKS):
            self.add_module(f"conv_block{block + 1}", _ConvBlock(widths[block], widths[block + 1]))
        self.dropout = nn.Dropout(config.dropout)

    @property
    def blocks(self) -> list[nn.Module]:
        """The convolution blocks, from the input on."""
        return [self.get_submodule(f"conv_block{block + 1}") for block in range(_BLOCKS)]

    @classmethod
    def create(cls, config: Cnn14Config) -> "Cnn14":
        """Create an encoder with the weights of `config.pretrained`, or random weights if that is None.

        Raises:
            ValueError: the checkpoint cannot be read or does not match the configuration.
        """
        encoder = cls(config)
        if config.pretrained is not None:
            encoder.load_state_dict(_published_weights(config.pretrained, encoder))
        return encoder

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips.

        Args:
            audio: waveforms `[N, S]` at `config.sample_rate`.
            lengths: valid samples of each clip `[N]`, int64; samples beyond them are ignored.

        Returns:
            Frame features `[N, L, channels[-1]]` and their mask `[N, L]`, boolean, with `L = (1 + S // hop) // 32`. A
            clip shorter than one output frame is padded with silence to one frame.
        """
        min_samples = (FRAME_STRIDE - 1) * self.config.hop
        audio = F.pad(audio, (0, max(0, min_samples - audio.shape[1])))
        samples = torch.arange(audio.shape[1], device=audio.device)
        audio = audio.masked_fill(samples >= lengths[:, None], 0)
        lengths = lengths.clamp(min=min_samples)
        frames = 1 + lengths // self.config.hop
        mel = self.log_mel(audio, lengths)
        if self.augment is not None:
            mel = self.augment(mel, frames, audio, lengths)
        x = mel.to(self.bn0.weight.dtype)
        mask = _valid_mask(frames, x)
        padded = not bool(mask.all())
        x = self.bn0(x[:, :, None], _valid_indices(mask) if padded else None).transpose(2, 3)  # [N, T, mel_bins, 1]
        for block in range(1, _BLOCKS + 1):
            x = getattr(self, f"conv_block{block}")(x, _valid_indices(mask) if padded else None)
            if block < _BLOCKS:
                x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
                frames = frames // 2
                mask = _valid_mask(frames, x)
                if padded:
                    # Pooling averaged an odd last frame with padding. The published model drops that frame.
                    x = x * mask[..., None, None]
            x = self.dropout(x)
        return x.mean(2), mask


def _valid_mask(frames: Tensor, x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device) < frames[:, None]


def _valid_indices(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero()[:, 0]


def _published_weights(path: str, encoder: Cnn14) -> dict[str, Tensor]:
    """The weights of a published checkpoint that CNN14's frame features need."""
    if not Path(path).is_file():
        raise ValueError(f"audio.pretrained: no such file: {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(state.get("model", state))
    except (OSError, RuntimeError, EOFError, AttributeError, TypeError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"audio.pretrained: cannot read weights from {path}: {reason}") from error
    state = {name: value for name, value in state.items() if not name.startswith(_UNUSED_PREFIXES)}
    if faults := _mismatches(state, encoder):
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise ValueError(f"audio.pretrained: {path} does not match the configuration: {'; '.join(faults[:4])}{more}")
    fresh = encoder.state_dict()
    return {name: state.get(name, fresh[name]) for name in fresh}


def _mismatches(state: dict[str, Tensor], encoder: Cnn14) -> list[str]:
    """How the weights of a checkpoint differ from what `encoder` expects, one message per weight."""
    expected = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    filters = encoder.log_mel.mel_scale.fb  # [window // 2 + 1, mel_bins]
    expected[_FILTERS] = tuple(filters.shape)
    faults = [f"{name} is missing" for name in expected if name not in state and not name.endswith("_tracked")]
    faults += [f"{name} is not part of CNN14" for name in state if name not in expected]
    for name, shape in expected.items():
        if name in state and tuple(state[name].shape) != shape:
            faults.append(f"{name} has shape {list(state[name].shape)}, but the configuration needs {list(shape)}")
    if not faults and not torch.allclose(state[_FILTERS], filters, rtol=1e-3, atol=1e-3 * float(filters.max())):
        faults.append(f"{_FILTERS} differs from the mel filters of sample_rate, fmin, and fmax")
    return faults
