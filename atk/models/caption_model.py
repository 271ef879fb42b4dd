"""What models with a caption decoder share: the Diff block, the cross-entropy of captions, and beam search."""

from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.captioner_config import Difference
from atk.models.decoder import CaptionDecoder
from atk.models.generation import GenerationConfig
from atk.models.references import check_references, trim_silence

_MAX_PADDING_RATIO = 1.25  # clips and references share a batch if padding makes it at most this many times as large

_ModelT = TypeVar("_ModelT", bound="CaptionModel")


class References(NamedTuple):
    """The P references of a batch that the Diff block sees.

    Attributes:
        audio: waveforms `[P, S_ref]`, in order of clips.
        lengths: valid samples of each of them `[P]`, int64; above 0.
        present: which of the R references of each clip they are `[N, R]`, boolean.
    """

    audio: Tensor
    lengths: Tensor
    present: Tensor


class CaptionModel(nn.Module):
    """A model that decodes the features of a clip, or what remains of them without those of reference clips, to text.

    Subclasses define `encode`, `sample_rate`, and `reconfigured`, and create the attributes.

    Attributes:
        config: has the settings of the Diff block, `difference`, `heads`, and `trim_references`.
        projection: from the width of the audio encoder to that of the decoder.
        difference_block: the Diff block; None if there is none.
        decoder: the caption decoder.
    """

    config: Any
    projection: nn.Linear
    difference_block: nn.Module | None
    decoder: CaptionDecoder

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        raise NotImplementedError

    def encode(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features `Z [N, L, D]` (4.1) of waveforms `[N, S]` (valid samples `lengths [N]`), and their mask `[N, L]`."""
        raise NotImplementedError

    def reconfigured(self, config: Any) -> Any:
        """A new model with another configuration of the Diff block, and with the encoders and decoder of this one."""
        raise NotImplementedError

    def with_difference(
        self: _ModelT, difference: Difference, heads: int, trim_references: bool | None = None
    ) -> _ModelT:
        """A model with another Diff block and with the encoders, projection, and decoder of this one.

        Returns this model itself if its Diff block already matches. `trim_references` of None changes nothing.
        """
        trims = self.config.trim_references if trim_references is None else trim_references
        config = replace(self.config, difference=difference, heads=heads, trim_references=trims)
        if config == self.config:
            return self
        model = self.reconfigured(config)
        model.projection = self.projection
        if (difference, heads) == (self.config.difference, self.config.heads):
            model.difference_block = self.difference_block
        return model

    def trim_references(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The references `[P, S]` with lengths `[P]` that the Diff block sees; length 0 = nothing to subtract."""
        if self.config.difference == "mask" and self.config.trim_references:
            return trim_silence(audio, lengths)
        return audio, lengths

    def present_references(self, references: Tensor, reference_lengths: Tensor) -> References | None:
        """The references that the Diff block sees, of those in `cross_entropy`; None if there are none.

        Raises:
            ValueError: there are references, but the model has no Diff block.
        """
        present = reference_lengths > 0  # [N, R]
        if not bool(present.any()):
            return None
        self._require_difference_block()
        audio, lengths = self.trim_references(references[present], reference_lengths[present])
        sounding = lengths > 0
        if not bool(sounding.any()):
            return None
        return References(audio[sounding], lengths[sounding], present.masked_scatter(present, sounding))

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

    def cross_entropy(
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
            tokens: output of `decoder.tokenize` for N captions.
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
            audio, lengths, references, reference_lengths: as in `cross_entropy`.
            beams: beam width; 1 = greedy search.
            max_tokens: maximum length of a caption in tokens; None = `decoder.max_tokens`.
            generation: further settings of the search; None = the defaults.
            repeated, common: as in `difference`.

        Raises:
            ValueError: as in `cross_entropy`, or `beams` or `max_tokens` is out of range.
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
        seen = self.present_references(references, reference_lengths)
        if seen is None:
            return self.encode(audio, lengths)
        clips, given = self._encode_both(audio, lengths, seen.audio, seen.lengths)
        z, mask = clips
        return self.subtract(z, *given, seen.present, repeated=repeated, common=common), mask

    def subtract(
        self,
        z: Tensor,
        z_given: Tensor,
        given_mask: Tensor,
        present: Tensor,
        *,
        repeated: bool = False,
        common: bool | Tensor = False,
    ) -> Tensor:
        """`difference` for the P references that are present, in order of clips.

        Args:
            z: features of the clips `[N, L, D]`.
            z_given: features of the references `[P, L_ref, D]`.
            given_mask: their valid frames `[P, L_ref]`, boolean.
            present: which of the R references of each clip is present `[N, R]`, boolean.
            repeated, common: as in `difference`.
        """
        z_ref = z_given.new_zeros(*present.shape, *z_given.shape[1:]).index_put((present,), z_given)
        ref_mask = given_mask.new_zeros(*present.shape, z_given.shape[1]).index_put((present,), given_mask)
        return self.difference(z, z_ref, ref_mask, repeated=repeated, common=common)

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


def _trimmed(z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features and mask without the trailing frames that are padding in every clip."""
    frames = int(mask.sum(1).max())
    return z[:, :frames], mask[:, :frames]


def create_difference_block(config: Any, width: int) -> nn.Module | None:
    """The Diff block that `config.difference` and `config.heads` name, for features of a width; None if there is none.

    Raises:
        ValueError: the number of heads does not divide the width.
    """
    from atk.nn import CrossAttentionDifference, SubtractionDifference

    if config.difference == "none":
        return None
    if config.difference == "subtraction":
        return SubtractionDifference()
    if width % config.heads:
        raise ValueError(f"heads must divide the decoder's width {width}, got {config.heads}")
    return CrossAttentionDifference(width, config.heads)
