"""Timed captions in training: where they come from, and as tensors that can be cut into parts and joined again."""

import hashlib
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from atk.data import Clip, DataSets, describe_skipped
from atk.data.dataset import Batch
from atk.data.timed import timed_captions
from atk.data.timed_texts import Span, TimedSource, TimedTexts
from atk.nn.timed import TimedTokens
from atk.train.grad_cache import Embeddings

_PREFIX = "timed "


def timed_source(data: DataSets, clips: Sequence[Clip], limit: int) -> TimedSource:
    """The timed captions of the training clips; says on stderr how many there are and what was left out.

    Args:
        data: the data sets.
        clips: the training clips.
        limit: most timed captions of a clip in one step.

    Raises:
        ValueError: there are none, or an events.csv is not well-formed.
    """
    captions, left_out = timed_captions(data, {clip.file_name for clip in clips})
    if not captions:
        names = ", ".join(str(data_set.folder / "events.csv") for data_set in data.sets)
        raise ValueError(
            f"loss.timed_weight, loss.frame_weight: no training clip has a timed caption; looked for them in {names}"
        )
    total = sum(map(len, captions.values()))
    note = f"train: {total} timed captions of {len(captions)} of {len(clips)} clips"
    print(f"{note}; {describe_skipped(left_out)}" if left_out else note, file=sys.stderr)
    return TimedSource(captions, limit)


def timed_embeddings(tokens: Tensor, token_mask: Tensor, batch: Batch, frame_seconds: float) -> Embeddings:
    """The timed captions of a batch, for `Embeddings`.

    Args:
        tokens: `[M, L_t, D]` of the M timed captions, in the order of the clips.
        token_mask: `[M, L_t]`.
        batch: the batch.
        frame_seconds: duration of a frame.
    """
    clips = batch.timed or [TimedTexts()] * len(batch)
    captions = [caption for timed in clips for caption in timed.captions]
    values = {
        "tokens": tokens,
        "token_mask": token_mask,
        "ids": torch.tensor([_text_id(caption.text) for caption in captions], dtype=torch.int64),
        "counts": torch.tensor([len(timed.captions) for timed in clips], dtype=torch.int64),
        "spans": _padded([[_frames(span, frame_seconds) for span in caption.spans] for caption in captions], 2),
        "left_out": _padded([[_text_id(text) for text in timed.left_out] for timed in clips]),
    }
    return {_PREFIX + name: value.to(tokens.device, non_blocking=True) for name, value in values.items()}


def timed_tokens(embeddings: Embeddings) -> TimedTokens:
    """Take what `timed_embeddings` returned out of the embeddings of a batch."""
    return TimedTokens(**{name: embeddings.pop(_PREFIX + name) for name in TimedTokens._fields})


def _text_id(text: str) -> int:
    """A number above 0 that is the same for equal texts, ignoring case, in every process."""
    digest = hashlib.blake2b(text.lower().encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) | 1


def _frames(span: Span, frame_seconds: float) -> list[int]:
    """The first frame whose center is in a span, and the one after the last; at least the frame of its middle."""
    first, end = (math.ceil(time / frame_seconds - 0.5) for time in span)
    if first < end:
        return [first, end]
    middle = int((span[0] + span[1]) / 2 / frame_seconds)
    return [middle, middle + 1]


def _padded(rows: Sequence[Sequence[int | list[int]]], *shape: int) -> Tensor:
    """int64 `[rows, longest, *shape]` of rows of different lengths, padded with 0."""
    padded = torch.zeros(len(rows), max([1, *map(len, rows)]), *shape, dtype=torch.int64)
    for row, values in zip(padded, rows, strict=True):
        if values:
            row[: len(values)] = torch.tensor(values)
    return padded
