"""The audio encoder that a configuration names: created, saved without its weights, and loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atk.models.audio import AudioEncoder, AudioEncoderConfig
from atk.models.audio_pretrained import AST, PretrainedAudio, Waveforms, Whisper, masked_mean
from atk.models.cnn14 import FRAME_STRIDE, Cnn14, Cnn14Config
from atk.models.htsat import HTSAT
from atk.models.music_tagging import MusicTaggingTransformer
from atk.models.tokenizer import import_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CNN14_BAND = (50.0, 14000.0)  # Hz, of the published checkpoints, as far as the sample rate allows


class Cnn14Encoder(nn.Module):
    """CNN14 as the audio encoder of a contrastive model; the pooled features are PANNs' maximum plus mean."""

    def __init__(self, cnn: Cnn14):
        super().__init__()
        self.cnn = cnn
        self.width = cnn.config.channels[-1]
        self.blocks = cnn.blocks  # a plain list: the weights keep one name

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        return self.cnn.config.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one output frame, in seconds."""
        return FRAME_STRIDE * self.cnn.config.hop / self.sample_rate

    def log_mel(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Spectrograms in dB `[N, T, mel_bins]`, and their valid frames `[N]`."""
        return self.cnn.log_mel(audio, lengths), 1 + lengths // self.cnn.config.hop

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled features `[N, width]`, frame features `[N, L_a, width]`, and the frame mask `[N, L_a]`, boolean."""
        frames, mask = self.cnn(audio, lengths)
        highest = frames.masked_fill(~mask[..., None], -torch.inf).amax(1)
        return highest + masked_mean(frames, mask), frames, mask


AudioTower = AudioEncoder | Cnn14Encoder | HTSAT | PretrainedAudio


def create_audio_encoder(config: AudioEncoderConfig) -> AudioTower:
    """Create the encoder that `config` names, with pretrained weights if it names any.

    Raises:
        ValueError: the checkpoint cannot be loaded, or is not an audio encoder that gives frames.
    """
    if config.type == "cnn14":
        return Cnn14Encoder(Cnn14.create(_cnn14_config(config)))
    if config.pretrained is None:
        return _from_scratch(config)
    transformers = import_transformers()
    try:
        model = transformers.AutoModel.from_pretrained(config.pretrained)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(config.pretrained)
        return _wrapped(model, extractor, config)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many types, depending on the checkpoint
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise ValueError(f"audio.pretrained: cannot use {config.pretrained!r}: {reason}") from error


def save_audio_encoder(encoder: AudioTower, folder: Path) -> None:
    """Save what `load_audio_encoder` needs besides the configuration and the weights."""
    if isinstance(encoder, PretrainedAudio):
        encoder.model.config.save_pretrained(folder)
        encoder.extractor.save_pretrained(folder)
    elif isinstance(encoder, HTSAT):
        encoder.model.config.save_pretrained(folder)
        encoder.features.extractor.save_pretrained(folder)


def load_audio_encoder(config: AudioEncoderConfig, folder: Path) -> AudioTower:
    """The encoder of a saved model, whose weights are loaded with those of the whole model."""
    if config.type == "cnn14":
        return Cnn14Encoder(Cnn14(_cnn14_config(config)))
    if config.pretrained is None:
        return _from_scratch(config)
    transformers = import_transformers()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    if isinstance(extractor, transformers.ClapFeatureExtractor):
        return HTSAT(transformers.ClapAudioModel(transformers.ClapAudioConfig.from_pretrained(folder)), extractor)
    saved = transformers.AutoConfig.from_pretrained(folder, _attn_implementation_autoset=False)
    return _wrapped(transformers.AutoModel.from_config(saved), extractor, config)


def _from_scratch(config: AudioEncoderConfig) -> AudioEncoder:
    return (MusicTaggingTransformer if config.type == "music-tagging-transformer" else AudioEncoder)(config)


def _cnn14_config(config: AudioEncoderConfig) -> Cnn14Config:
    if config.pretrained is not None:
        return Cnn14Config.published(config.sample_rate, config.pretrained)
    fmin, fmax = _CNN14_BAND
    return Cnn14Config(
        sample_rate=config.sample_rate,
        mel_bins=config.mel_bins,
        window=config.window,
        hop=config.hop,
        fmin=fmin,
        fmax=min(fmax, config.sample_rate / 2),
        channels=config.channels,  # pyrefly: ignore[bad-argument-type]  # checked there
        dropout=config.dropout,
    )


def _wrapped(model: "PreTrainedModel", extractor: Any, config: AudioEncoderConfig) -> AudioTower:
    """The adapter for a model of transformers; raises ValueError if there is none."""
    model_type = model.config.model_type
    layer = None if config.frame_layer == "auto" else config.frame_layer
    if model_type.startswith("clap"):
        if layer is not None:
            raise ValueError("frame_layer must be null for HTS-AT, whose layers have frames of different lengths")
        audio_model: Any = getattr(model, "audio_model", model)
        return HTSAT(audio_model.float(), extractor)
    if model_type == "whisper":
        return Whisper(getattr(model, "encoder", model), extractor, layer)
    if model_type == "audio-spectrogram-transformer":
        return AST(model, extractor, layer)
    if hasattr(model, "_get_feat_extract_output_lengths") and hasattr(model.config, "conv_kernel"):
        return Waveforms(model, extractor, layer)
    raise ValueError(
        f"a {model_type} model is none of AST, Whisper, ClapModel, or wav2vec 2.0 and its relatives, such as HuBERT"
    )
