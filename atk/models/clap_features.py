"""The log-mel features of a `transformers.ClapModel`, computed where the waveforms are."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.ops.checks import one_of

PADDINGS = ("repeatpad", "repeat", "pad")


class ClapFeatures(nn.Module):
    """What `transformers.ClapFeatureExtractor` computes in numpy, for clips of at most its `max_length_s` (10 s).

    Args:
        extractor: the `ClapFeatureExtractor`, whose settings are taken.
        channels: of the model's input: 4 copies with feature fusion, else 1.
        filters: mel filters `[fft_window_size // 2 + 1, mel_bins]` of a checkpoint, then saved with the weights; None =
            the extractor's.

    Raises:
        ValueError: it pads short clips in an unknown way.
    """

    def __init__(self, extractor, channels: int, filters: Tensor | None = None):
        super().__init__()
        one_of("padding", extractor.padding, PADDINGS)
        self.extractor, self.channels = extractor, channels
        self.samples = int(extractor.nb_max_samples)
        own = extractor.mel_filters if extractor.truncation == "fusion" else extractor.mel_filters_slaney
        saved = filters is not None  # else constants of the settings, not weights to save
        self.register_buffer("filters", filters.float() if saved else torch.from_numpy(own).float(), persistent=saved)
        self.register_buffer("window", torch.hann_window(extractor.fft_window_size), persistent=False)

    def forward(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel spectrograms in dB `[N, channels, samples // hop + 1, mel_bins]` of clips filled up to `samples`.

        Args:
            audio: waveforms `[N, S]` in [-1, 1].
            lengths: valid samples of each `[N]`, int64; what is longer than `samples` is cut.
        """
        mel = self.spectrogram(self._fill(audio, lengths))
        return mel[:, None].expand(-1, self.channels, -1, -1)

    def _fill(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Waveforms `[N, samples]`: each clip repeated, the rest of the last repetition silent ("repeatpad") or not."""
        audio = F.pad(audio, (0, max(0, 1 - audio.shape[1])))
        lengths = lengths.clamp(1, self.samples)[:, None]
        place = torch.arange(self.samples, device=audio.device)
        copies = {"repeatpad": self.samples // lengths, "repeat": self.samples, "pad": 1}[self.extractor.padding]
        return audio.gather(1, place % lengths).masked_fill(place >= copies * lengths, 0)

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Log-mel spectrograms in dB `[N, S // hop + 1, mel_bins]` of waveforms `[N, S]` as they are."""
        size, hop = self.extractor.fft_window_size, self.extractor.hop_length
        audio = F.pad(audio, (0, max(0, size - audio.shape[1])))
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(audio.float(), size, hop, window=self.window, return_complex=True)
            power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
            return 10 * torch.log10((power.transpose(1, 2) @ self.filters).clamp(min=1e-10))
