"""HTS-AT, the audio encoder of the published CLAP models, with its log-mel features."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from atk.models.clap_features import ClapFeatures
from atk.models.long_clips import LONG_CLIPS, LongClips, crops, fused
from atk.models.spec_augment import SpecAugment
from atk.ops.checks import one_of

if TYPE_CHECKING:
    from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor


class HTSAT(nn.Module):
    """Waveforms to frame features: log-mel features and a `transformers.ClapAudioModel`.

    Args:
        model: the `ClapAudioModel`.
        extractor: the `ClapFeatureExtractor` that goes with it.
        filters: mel filters of a checkpoint; see `ClapFeatures`.
        logit_scale: inverse of the temperature that the checkpoint was trained with, if known.
        text_logit_scale: that of the text side, where a ClapModel has one of its own.
        long_clips: what is used of clips longer than the input; see `use_long_clips`.
    """

    model: "ClapAudioModel"
    long_clips: LongClips = "start"

    def __init__(
        self,
        model: "ClapAudioModel",
        extractor: "ClapFeatureExtractor",
        filters: Tensor | None = None,
        logit_scale: float | None = None,
        text_logit_scale: float | None = None,
    ):
        super().__init__()
        self.model = model
        self.logit_scale = logit_scale
        self.text_logit_scale = text_logit_scale
        self.augment: SpecAugment | None = None
        self.features = ClapFeatures(extractor, 4 if model.config.enable_fusion else 1, filters)
        self.frames = _frame_count(model.config)

    @property
    def inputs(self) -> list[nn.Module]:
        """What precedes the layers although it is registered after them."""
        return [self.model.audio_encoder.batch_norm]

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.model.config.hidden_size

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        return self.features.extractor.sampling_rate

    @property
    def longest_seconds(self) -> float:
        """Length of the model's input, in seconds; longer clips are truncated."""
        return self.features.samples / self.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one output frame, in seconds. The published models have 32 frames per input."""
        return self.longest_seconds / self.frames

    def use_long_clips(self, long_clips: LongClips) -> None:
        """Choose what `forward` uses of clips that are longer than `longest_seconds`.

        Args:
            long_clips: "start" truncates them. "crop" uses a random crop, as MS-CLAP and LAION-CLAP without feature
                fusion do, at a position that depends only on the length. "fusion" fuses the whole clip and three
                chunks, as LAION-CLAP with feature fusion does. Frames have times in the clip only with "start".

        Raises:
            ValueError: there is no such choice, or the model has no feature fusion.
        """
        one_of("long_clips", long_clips, LONG_CLIPS)
        if long_clips == "fusion" and not self.model.config.enable_fusion:
            raise ValueError("long_clips must be 'start' or 'crop' for a model without feature fusion, got 'fusion'")
        self.long_clips = long_clips

    def drop_fusion(self) -> None:
        """Remove feature fusion, which clips within the input do not need and exported programs cannot branch to."""
        encoder = self.model.audio_encoder
        encoder.enable_fusion = encoder.patch_embed.enable_fusion = False
        self.features.channels = 1

    def log_mel(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Spectrograms in dB `[N, frames, mel_bins]` of whole clips, never repeated, and their valid frame counts.

        Args:
            audio: waveforms `[N, S]` at `sample_rate`.
            lengths: valid samples of each clip `[N]`, int64.
        """
        return self.features.spectrogram(audio), lengths // self.features.extractor.hop_length + 1

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode clips; what is used of those longer than `longest_seconds` is set by `use_long_clips`.

        Args:
            audio: waveforms `[N, S]` at `sample_rate`.
            lengths: valid samples of each clip `[N]`, int64.

        Returns:
            Pooled features `[N, width]`; frame features averaged over frequency `[N, L_a, width]`; and the frame mask
            `[N, L_a]`, boolean. The model repeats short clips to fill its input. Only the frames of the first
            repetition, at least one, are valid, so that frame times are times in the clip.
        """
        if self.long_clips == "fusion":
            features, longer = fused(self.features, audio, lengths)
        else:
            if self.long_clips == "crop":
                audio, lengths = crops(audio, lengths, self.features.samples)
            features = self.features(audio, lengths)
            longer = torch.zeros(audio.shape[0], 1, dtype=torch.bool, device=audio.device)
            if self.augment is not None:
                mel = features[:, 0]
                whole = torch.full_like(lengths, mel.shape[1])
                features = self.augment(mel, whole, audio, lengths)[:, None].expand_as(features)
        outputs = self.model(input_features=features.to(self.model.dtype), is_longer=longer)
        frames = outputs.last_hidden_state.mean(2).transpose(1, 2)
        valid = (lengths * self.frames // self.features.samples).clamp(min=1)
        return outputs.pooler_output, frames, torch.arange(self.frames, device=audio.device) < valid[:, None]


def _frame_count(config: "ClapAudioConfig") -> int:
    """Number of output frames. HTS-AT cuts the spectrogram along time and stacks the pieces into a square image."""
    strides = (config.patch_stride,) * 2 if isinstance(config.patch_stride, int) else config.patch_stride
    bands, steps = (config.spec_size // stride // 2 ** (len(config.depths) - 1) for stride in strides)
    return steps * bands // (bands // (config.spec_size // config.num_mel_bins))
