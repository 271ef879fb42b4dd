"""The log-mel features of a `transformers.ClapModel`, computed on the device of the waveforms."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from atk.models.layers import Float32Features
from atk.ops.checks import one_of

if TYPE_CHECKING:
    from transformers import ClapFeatureExtractor

PADDINGS = ("repeatpad", "repeat", "pad")


class ClapFeatures(Float32Features):
    """The features of `transformers.ClapFeatureExtractor`, which computes them in numpy.

    Clips longer than the extractor's `max_length_s` (10 s) are truncated.

    Args:
        extractor: the `ClapFeatureExtractor` that provides the settings.
        channels: channels of the model's input: 4 copies with feature fusion, 1 without.
        filters: mel filters `[fft_window_size // 2 + 1, mel_bins]` of a checkpoint, saved with the weights; None =
            those of the extractor, which are not saved.

    Raises:
        ValueError: the extractor pads short clips in an unknown way.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, extractor: "ClapFeatureExtractor", channels: int, filters: Tensor | None = None):
        super().__init__()
        one_of("padding", extractor.padding, PADDINGS)
        self.extractor = extractor
        self.channels = channels
        self.samples = int(extractor.nb_max_samples)
        persistent = filters is not None  # the settings determine the extractor's filters
        if filters is None:
            fusion = extractor.truncation == "fusion"
            filters = torch.from_numpy(extractor.mel_filters if fusion else extractor.mel_filters_slaney)
        self.register_buffer("filters", filters.float(), persistent=persistent)
        self.register_buffer("window", torch.hann_window(extractor.fft_window_size), persistent=False)

    def forward(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel spectrograms in dB `[N, channels, samples // hop + 1, mel_bins]` of clips padded to `samples`.

        Args:
            audio: waveforms `[N, S]` in [-1, 1].
            lengths: valid samples of each clip `[N]`, int64; clips longer than `samples` are truncated.
        """
        mel = self.spectrogram(self._fill(audio, lengths))
        return mel[:, None].expand(-1, self.channels, -1, -1)

    def _fill(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Pad or truncate clips to waveforms `[N, samples]`, as `extractor.padding` says.

        "repeat" repeats the clip, "repeatpad" repeats it a whole number of times and then pads, and "pad" only pads.
        """
        audio = F.pad(audio, (0, max(0, 1 - audio.shape[1])))
        lengths = lengths.clamp(1, self.samples)[:, None]
        index = torch.arange(self.samples, device=audio.device)
        whole = torch.full_like(lengths, self.samples) // lengths
        copies = {"repeatpad": whole, "repeat": self.samples, "pad": 1}[self.extractor.padding]
        return audio.gather(1, index % lengths).masked_fill(index >= copies * lengths, 0)

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Log-mel spectrograms in dB `[N, S // hop + 1, mel_bins]` of waveforms `[N, S]`.

        Only waveforms shorter than the FFT window are padded.
        """
        size = self.extractor.fft_window_size
        audio = F.pad(audio, (0, max(0, size - audio.shape[1])))
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                audio.float(), size, self.extractor.hop_length, window=self.window, return_complex=True
            )
            power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
            return 10 * torch.log10((power.transpose(1, 2) @ self.filters).clamp(min=1e-10))
