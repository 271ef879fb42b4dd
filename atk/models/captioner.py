"""A captioner that describes a clip, or what the clip contains that its reference clips do not (thesis ch. 4)."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.cnn14 import FRAME_STRIDE, Cnn14, Cnn14Config
from atk.models.decoder import CaptionDecoder, DecoderConfig
from atk.models.layers import check_waveforms
from atk.models.saved import find_model, load_weights, naming_file, save_config, save_weights
from atk.ops.checks import one_of

Difference = Literal["mask", "subtraction", "none"]
DIFFERENCES = get_args(Difference)
_DECODER = "decoder"
_MAX_PADDING_RATIO = 1.25  # clips and references share a batch if padding makes it at most this many times as large


@dataclass(frozen=True)
class CaptionerConfig:
    """Audio encoder, Diff block, and decoder of a captioner.

    Args:
        difference: Diff block that removes the references from a clip: "mask" masks the clip's features by
            cross-attention to the references, "subtraction" subtracts their features frame by frame, and "none" builds
            a captioner without references.
        heads: number of attention heads of the mask.
        audio: audio encoder.
        decoder: caption decoder.
    """

    difference: Difference = "mask"
    heads: int = 4
    audio: Cnn14Config = field(default_factory=Cnn14Config)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        one_of("difference", self.difference, DIFFERENCES)
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, got {self.heads}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CaptionerConfig":
        """Restore a configuration from the output of `dataclasses.asdict`."""
        fields: dict[str, Any] = dict(values)
        fields["audio"] = Cnn14Config(**values["audio"])
        fields["decoder"] = DecoderConfig(**values["decoder"])
        return cls(**fields)


class Captioner(nn.Module):
    """CNN14, projection to the decoder's width, Diff block for clips with references, and BART decoder (4.1)-(4.5)."""

    difference_block: nn.Module | None

    def __init__(self, config: CaptionerConfig, audio: Cnn14, decoder: CaptionDecoder):
        super().__init__()
        self.config = config
        self.audio_encoder = audio
        self.decoder = decoder
        self.projection = nn.Linear(config.audio.channels[-1], decoder.width)
        self.difference_block = _difference_block(config, decoder.width)

    @classmethod
    def create(cls, config: CaptionerConfig, captions: Iterable[str]) -> "Captioner":
        """Create a model to train, with the pretrained weights that `config` names and random weights elsewhere.

        Args:
            config: the parts of the model.
            captions: training data of the tokenizer, unless the decoder is pretrained.

        Raises:
            ValueError: a checkpoint cannot be loaded or does not match `config`, or `captions` is empty but needed.
        """
        return cls(config, Cnn14.create(config.audio), CaptionDecoder.create(config.decoder, captions))

    def with_difference(self, difference: Difference, heads: int) -> "Captioner":
        """A captioner with another Diff block and with the encoder, projection, and decoder of this one.

        Returns this captioner itself if its Diff block already matches.
        """
        config = replace(self.config, difference=difference, heads=heads)
        if config == self.config:
            return self
        captioner = Captioner(config, self.audio_encoder, self.decoder)
        captioner.projection = self.projection
        return captioner

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        return self.config.audio.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one frame of `encode`, in seconds."""
        return FRAME_STRIDE * self.config.audio.hop / self.sample_rate

    def tokenize(self, captions: list[str]) -> dict[str, Tensor]:
        """Tokenize captions for `forward`, on the CPU.

        Captions are truncated to `decoder.max_tokens` tokens and keep the end token.
        """
        return self.decoder.tokenize(captions)

    def encode(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features `Z [N, L, D]` (4.1) of waveforms `[N, S]` (valid samples `lengths [N]`), and their mask `[N, L]`."""
        features, mask = self.audio_encoder(audio, lengths)
        return self.projection(features), mask

    def difference(self, z: Tensor, z_ref: Tensor, ref_mask: Tensor) -> Tensor:
        """`Z_diff = Diff(Z, Z_ref)` (4.7) `[N, L, D]`; a clip without a valid reference frame keeps its features.

        Args:
            z: features of the clips `[N, L, D]`.
            z_ref: features of R references per clip `[N, R, L_ref, D]`. The mask attends to their concatenation;
                subtraction subtracts each of them frame by frame, truncated or zero-padded to L frames.
            ref_mask: valid frames of the references `[N, R, L_ref]`, boolean.

        Raises:
            ValueError: the model has no Diff block.
        """
        block = self._require_difference_block()
        rows = ref_mask.flatten(1).any(1).nonzero()[:, 0]
        features = z[rows]
        references = z_ref[rows]
        valid = ref_mask[rows]
        if self.config.difference == "mask":
            features = block(features, references.flatten(1, 2), valid.flatten(1, 2))
        else:
            padding = z.shape[1] - z_ref.shape[2]  # F.pad truncates if this is negative
            for r in range(z_ref.shape[1]):
                reference = F.pad(references[:, r], (0, 0, 0, padding))
                features = block(features, reference, F.pad(valid[:, r], (0, padding)))
        return z.index_copy(0, rows, features.to(z.dtype))

    def forward(
        self,
        audio: Tensor,
        lengths: Tensor,
        tokens: dict[str, Tensor],
        references: Tensor | None = None,
        reference_lengths: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of captions (4.3), or (4.9) for clips with references.

        Args:
            audio: waveforms `[N, S]`, float32.
            lengths: valid samples of each clip `[N]`, int64.
            tokens: output of `tokenize` for N captions.
            references: waveforms to subtract `[N, R, S_ref]`, float32, or None.
            reference_lengths: valid samples of each reference `[N, R]`, int64; 0 = no reference.

        Returns:
            The mean over the tokens, a float32 scalar.

        Raises:
            ValueError: shapes do not match, or references are given and the model has no Diff block.
        """
        return self.decoder(*self._features(audio, lengths, references, reference_lengths), tokens)

    @torch.no_grad()
    def generate(
        self,
        audio: Tensor,
        lengths: Tensor,
        references: Tensor | None = None,
        reference_lengths: Tensor | None = None,
        *,
        beams: int = 4,
        max_tokens: int | None = None,
    ) -> list[str]:
        """Caption N clips by beam search; a clip with a reference is described by what the reference does not contain.

        Args:
            audio, lengths, references, reference_lengths: as in `forward`.
            beams: beam width; 1 = greedy search.
            max_tokens: maximum length of a caption in tokens; None = `decoder.max_tokens`.

        Raises:
            ValueError: as in `forward`, or `beams` or `max_tokens` is out of range.
        """
        features = self._features(audio, lengths, references, reference_lengths)
        return self.decoder.generate(*features, beams, max_tokens)

    def _features(
        self, audio: Tensor, lengths: Tensor, references: Tensor | None, reference_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The features `[N, L, D]` that the decoder attends to, and their mask `[N, L]`."""
        _check_audio(audio, lengths, references, reference_lengths)
        if references is None or reference_lengths is None:
            return self.encode(audio, lengths)
        present = reference_lengths > 0  # [N, R]
        if not bool(present.any()):
            return self.encode(audio, lengths)
        self._require_difference_block()
        clips, given = self._encode_both(audio, lengths, references[present], reference_lengths[present])
        z, mask = clips
        z_given, given_mask = given  # [P, L_ref, D], [P, L_ref] of the P references that are present
        z_ref = z_given.new_zeros(*present.shape, *z_given.shape[1:]).index_put((present,), z_given)
        ref_mask = given_mask.new_zeros(*present.shape, z_given.shape[1]).index_put((present,), given_mask)
        return self.difference(z, z_ref, ref_mask), mask

    def _require_difference_block(self) -> nn.Module:
        if self.difference_block is None:
            raise ValueError("references: this model has no Diff block (difference='none')")
        return self.difference_block

    def _encode_both(
        self, audio: Tensor, lengths: Tensor, references: Tensor, reference_lengths: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """`encode` clips and references, in one batch (and with shared batch statistics) if padding allows."""
        longest = max(audio.shape[1], references.shape[1])
        if longest * (len(audio) + len(references)) > _MAX_PADDING_RATIO * (audio.numel() + references.numel()):
            return self.encode(audio, lengths), self.encode(references, reference_lengths)
        batch = torch.cat([F.pad(x, (0, longest - x.shape[1])) for x in (audio, references)])
        z, mask = self.encode(batch, torch.cat([lengths, reference_lengths]))
        clips = len(audio)
        return _trimmed(z[:clips], mask[:clips]), _trimmed(z[clips:], mask[clips:])

    def save_pretrained(self, folder: str | Path) -> None:
        """Save configuration, tokenizer, and weights (safetensors) to `folder`."""
        self.save_settings(folder)
        save_weights(self, folder)

    def save_settings(self, folder: str | Path) -> None:
        """Save everything but the weights to `folder`: configuration and tokenizer."""
        self.decoder.save(save_config(self.config, folder) / _DECODER)

    @staticmethod
    def _find(name: str | Path) -> tuple[Path, CaptionerConfig]:
        folder, values = find_model(name)
        if "decoder" not in values:
            raise ValueError(f"{folder} holds no captioner: its configuration names no decoder")
        with naming_file(folder / "config.json"):
            return folder, CaptionerConfig.from_dict(values)

    @classmethod
    def saved_config(cls, name: str | Path) -> CaptionerConfig:
        """The configuration of the model that `from_pretrained` loads; arguments and errors are the same."""
        return cls._find(name)[1]

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Captioner":
        """Load a model saved by `save_pretrained`, in evaluation mode.

        Args:
            name: a run folder (its best checkpoint), another local folder, or a hub repository.

        Raises:
            ValueError: `name` holds no such model.
        """
        folder, config = cls._find(name)
        with naming_file(folder):
            model = cls(config, Cnn14(config.audio), CaptionDecoder.load(config.decoder, folder / _DECODER))
            load_weights(model, folder)
        return model.eval()


def _trimmed(z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features and mask without the trailing frames that are padding in every clip."""
    frames = int(mask.sum(1).max())
    return z[:, :frames], mask[:, :frames]


def _difference_block(config: CaptionerConfig, width: int) -> nn.Module | None:
    from atk.nn import CrossAttentionDifference, SubtractionDifference

    if config.difference == "none":
        return None
    if config.difference == "subtraction":
        return SubtractionDifference()
    if width % config.heads:
        raise ValueError(f"heads must divide the decoder's width {width}, got {config.heads}")
    return CrossAttentionDifference(width, config.heads)


def _check_audio(audio: Tensor, lengths: Tensor, references: Tensor | None, reference_lengths: Tensor | None) -> None:
    check_waveforms(audio, lengths)
    if references is None and reference_lengths is None:
        return
    if references is None or reference_lengths is None:
        raise ValueError("references and reference_lengths must be given together")
    if references.dim() != 3 or len(references) != len(audio):
        raise ValueError(f"references must have shape [{len(audio)}, R, S_ref], got {list(references.shape)}")
    if reference_lengths.shape != references.shape[:2]:
        expected = list(references.shape[:2])
        raise ValueError(f"reference_lengths must have shape {expected}, got {list(reference_lengths.shape)}")
