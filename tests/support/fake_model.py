"""A model with known embeddings: the level of a frame encodes one of three sounds, and words name them."""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from atk.models.clap import AudioEmbedding, TextEmbedding

RATE = 8000
FRAME = 800  # samples per frame: 0.1 s
SOUNDS = ("dog", "bell", "engine")
OTHER = len(SOUNDS)  # axis of silence and of all other words


def sound(*names):
    """A waveform with 0.1 s per name, where "" is silence."""
    levels = [0.0 if not name else (SOUNDS.index(name) + 1) / 4 for name in names]
    return np.repeat(np.array(levels, dtype=np.float32), FRAME)


class FakeModel(nn.Module):
    """Frames and tokens are unit vectors along the axis of their sound.

    Pooled vectors are their means, in which silence and other words have a weight of 0.1. Words are split into tokens
    of three letters, between two special tokens.
    """

    sample_rate = RATE
    frame_seconds = FRAME / RATE

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.train()

    def embed_audio(self, audio, lengths):
        assert not self.training and not torch.is_grad_enabled()
        self.calls += 1
        frames = -(-lengths // FRAME)
        audio = F.pad(audio, (0, -audio.shape[1] % FRAME))
        level = (audio.reshape(len(audio), -1, FRAME).amax(2) * 4).round().long()
        axis = torch.where(level == 0, OTHER, level - 1)
        mask = torch.arange(axis.shape[1]) < frames[:, None]
        vectors = F.one_hot(axis, OTHER + 1).float()
        vectors[~mask] = float("nan")
        return AudioEmbedding(_pool(vectors, mask), vectors, mask)

    def embed_text(self, captions):
        assert not self.training and not torch.is_grad_enabled()
        rows = [
            [
                (m.start() + i, m.start() + min(i + 3, len(m[0])), m[0].lower())
                for m in re.finditer(r"\w+", caption)
                for i in range(0, len(m[0]), 3)
            ]
            for caption in captions
        ]
        length = max(map(len, rows)) + 2
        vectors = torch.full((len(rows), length, OTHER + 1), float("nan"))
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        offsets = torch.zeros(len(rows), length, 2, dtype=torch.long)
        for n, row in enumerate(rows):
            for t, (start, end, word) in enumerate(row, 1):
                axis = SOUNDS.index(word) if word in SOUNDS else OTHER
                vectors[n, t] = F.one_hot(torch.tensor(axis), OTHER + 1).float()
                mask[n, t] = True
                offsets[n, t] = torch.tensor([start, end])
        return TextEmbedding(_pool(vectors, mask), vectors, mask, offsets)

    def log_mel(self, audio, lengths):
        return audio.unfold(1, 100, 100).abs()[..., :16]


def _pool(vectors, mask):
    weight = torch.tensor([1.0] * OTHER + [0.1])
    return F.normalize((vectors * weight).masked_fill(~mask[..., None], 0).sum(1), dim=-1)
