"""GradCache (github.com/luyug/GradCache): the aligned loss as its `loss_fn`.

GradCache takes one tensor per model, the same shape for all chunks. `joined` puts the global vector in front of the
frames or tokens, in the models or as `get_rep_fn`, and `AlignedLoss` takes it off again.
"""

import torch
from torch import Tensor, nn

from atk.nn import AlignedContrastiveLoss

__all__ = ["AlignedLoss", "joined"]


def joined(pooled: Tensor, sequence: Tensor) -> Tensor:
    """`[N, 1 + L, D]`: global vectors `[N, D]` as row 0, then frames or tokens `[N, L, D]`."""
    return torch.cat([pooled[:, None], sequence], 1)


class AlignedLoss(nn.Module):
    """`AlignedContrastiveLoss` of `joined` embeddings: `GradCache(models, chunk_sizes, loss_fn=AlignedLoss())`.

    Args:
        criterion: the loss; a learned temperature gets its exact gradient. None: `AlignedContrastiveLoss()`.
    """

    def __init__(self, criterion: AlignedContrastiveLoss | None = None):
        super().__init__()
        self.criterion = AlignedContrastiveLoss() if criterion is None else criterion

    def forward(
        self, audio: Tensor, text: Tensor, audio_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            audio, text: `[N, 1 + L_a, D]` and `[N, 1 + L_t, D]` from `joined`.
            audio_mask, text_mask: boolean `[N, L_a]` and `[N, L_t]`, True = valid; None = all valid. Hand them to
                `GradCache` by keyword: `cache(clips, captions, audio_mask=..., text_mask=...)`.

        Raises:
            ValueError, TypeError: as in `AlignedContrastiveLoss`.
        """
        return self.criterion(audio[:, 0], text[:, 0], audio[:, 1:], text[:, 1:], audio_mask, text_mask)
