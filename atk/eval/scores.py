"""The similarity of clips and captions: of their global vectors, of their frames and tokens, or both."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from atk.eval.embed import CaptionEmbedding, ClipEmbedding
from atk.ops.checks import one_of
from atk.ops.max_mean import max_mean_similarity_varlen

Score = Literal["global", "max_mean", "both"]
SCORES = get_args(Score)
_FRAMES = 1 << 16  # to compare at a time


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
        tokens, cu_tokens = _packed([text.tokens for text in captions])
        blocks = []
        for block in _blocks([clip.frames for clip in clips]):
            frames, cu_frames = _packed(block)
            blocks.append(max_mean_similarity_varlen(frames, tokens, cu_frames, cu_tokens))
        scores.append(torch.cat(blocks))
    return torch.stack(scores).mean(0)


def _blocks(sequences: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Sequences in blocks of at most `_FRAMES` rows or one sequence, which bounds the memory."""
    block: list[Tensor] = []
    rows = 0
    for sequence in sequences:
        if block and rows + len(sequence) > _FRAMES:
            yield block
            block, rows = [], 0
        block.append(sequence)
        rows += len(sequence)
    yield block


def _packed(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences `[L, D]` one after the other, and where each of them ends."""
    lengths = torch.tensor([0, *(len(sequence) for sequence in sequences)])
    return torch.cat(list(sequences)), lengths.cumsum(0).int()
