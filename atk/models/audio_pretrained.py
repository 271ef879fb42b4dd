"""Audio encoders of transformers that give frames: AST, Whisper's encoder, and the family of wav2vec 2.0.

Their features are computed on the device of the waveforms, with the settings of the checkpoint's feature extractor.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atk.models.layers import Float32Features
from atk.models.spec_augment import SpecAugment

_FBANK_WINDOW = 0.025  # seconds; Kaldi's defaults, which AST uses
_FBANK_HOP = 0.010


class PretrainedAudio(Float32Features):
    """Waveforms to frame features, by an encoder of transformers; subclasses know how its input is made.

    Args:
        model: the encoder.
        extractor: the feature extractor that goes with it.
        frame_layer: layer that the frame features are taken from, as in `AudioEncoderConfig`.

    Raises:
        ValueError: the encoder has no such layer.
    """

    longest_seconds = math.inf

    def __init__(self, model: Any, extractor: Any, frame_layer: int | None = None):
        super().__init__()
        layers = model.config.num_hidden_layers
        if frame_layer is not None and not 0 <= frame_layer <= layers:
            raise ValueError(f"audio.frame_layer must be in 0..{layers}, the layers of the encoder, got {frame_layer}")
        self.model = model.float()
        self.extractor = extractor
        self.frame_layer = frame_layer
        self.append_last = False  # as in `AudioEncoder`
        self.width: int = model.config.hidden_size

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        return self.extractor.sampling_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one output frame, in seconds."""
        raise NotImplementedError

    def log_mel(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel spectrograms `[N, T, mel_bins]` in the scale of the encoder, and their valid frames `[N]`."""
        raise NotImplementedError

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode clips; those longer than `longest_seconds` are truncated.

        Args:
            audio: waveforms `[N, S]` at `sample_rate`.
            lengths: valid samples of each clip `[N]`, int64.

        Returns:
            Pooled features `[N, width]`, frame features `[N, L_a, width]`, and the frame mask `[N, L_a]`, boolean.
            Every clip has at least one frame.
        """
        raise NotImplementedError

    def _run(self, features: Tensor, **options: Any) -> tuple[Any, Tensor]:
        """The outputs of the encoder, and its features from `frame_layer`."""
        lower = self.frame_layer is not None
        outputs = self.model(features, output_hidden_states=lower, **options)
        last = outputs.last_hidden_state
        features = outputs.hidden_states[self.frame_layer] if lower else last
        return outputs, torch.cat([features, last], -1) if self.append_last else features


class _Spectrograms(PretrainedAudio):
    """An encoder of spectrograms, which training may mask."""

    def __init__(self, model: Any, extractor: Any, frame_layer: int | None = None):
        super().__init__(model, extractor, frame_layer)
        self.augment: SpecAugment | None = None

    def _augmented(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mel, frames = self.log_mel(audio, lengths)
        return mel if self.augment is None else self.augment(mel, frames, audio, lengths), frames


class AST(_Spectrograms):
    """The Audio Spectrogram Transformer (Gong et al. 2021). Frames are the mean of its patches over frequency."""

    def __init__(self, model: Any, extractor: Any, frame_layer: int | None = None):
        super().__init__(model, extractor, frame_layer)
        config = model.config
        self.bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        self.frames = (config.max_length - config.patch_size) // config.time_stride + 1
        self.longest_seconds = _FBANK_WINDOW + (config.max_length - 1) * _FBANK_HOP

    @property
    def frame_seconds(self) -> float:
        """As in `PretrainedAudio`: the time stride of the patches."""
        return self.model.config.time_stride * _FBANK_HOP

    def log_mel(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `PretrainedAudio`: Kaldi's filter banks, at most `max_length` frames."""
        from torchaudio.compliance import kaldi  # pyrefly: ignore[untyped-import]

        from atk import _torchaudio  # noqa: F401 (makes torchaudio importable)

        window, hop = (round(seconds * self.sample_rate) for seconds in (_FBANK_WINDOW, _FBANK_HOP))
        longest = self.model.config.max_length
        audio = F.pad(audio, (0, max(0, window - audio.shape[1])))[:, : window + (longest - 1) * hop]
        rows = torch.where(torch.arange(audio.shape[1], device=audio.device) < lengths[:, None], audio, 0).float()
        settings = {"sample_frequency": self.sample_rate, "window_type": "hanning"}
        with torch.autocast(audio.device.type, enabled=False):
            banks = [kaldi.fbank(row[None], num_mel_bins=self.model.config.num_mel_bins, **settings) for row in rows]
        frames = (1 + (lengths - window).clamp(min=0) // hop).clamp(max=longest)
        return self._normalized(torch.stack(banks)), frames

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `PretrainedAudio`; the pooled features are those of the encoder's own two class tokens."""
        mel, frames = self._augmented(audio, lengths)
        config = self.model.config
        valid = torch.arange(mel.shape[1], device=mel.device) < frames[:, None]
        zero = float(self._normalized(mel.new_zeros(())))  # the extractor pads before it normalizes
        mel = F.pad(mel.masked_fill(~valid[..., None], zero), (0, 0, 0, config.max_length - mel.shape[1]), value=zero)
        outputs, features = self._run(mel.to(self.model.dtype))
        patches = features[:, 2:].unflatten(1, (self.bands, self.frames)).mean(1)
        count = (1 + (frames - config.patch_size).clamp(min=0) // config.time_stride).clamp(max=self.frames)
        return outputs.pooler_output, patches, torch.arange(self.frames, device=mel.device) < count[:, None]

    def _normalized(self, banks: Tensor) -> Tensor:
        extractor = self.extractor
        return (banks - extractor.mean) / (2 * extractor.std) if extractor.do_normalize else banks


class Whisper(_Spectrograms):
    """The encoder of Whisper (Radford et al. 2022); clips are padded to its input, 30 s in the published models."""

    filters: Tensor
    window: Tensor

    def __init__(self, model: Any, extractor: Any, frame_layer: int | None = None):
        super().__init__(model, extractor, frame_layer)
        filters = torch.from_numpy(extractor.mel_filters).float()
        model.embed_positions.requires_grad_(False)  # sinusoids, which loading a checkpoint would make trainable
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(extractor.n_fft), persistent=False)
        self.stride: int = model.conv1.stride[0] * model.conv2.stride[0]
        self.samples: int = model.config.max_source_positions * self.stride * extractor.hop_length
        self.longest_seconds = self.samples / self.sample_rate

    @property
    def frame_seconds(self) -> float:
        """As in `PretrainedAudio`: 0.02 s in the published models."""
        return self.stride * self.extractor.hop_length / self.sample_rate

    def log_mel(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `PretrainedAudio`, of clips padded to the length of the encoder's input."""
        settings = self.extractor
        audio = F.pad(audio, (0, max(0, self.samples - audio.shape[1])))[:, : self.samples]
        audio = torch.where(torch.arange(self.samples, device=audio.device) < lengths[:, None], audio, 0)
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                audio.float(), settings.n_fft, settings.hop_length, window=self.window, return_complex=True
            )[..., :-1]
            power = spectrum.real.square() + spectrum.imag.square()
            mel = (power.transpose(1, 2) @ self.filters).clamp(min=1e-10).log10()
        mel = torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0)
        frames = -(-lengths.clamp(min=1) // settings.hop_length)
        return (mel + 4.0) / 4.0, frames.clamp(max=mel.shape[1])

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `PretrainedAudio`; the pooled features are the mean over the valid frames."""
        mel, frames = self._augmented(audio, lengths)
        outputs, features = self._run(mel.transpose(1, 2).to(self.model.dtype))
        mask = torch.arange(features.shape[1], device=mel.device) < (-(-frames // self.stride))[:, None]
        return masked_mean(outputs.last_hidden_state, mask), features, mask


class Waveforms(PretrainedAudio):
    """wav2vec 2.0 (Baevski et al. 2020) and its relatives, such as HuBERT, which take waveforms.

    Models whose first convolution is normalized over time see the padding of a batch, so clips of different lengths are
    encoded one length at a time.
    """

    def __init__(self, model: Any, extractor: Any, frame_layer: int | None = None):
        super().__init__(model, extractor, frame_layer)
        config = model.config
        config.apply_spec_augment = False  # it draws from the global random state of numpy
        config.layerdrop = 0.0  # ranks must run the same layers
        self.shortest = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.shortest = (self.shortest - 1) * stride + kernel
        self.masks_padding: bool = getattr(config, "feat_extract_norm", "layer") == "layer"

    @property
    def frame_seconds(self) -> float:
        """As in `PretrainedAudio`: 0.02 s in the published models."""
        return math.prod(self.model.config.conv_stride) / self.sample_rate

    def log_mel(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel spectrograms as in `AudioEncoder`, for figures; the encoder doesn't use them."""
        from atk.models.audio import AudioEncoderConfig, LogMel

        return LogMel(AudioEncoderConfig(sample_rate=self.sample_rate)).to(audio.device)(audio, lengths)

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `PretrainedAudio`; the pooled features are the mean over the valid frames."""
        audio = F.pad(audio, (0, max(0, self.shortest - audio.shape[1])))
        lengths = lengths.clamp(min=self.shortest)
        valid = torch.arange(audio.shape[1], device=audio.device) < lengths[:, None]
        audio = self._normalized(audio, valid)
        frames = self.model._get_feat_extract_output_lengths(lengths)
        if self.masks_padding:
            last, features = self._encoded(audio, valid.long())
        else:
            last, features = self._one_length_at_a_time(audio, lengths)
        mask = torch.arange(features.shape[1], device=audio.device) < frames[:, None]
        return masked_mean(last, mask), features, mask

    def _one_length_at_a_time(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        longest = int(self.model._get_feat_extract_output_lengths(lengths.max()))
        rows: list[Tensor] = []
        encoded: list[Tensor] = []
        for length in lengths.unique().tolist():
            members = (lengths == length).nonzero()[:, 0]
            both = torch.cat(self._encoded(audio[members, :length]), 2)
            encoded.append(F.pad(both, (0, 0, 0, longest - both.shape[1])))
            rows.append(members)
        order = torch.cat(rows).argsort()
        both = torch.cat(encoded)[order]
        return both[..., : self.width], both[..., self.width :]

    def _encoded(self, audio: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, features = self._run(audio.to(self.model.dtype), attention_mask=valid)
        return outputs.last_hidden_state, features

    def _normalized(self, audio: Tensor, valid: Tensor) -> Tensor:
        """Zero mean and unit variance over the valid samples, and zeros elsewhere."""
        audio = torch.where(valid, audio.float(), 0)
        if not self.extractor.do_normalize:
            return audio
        count = valid.sum(1, keepdim=True)
        centered = torch.where(valid, audio - audio.sum(1, keepdim=True) / count, 0)
        return centered / (centered.square().sum(1, keepdim=True) / count + 1e-7).sqrt()


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of `features [N, L, D]` over the valid frames of `mask [N, L]`: `[N, D]`."""
    weight = mask[..., None].to(features.dtype)
    return torch.where(mask[..., None], features, 0).sum(1) / weight.sum(1).clamp(min=1)
