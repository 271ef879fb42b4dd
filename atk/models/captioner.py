"""A captioner that describes a clip alone, or what it has that reference clips do not (thesis ch. 4)."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.cnn14 import FRAME_STRIDE, Cnn14, Cnn14Config
from atk.models.decoder import CaptionDecoder, DecoderConfig
from atk.models.saved import find_model, load_weights, save_model
from atk.ops.checks import one_of

DIFFERENCES = ("mask", "subtraction", "none")
_DECODER = "decoder"
_MOST_PADDING = 1.25  # clips and references are encoded together while padding adds no more than a quarter


@dataclass(frozen=True)
class CaptionerConfig:
    """An audio encoder, a Diff block and a decoder.

    Args:
        difference: Diff block: "mask" (4.11)-(4.12), "subtraction" (4.10), or "none" for a captioner without one.
        heads: attention heads of the mask.
        audio: audio encoder.
        decoder: caption decoder.
    """

    difference: str = "mask"
    heads: int = 4
    audio: Cnn14Config = field(default_factory=Cnn14Config)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self):
        one_of("difference", self.difference, DIFFERENCES)
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, got {self.heads}")

    @classmethod
    def from_dict(cls, values: dict) -> "CaptionerConfig":
        """The configuration that `dataclasses.asdict` wrote."""
        parts = {"audio": Cnn14Config(**values["audio"]), "decoder": DecoderConfig(**values["decoder"])}
        return cls(**{**values, **parts})


class Captioner(nn.Module):
    """CNN14, projection to the decoder's width, Diff block where there is a reference, BART decoder (4.1)-(4.5)."""

    def __init__(self, config: CaptionerConfig, audio: Cnn14, decoder: CaptionDecoder):
        super().__init__()
        self.config = config
        self.audio_encoder, self.decoder = audio, decoder
        self.projection = nn.Linear(config.audio.channels[-1], decoder.width)
        self.difference_block = _difference_block(config, decoder.width)

    @classmethod
    def create(cls, config: CaptionerConfig, captions: Iterable[str]) -> "Captioner":
        """A model to train: pretrained weights where `config` names them, the rest from scratch.

        `captions` train the tokenizer when there is no pretrained one.

        Raises:
            ValueError: a checkpoint cannot be loaded or does not fit, or there is no caption where they are needed.
        """
        return cls(config, Cnn14.create(config.audio), CaptionDecoder.create(config.decoder, captions))

    def with_difference(self, difference: str, heads: int) -> "Captioner":
        """The same encoder and decoder, not copied, with a new Diff block unless it is of this kind already."""
        config = replace(self.config, difference=difference, heads=heads)
        if config == self.config:
            return self
        other = Captioner(config, self.audio_encoder, self.decoder)
        other.projection = self.projection
        return other

    @property
    def sample_rate(self) -> int:
        """Of the waveforms the model takes, in Hz."""
        return self.config.audio.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of one frame of `encode`, in seconds."""
        return FRAME_STRIDE * self.config.audio.hop / self.sample_rate

    def tokenize(self, captions: list[str]) -> dict[str, Tensor]:
        """What `forward` takes, on the CPU; captions beyond `decoder.max_tokens` are cut and keep the end token."""
        return self.decoder.tokenize(captions)

    def encode(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features `Z [N, L, D]` (4.1) of waveforms `[N, S]` (valid samples `lengths [N]`), and their mask `[N, L]`."""
        features, mask = self.audio_encoder(audio, lengths)
        return self.projection(features), mask

    def difference(self, z: Tensor, z_ref: Tensor, ref_mask: Tensor) -> Tensor:
        """`Z_diff = Diff(Z, Z_ref)` (4.7) `[N, L, D]`; a clip without a valid reference frame keeps its features.

        Args:
            z: features of the clips `[N, L, D]`.
            z_ref: features of R references of each `[N, R, L_ref, D]`. The mask attends to all of them, one after the
                other; subtraction takes each away frame by frame, cut or zero-padded to L frames.
            ref_mask: their valid frames `[N, R, L_ref]`, boolean.

        Raises:
            ValueError: the model has no Diff block.
        """
        self._check_difference()
        rows = ref_mask.flatten(1).any(1).nonzero()[:, 0]
        some, references, valid = z[rows], z_ref[rows], ref_mask[rows]
        if self.config.difference == "mask":
            some = self.difference_block(some, references.flatten(1, 2), valid.flatten(1, 2))
        else:
            longer = z.shape[1] - z_ref.shape[2]  # a negative padding cuts
            for track in range(z_ref.shape[1]):
                reference = F.pad(references[:, track], (0, 0, 0, longer))
                some = self.difference_block(some, reference, F.pad(valid[:, track], (0, longer)))
        return z.index_copy(0, rows, some.to(z.dtype))

    def forward(
        self,
        audio: Tensor,
        lengths: Tensor,
        tokens: dict[str, Tensor],
        references: Tensor | None = None,
        reference_lengths: Tensor | None = None,
    ) -> Tensor:
        """Loss (4.3), or (4.9) of clips with references: mean cross-entropy over the tokens, a float32 scalar.

        Args:
            audio: waveforms `[N, S]`, float32.
            lengths: valid samples of each `[N]`, int64.
            tokens: what `tokenize` returned for their N captions.
            references: waveforms to take away `[N, R, S_ref]`, float32, or None.
            reference_lengths: valid samples of each `[N, R]`, int64; 0 = there is none.

        Raises:
            ValueError: shapes do not fit together, or there are references and the model has no Diff block.
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
        """Captions of N clips, or of what they have that their references do not, by beam search.

        Args:
            audio, lengths, references, reference_lengths: as in `forward`.
            beams: width of the beam search, 1 = greedy.
            max_tokens: longest caption; None = `decoder.max_tokens`.

        Raises:
            ValueError: as `forward`, or `beams` or `max_tokens` is out of range.
        """
        features = self._features(audio, lengths, references, reference_lengths)
        return self.decoder.generate(*features, beams, max_tokens)

    def _features(
        self, audio: Tensor, lengths: Tensor, references: Tensor | None, reference_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What the decoder attends to: features `[N, L, D]` and their mask `[N, L]`."""
        _check_audio(audio, lengths, references, reference_lengths)
        if references is None or not bool((reference_lengths > 0).any()):
            return self.encode(audio, lengths)
        self._check_difference()
        present = reference_lengths > 0
        tracks, track_lengths = references[present], reference_lengths[present]  # [P, S_ref]
        (z, mask), (found, found_mask) = self._encode_both(audio, lengths, tracks, track_lengths)
        z_ref = found.new_zeros(*present.shape, *found.shape[1:]).index_put((present,), found)
        ref_mask = found_mask.new_zeros(*present.shape, found.shape[1]).index_put((present,), found_mask)
        return self.difference(z, z_ref, ref_mask), mask

    def _check_difference(self) -> None:
        if self.difference_block is None:
            raise ValueError("references: this model has no Diff block (difference='none') and takes none")

    def _encode_both(
        self, audio: Tensor, lengths: Tensor, tracks: Tensor, track_lengths: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """`encode` of clips and references, in one batch (and so with one batch statistic) where padding allows."""
        longest = max(audio.shape[1], tracks.shape[1])
        if longest * (len(audio) + len(tracks)) > _MOST_PADDING * (audio.numel() + tracks.numel()):
            return [self.encode(audio, lengths), self.encode(tracks, track_lengths)]
        both = torch.cat([F.pad(x, (0, longest - x.shape[1])) for x in (audio, tracks)])
        z, mask = self.encode(both, torch.cat([lengths, track_lengths]))
        clips = len(audio)
        return [_trimmed(z[:clips], mask[:clips]), _trimmed(z[clips:], mask[clips:])]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration, tokenizer and weights (safetensors) to `folder`."""
        self.decoder.save(save_model(self, folder) / _DECODER)

    @staticmethod
    def _find(name: str | Path) -> tuple[Path, CaptionerConfig]:
        folder, values = find_model(name)
        if "decoder" not in values:
            raise ValueError(f"{folder} holds no captioner: its configuration names no decoder")
        return folder, CaptionerConfig.from_dict(values)

    @classmethod
    def saved_config(cls, name: str | Path) -> CaptionerConfig:
        """The configuration of what `from_pretrained` would load, without its weights; the same errors."""
        return cls._find(name)[1]

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Captioner":
        """Load what `save_pretrained` wrote, from a local folder or a hub repository, in evaluation mode.

        Raises:
            ValueError: there is no such model.
        """
        folder, config = cls._find(name)
        model = cls(config, Cnn14(config.audio), CaptionDecoder.load(config.decoder, folder / _DECODER))
        load_weights(model, folder)
        return model.eval()


def _trimmed(z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features and mask without the frames at the end that no clip fills."""
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
    if audio.dim() != 2 or not audio.is_floating_point():
        raise ValueError(f"audio must be waveforms of shape [N, S], got {audio.dtype} {list(audio.shape)}")
    if lengths.shape != audio.shape[:1]:
        raise ValueError(
            f"lengths must have shape {list(audio.shape[:1])}, one for each clip, got {list(lengths.shape)}"
        )
    if (references is None) != (reference_lengths is None):
        raise ValueError("references and reference_lengths must be given together")
    if references is None:
        return
    if references.dim() != 3 or len(references) != len(audio):
        raise ValueError(f"references must have shape [{len(audio)}, R, S_ref], got {list(references.shape)}")
    if reference_lengths.shape != references.shape[:2]:
        wanted = list(references.shape[:2])
        raise ValueError(f"reference_lengths must have shape {wanted}, got {list(reference_lengths.shape)}")
