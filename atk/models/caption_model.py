"""What models with a caption decoder share: the Diff block, the cross-entropy of captions, and beam search."""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.decoder import CaptionDecoder
from atk.models.layers import check_waveforms

Difference = Literal["mask", "subtraction", "none"]
DIFFERENCES = get_args(Difference)
_MAX_PADDING_RATIO = 1.25  # clips and references share a batch if padding makes it at most this many times as large


class CaptionModel(nn.Module):
    """A model that decodes the features of a clip, or what remains of them without those of reference clips, to text.

    Subclasses define `encode` and `sample_rate`, and create the attributes.

    Attributes:
        config: has the type of the Diff block, `difference`.
        difference_block: the Diff block; None if there is none.
        decoder: the caption decoder.
    """

    config: Any
    difference_block: nn.Module | None
    decoder: CaptionDecoder

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        raise NotImplementedError

    def encode(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features `Z [N, L, D]` (4.1) of waveforms `[N, S]` (valid samples `lengths [N]`), and their mask `[N, L]`."""
        raise NotImplementedError

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

    def cross_entropy(
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
            tokens: output of `decoder.tokenize` for N captions.
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
        return self.subtract(z, *given, present), mask

    def subtract(self, z: Tensor, z_given: Tensor, given_mask: Tensor, present: Tensor) -> Tensor:
        """`difference` for the P references that are present, in order of clips.

        Args:
            z: features of the clips `[N, L, D]`.
            z_given: features of the references `[P, L_ref, D]`.
            given_mask: their valid frames `[P, L_ref]`, boolean.
            present: which of the R references of each clip is present `[N, R]`, boolean.
        """
        z_ref = z_given.new_zeros(*present.shape, *z_given.shape[1:]).index_put((present,), z_given)
        ref_mask = given_mask.new_zeros(*present.shape, z_given.shape[1]).index_put((present,), given_mask)
        return self.difference(z, z_ref, ref_mask)

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
