"""Audio-to-text mappers: pseudo-tokens from audio, in the text encoder's input-embedding space (thesis ch. 5)."""

import torch
from torch import Tensor, nn

from atk.nn.positions import sinusoids
from atk.ops import checks


class MLPMapper(nn.Module):
    """MLP-a2t: one pseudo-token from a clip's global vector, `W_2 relu(drop(W_1 z + b_1)) + b_2` (5.11).

    Args:
        dim: width D of the global vectors.
        token_width: width D_T of the text encoder's input embeddings.
        hidden: width of the hidden layer.
        dropout: dropout rate.
        noise: standard deviation of the Gaussian noise added to the vectors in training (5.13).

    Raises:
        ValueError: `noise` is below 0.
    """

    tokens = 1

    def __init__(self, dim: int, token_width: int, hidden: int = 512, dropout: float = 0.1, noise: float = 1.0):
        super().__init__()
        checks.at_least("noise", noise, 0)
        self.noise = noise
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.Dropout(dropout), nn.ReLU(), nn.Linear(hidden, token_width)
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Pseudo-tokens `[N, 1, D_T]` of global vectors `[N, D]`, not normalized."""
        return self.layers(_add_noise(self, pooled))[:, None]


class TransformerMapper(nn.Module):
    """Transformer-a2t: `Decoder(Q, Z)`, pseudo-tokens from learned queries that attend to a clip's frames (5.12).

    Args:
        dim: width D of the frames.
        token_width: width D_T of the text encoder's input embeddings and of the decoder.
        tokens: number of pseudo-tokens per clip, `L_un` (1, 2, or 4 in the thesis).
        layers: number of decoder layers.
        heads: number of attention heads; must divide `token_width`.
        dropout: dropout rate.
        noise: standard deviation of the Gaussian noise added to the frames in training (5.13).

    Raises:
        ValueError: `noise` is below 0, `tokens` is below 1, or `heads` does not divide `token_width`.
    """

    def __init__(
        self,
        dim: int,
        token_width: int,
        tokens: int = 2,
        layers: int = 2,
        heads: int = 8,
        dropout: float = 0.1,
        noise: float = 1.0,
    ):
        super().__init__()
        checks.at_least("noise", noise, 0)
        checks.at_least("tokens", tokens, 1)
        checks.heads(heads, token_width)
        self.tokens = tokens
        self.noise = noise
        bound = token_width**-0.5  # the initial range of weights in torch.nn.Linear
        self.queries = nn.Parameter(torch.empty(tokens, token_width).uniform_(-bound, bound))
        self.project = nn.Linear(dim, token_width)
        layer = nn.TransformerDecoderLayer(token_width, heads, 4 * token_width, dropout, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.out = nn.Linear(token_width, token_width)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pseudo-tokens `[N, tokens, D_T]` of frames `[N, L_a, D]`, not normalized.

        `mask` is boolean `[N, L_a]`, True = valid, None = all valid. Every clip needs at least one valid frame.
        """
        memory = self.project(_add_noise(self, frames))
        memory = memory + sinusoids(memory.shape[1], memory.shape[2], memory.device).to(memory.dtype)
        queries = self.queries.to(memory.dtype).expand(len(memory), -1, -1)
        padding = None if mask is None else ~mask
        return self.out(self.decoder(queries, memory, memory_key_padding_mask=padding))


def _add_noise(mapper: MLPMapper | TransformerMapper, value: Tensor) -> Tensor:
    """`z + eps` with `eps ~ N(0, sigma^2 I)` in training, else `z` (5.13)."""
    return value + mapper.noise * torch.randn_like(value) if mapper.training and mapper.noise else value
