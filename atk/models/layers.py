"""What the encoders share: features in float32 for weights of any dtype, checks of waveforms, and repeated layers."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_CLIPS_AT_A_TIME = 4
Layer = int | Literal["auto"] | None


def check_layer(name: str, layer: Layer) -> None:
    """Check that `layer` is an integer, None, or "auto"; raises ValueError."""
    if not (layer is None or layer == "auto" or isinstance(layer, int)):
        raise ValueError(f'{name} must be an integer, None, or "auto", got {layer!r}')


def layer_number(layer: Layer, layers: int) -> int:
    """The number of a layer, counted from the input; None and an unresolved "auto" are the last of `layers`."""
    return layer if isinstance(layer, int) else layers


class Float32Features(nn.Module):
    """A module whose buffers (windows and filters) stay in float32 if the model is converted to half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            owner, _, attribute = name.rpartition(".")
            module = self.get_submodule(owner)
            converted = getattr(module, attribute)
            if converted.dtype != buffer.dtype:
                setattr(module, attribute, buffer.to(converted.device))
        return self


class MelSpectrogram(Float32Features):
    """Mel power spectra of waveforms, computed in float32.

    Args:
        sample_rate: sample rate of the waveforms, in Hz.
        window: FFT length, in samples.
        hop: hop length, in samples.
        mel_bins: number of mel bands.
        options: further arguments of `torchaudio.transforms.MelScale`.

    Attributes:
        clips_at_a_time: number of clips whose spectra are computed at once on a CPU.
    """

    clips_at_a_time = _CLIPS_AT_A_TIME

    def __init__(self, sample_rate: int, window: int, hop: int, mel_bins: int, **options: Any):
        super().__init__()
        from atk._torchaudio import transforms

        self.window = window
        self.hop = hop
        self.spectrogram = transforms.Spectrogram(window, hop_length=hop, power=None, center=False)
        self.mel_scale = transforms.MelScale(mel_bins, sample_rate, n_stft=window // 2 + 1, **options)
        # Not persistent: the configuration determines both, so they are not saved with the weights.
        self.spectrogram.register_buffer("window", self.spectrogram.window, persistent=False)
        self.mel_scale.register_buffer("fb", self.mel_scale.fb, persistent=False)

    def power(self, audio: Tensor) -> Tensor:
        """Mel power spectra `[N, 1 + (S - window) // hop, mel_bins]` of waveforms `[N, S]`."""
        # On a CPU, spectra of few clips stay in its cache, which halves the time.
        in_parts = audio.device.type == "cpu" and not torch.compiler.is_compiling()
        parts = audio.split(self.clips_at_a_time) if in_parts else (audio,)
        with torch.autocast(audio.device.type, enabled=False):
            return torch.cat([self._power(part.float()) for part in parts])

    def _power(self, audio: Tensor) -> Tensor:
        # power=2 would call abs() on complex values, which takes as long as the FFT itself.
        spectrum = self.spectrogram(audio)
        return self.mel_scale(spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)).transpose(1, 2)


def check_waveforms(audio: Tensor, lengths: Tensor) -> None:
    """Raise TypeError or ValueError unless `audio` holds waveforms `[N, S]` and `lengths` their lengths `[N]`."""
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        given = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
        raise TypeError(f"audio must be a floating-point tensor with full scale +-1, got {given}")
    if audio.dim() != 2 or len(audio) == 0:
        raise ValueError(f"audio must be waveforms of shape [N, S] with N >= 1, got {list(audio.shape)}")
    if not isinstance(lengths, Tensor) or lengths.dtype == torch.bool or lengths.is_floating_point():
        given = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be an integer tensor, the valid samples of each clip, got {given}")
    if lengths.shape != audio.shape[:1]:
        raise ValueError(f"lengths must have shape {list(audio.shape[:1])}, got {list(lengths.shape)}")


def innermost_layers(model: nn.Module) -> list[nn.Module]:
    """The entries of every `nn.ModuleList` in `model` that contain no `nn.ModuleList` themselves."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack if any(True for _ in layer.parameters())]
    return [layer for layer in layers if not any(isinstance(module, nn.ModuleList) for module in layer.modules())]


def checkpoint_layers(model: nn.Module) -> None:
    """Apply activation checkpointing to the `innermost_layers`.

    Only the inputs of each layer are kept for the backward, which recomputes the rest.
    """
    for layer in innermost_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
