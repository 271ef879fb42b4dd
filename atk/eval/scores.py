"""The similarity of clips and captions: of their global vectors, of their frames and tokens, or both."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from atk.eval.embed import CaptionEmbedding, ClipEmbedding
from atk.ops.checks import one_of
from atk.ops.max_mean import max_mean_similarity_varlen

Score = Literal["global", "max_mean", "both"]
SCORES = get_args(Score)


def similarities(clips: Sequence[ClipEmbedding], captions: Sequence[CaptionEmbedding], score: Score) -> Tensor:
    """Similarity of every clip and every caption.

    Args:
        clips: N_a embedded clips; with their frames, unless `score` is "global".
        captions: N_t embedded captions.
        score: "global", the cosine of the global vectors; "max_mean", the frame-token similarity (3.6), 0 for a caption
            without tokens; or "both", the mean of the two.

    Returns:
        `[N_a, N_t]`, float32, on the CPU.

    Raises:
        ValueError: `score` is none of these.
    """
    one_of("score", score, SCORES)
    scores = []
    if score != "max_mean":
        scores.append(torch.stack([clip.pooled for clip in clips]) @ torch.stack([text.pooled for text in captions]).T)
    if score != "global":
        frames, cu_frames = _packed([clip.frames for clip in clips])
        tokens, cu_tokens = _packed([text.tokens for text in captions])
        scores.append(max_mean_similarity_varlen(frames, tokens, cu_frames, cu_tokens))
    return torch.stack(scores).mean(0)


def _packed(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences `[L, D]` one after the other, and where each of them ends."""
    lengths = torch.tensor([0, *(len(sequence) for sequence in sequences)])
    return torch.cat(list(sequences)), lengths.cumsum(0).int()
