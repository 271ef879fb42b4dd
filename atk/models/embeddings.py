"""Clips and captions in the space that a contrastive model gives them."""

from typing import NamedTuple

from torch import Tensor


class AudioEmbedding(NamedTuple):
    """Clips in the shared space: `pooled [N, D]`, `frames [N, L_a, D]`, and boolean `mask [N, L_a]`."""

    pooled: Tensor
    frames: Tensor
    mask: Tensor


class TextEmbedding(NamedTuple):
    """Captions in the shared space: `pooled [N, D]`, `tokens [N, L_t, D]`, boolean `mask [N, L_t]`, which excludes
    special tokens, and the character span of each token, `offsets [N, L_t, 2]`."""

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    offsets: Tensor
