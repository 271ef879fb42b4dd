"""What semi-supervised training trains besides its model: the loss of pairs, and the mapper."""

from torch import Tensor, nn

from atk.models.clap import AudioEmbedding
from atk.nn import AlignedContrastiveLoss, InfoNCELoss, SigmoidLoss
from atk.nn.mappers import MLPMapper, TransformerMapper

PairLossModule = InfoNCELoss | SigmoidLoss | AlignedContrastiveLoss


class SemiSupervisedCriterion(nn.Module):
    """The loss of pairs, and the mapper that is trained along with it.

    Args:
        pair_loss: the loss of all terms; checkpoints know it as `info_nce`.
        mapper: audio to pseudo-tokens; None if no term of the loss needs them.
    """

    def __init__(self, pair_loss: PairLossModule, mapper: MLPMapper | TransformerMapper | None):
        super().__init__()
        self.info_nce = pair_loss
        self.mapper = mapper

    @property
    def pair_loss(self) -> PairLossModule:
        """The loss of all terms."""
        return self.info_nce

    @property
    def pseudo_tokens(self) -> int:
        """The number of pseudo-tokens per clip, `L_un`."""
        return 0 if self.mapper is None else self.mapper.tokens

    def map_audio(self, audio: AudioEmbedding) -> Tensor:
        """The pseudo-tokens `Xhat_un` (5.8) of N clips, `[N, L_un, D_T]`."""
        assert self.mapper is not None
        if isinstance(self.mapper, MLPMapper):
            return self.mapper(audio.pooled)
        return self.mapper(audio.frames, audio.mask)
