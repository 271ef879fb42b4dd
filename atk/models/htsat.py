"""HTS-AT, the audio encoder of the published CLAP models, with its features."""

import torch
from torch import Tensor, nn

from atk.models.clap_features import ClapFeatures


class HTSAT(nn.Module):
    """Waveforms to frame features: log-mel features and a `transformers.ClapAudioModel`.

    Args:
        model: the `ClapAudioModel`.
        extractor: its `ClapFeatureExtractor`.
        filters: see `ClapFeatures`.
    """

    def __init__(self, model: nn.Module, extractor, filters: Tensor | None = None):
        super().__init__()
        self.model = model
        self.features = ClapFeatures(extractor, 4 if model.config.enable_fusion else 1, filters)
        self.frames = _frames(model.config)

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.features.extractor.sampling_rate

    @property
    def longest_seconds(self) -> float:
        """Duration of a whole clip, in seconds; what is longer is cut."""
        return self.features.samples / self.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one output frame, in seconds: a whole clip is 32 frames in the published models."""
        return self.longest_seconds / self.frames

    def log_mel(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Spectrograms in dB `[N, frames, mel_bins]` of clips as they are, neither filled up nor cut; valid frames."""
        return self.features.spectrogram(audio), lengths // self.features.extractor.hop_length + 1

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode clips; what is longer than a whole clip (10 s in a ClapModel) is cut.

        Args:
            audio: waveforms `[N, S]` at `sample_rate`.
            lengths: valid samples of each `[N]`, int64.

        Returns:
            Pooled features `[N, width]`; frame features, means over frequency, `[N, L_a, width]`; and the frame mask
            `[N, L_a]`. The model hears a short clip repeated; frames count while they lie within the first
            repetition, so that their times are times of the clip, and at least one does.
        """
        # False: a cut clip is not fused with the longer whole.
        longer = torch.zeros(len(audio), 1, dtype=torch.bool, device=audio.device)
        outputs = self.model(input_features=self.features(audio, lengths), is_longer=longer)
        frames = outputs.last_hidden_state.mean(2).transpose(1, 2)
        valid = (lengths * self.frames // self.features.samples).clamp(min=1)
        return outputs.pooler_output, frames, torch.arange(self.frames, device=audio.device) < valid[:, None]


def _frames(config) -> int:
    """Frames that HTS-AT makes of a clip: its image holds the clip in pieces, one above the other."""
    strides = (config.patch_stride,) * 2 if isinstance(config.patch_stride, int) else config.patch_stride
    bands, steps = (config.spec_size // stride // 2 ** (len(config.depths) - 1) for stride in strides)
    return steps * bands // (bands // (config.spec_size // config.num_mel_bins))
