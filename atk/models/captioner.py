"""A captioner that describes a clip, or what the clip contains that its reference clips do not (thesis ch. 4)."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.captioner_config import CaptionerConfig, Difference
from atk.models.cnn14 import FRAME_STRIDE, Cnn14
from atk.models.decoder import CaptionDecoder
from atk.models.generation import GenerationConfig
from atk.models.references import check_references, trim_silence
from atk.models.saved import find_model, load_weights, naming_file, save_config, save_weights

_DECODER = "decoder"
_MAX_PADDING_RATIO = 1.25  # clips and references share a batch if padding makes it at most this many times as large


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

    def with_difference(self, difference: Difference, heads: int, trim_references: bool | None = None) -> "Captioner":
        """A captioner with another Diff block and with the encoder, projection, and decoder of this one.

        Returns this captioner itself if its Diff block already matches. `trim_references` of None changes nothing.
        """
        trims = self.config.trim_references if trim_references is None else trim_references
        config = replace(self.config, difference=difference, heads=heads, trim_references=trims)
        if config == self.config:
            return self
        captioner = Captioner(config, self.audio_encoder, self.decoder)
        captioner.projection = self.projection
        if (difference, heads) == (self.config.difference, self.config.heads):
            captioner.difference_block = self.difference_block
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

    def trim_references(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The references `[P, S]` with lengths `[P]` that the Diff block sees; length 0 = nothing to subtract."""
        if self.config.difference == "mask" and self.config.trim_references:
            return trim_silence(audio, lengths)
        return audio, lengths

    def difference(
        self, z: Tensor, z_ref: Tensor, ref_mask: Tensor, *, repeated: bool = False, common: bool | Tensor = False
    ) -> Tensor:
        """`Z_diff = Diff(Z, Z_ref)` (4.7) `[N, L, D]`; a clip without a valid reference frame keeps its features.

        Args:
            z: features of the clips `[N, L, D]`.
            z_ref: features of R references per clip `[N, R, L_ref, D]`. The mask attends to their concatenation;
                subtraction subtracts each of them frame by frame, truncated or zero-padded to L frames.
            ref_mask: valid frames of the references `[N, R, L_ref]`, boolean.
            repeated: let the mask remove one reference after the other, `Diff(Diff(Z, Z_1), Z_2)`.
            common: keep what clip and references have in common instead: for all clips, or where a boolean `[N]` is
                True. Only the mask can do this.

        Raises:
            ValueError: the model has no Diff block, or `common` is asked of one that subtracts.
        """
        block = self._require_difference_block()
        masks = self.config.difference == "mask"
        asked = common if isinstance(common, Tensor) else torch.full(z.shape[:1], common, device=z.device)
        any_common = bool(asked.any())
        if any_common and not masks:
            raise ValueError("common: only a mask keeps what clips have in common, and this model subtracts")
        rows = ref_mask.flatten(1).any(1).nonzero()[:, 0]
        features, references, valid = z[rows], z_ref[rows], ref_mask[rows]
        if masks and not repeated:
            references, valid = references.flatten(1, 2)[:, None], valid.flatten(1, 2)[:, None]
        padding = z.shape[1] - z_ref.shape[2]  # F.pad truncates if this is negative
        for r in range(references.shape[1]):
            reference, frames = references[:, r], valid[:, r]
            if masks:
                features = block(features, reference, frames, any_common and asked[rows] & frames.any(1))
            else:
                features = block(features, F.pad(reference, (0, 0, 0, padding)), F.pad(frames, (0, padding)))
        return z.index_copy(0, rows, features.to(z.dtype))

    def forward(
        self,
        audio: Tensor,
        lengths: Tensor,
        tokens: dict[str, Tensor],
        references: Tensor | None = None,
        reference_lengths: Tensor | None = None,
        common: bool | Tensor = False,
    ) -> Tensor:
        """Cross-entropy of captions (4.3), or (4.9) for clips with references.

        Args:
            audio: waveforms `[N, S]`, float32.
            lengths: valid samples of each clip `[N]`, int64.
            tokens: output of `tokenize` for N captions.
            references: waveforms to subtract `[N, R, S_ref]`, float32, or None.
            reference_lengths: valid samples of each reference `[N, R]`, int64; 0 = no reference.
            common: as in `difference`.

        Returns:
            The mean over the tokens, a float32 scalar.

        Raises:
            ValueError: shapes do not match, or references are given and the model has no Diff block.
        """
        features = self._features(audio, lengths, references, reference_lengths, common=common)
        return self.decoder(*features, tokens)

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
        generation: GenerationConfig | None = None,
        repeated: bool = False,
        common: bool = False,
    ) -> list[str]:
        """Caption N clips by beam search; a clip with a reference is described by what the reference does not contain.

        Args:
            audio, lengths, references, reference_lengths: as in `forward`.
            beams: beam width; 1 = greedy search.
            max_tokens: maximum length of a caption in tokens; None = `decoder.max_tokens`.
            generation: further settings of the search; None = the defaults.
            repeated, common: as in `difference`.

        Raises:
            ValueError: as in `forward`, or `beams` or `max_tokens` is out of range.
        """
        features = self._features(audio, lengths, references, reference_lengths, repeated=repeated, common=common)
        return self.decoder.generate(*features, beams, max_tokens, generation)

    def _features(
        self, audio: Tensor, lengths: Tensor, references: Tensor | None, reference_lengths: Tensor | None,
        *, repeated: bool = False, common: bool | Tensor = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The features `[N, L, D]` that the decoder attends to, and their mask `[N, L]`."""
        check_references(audio, lengths, references, reference_lengths)
        if references is None or reference_lengths is None:
            return self.encode(audio, lengths)
        present = reference_lengths > 0  # [N, R]
        if not bool(present.any()):
            return self.encode(audio, lengths)
        self._require_difference_block()
        tracks, counts = self.trim_references(references[present], reference_lengths[present])
        sounding = counts > 0
        if not bool(sounding.any()):
            return self.encode(audio, lengths)
        present = present.masked_scatter(present, sounding)
        clips, given = self._encode_both(audio, lengths, tracks[sounding], counts[sounding])
        z, mask = clips
        z_given, given_mask = given  # [P, L_ref, D], [P, L_ref] of the P references that are present
        z_ref = z_given.new_zeros(*present.shape, *z_given.shape[1:]).index_put((present,), z_given)
        ref_mask = given_mask.new_zeros(*present.shape, z_given.shape[1]).index_put((present,), given_mask)
        return self.difference(z, z_ref, ref_mask, repeated=repeated, common=common), mask

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
