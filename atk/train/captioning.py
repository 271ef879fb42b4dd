"""What methods that learn to caption share: recordings to mix in, cross-entropy, validation, and evaluation."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atk.data import (
    Clip,
    MixConfig,
    MixtureBatch,
    MixtureDataset,
    ReferencePool,
    describe_skipped,
    one_pass,
    read_references,
)
from atk.data.captions import OnError
from atk.distributed import total
from atk.eval.captioning import CaptionSplit, evaluate_captions, write_captions
from atk.eval.embed import device_of, evaluating
from atk.models.caption_model import CaptionModel


def reference_pool(mix: MixConfig, clips: Sequence[Clip], on_error: OnError) -> ReferencePool:
    """The recordings to mix into training clips: those that `mix` names, or the clips themselves."""
    if mix.references is None:
        return ReferencePool(list(clips), [""] * len(clips), [])
    pool = read_references(mix.references, on_error, held_out=mix.test_folds)
    if pool.skipped:
        print(f"references: {describe_skipped(pool.skipped)}", file=sys.stderr)
    return pool


def cross_entropy(model: CaptionModel, batch: MixtureBatch) -> tuple[Tensor, int]:
    """The mean cross-entropy over the tokens of the captions of a batch, and the number of tokens."""
    tokens = model.decoder.tokenize(batch.captions)
    loss = model.cross_entropy(batch.audio, batch.lengths, tokens, batch.references, batch.reference_lengths)
    return loss, int(tokens["attention_mask"].sum())


def share_of_tokens(loss: Tensor, tokens: Tensor) -> Tensor:
    """This rank's share of the mean over the tokens of all ranks.

    Args:
        loss: mean over the tokens of each part of a batch `[P]`.
        tokens: the number of tokens in each part `[P]`.
    """
    return (loss * tokens).sum() / total(tokens.sum())


def log_likelihood(model: CaptionModel, dataset: MixtureDataset, *, name: str, **reading: Any) -> float:
    """Mean log-likelihood per token of one caption for each clip of a dataset.

    Args:
        model: the model.
        dataset: the clips; those without a reference are captioned alone.
        name: the split in an error message.
        reading: `batch_size`, `workers`, and `on_error` of `atk.data.one_pass`.

    Raises:
        ValueError: no clip can be decoded.
        AudioError: with `on_error="raise"`, a clip cannot be decoded.
    """
    device = device_of(model)
    loss_sum = 0.0
    tokens = 0
    with torch.no_grad(), evaluating(model):
        for batch in one_pass(dataset, **reading):
            assert isinstance(batch, MixtureBatch)
            if batch.files:
                loss, count = cross_entropy(model, batch.to(device))
                loss_sum += float(loss) * count
                tokens += count
    if not tokens:
        raise ValueError(f"{name}: none of the {len(dataset)} validation clips can be decoded")
    return -loss_sum / tokens


def evaluate_captioning(
    model: CaptionModel, split: CaptionSplit, split_name: str | None, beams: int, out: str
) -> dict[str, Any]:
    """Captioning metrics of a model on a split; the captions go to `captions_<split_name>.csv` in `out`."""
    result, captions = evaluate_captions(model, split, beams, progress=f"evaluate {split_name}")
    write_captions(Path(out) / f"captions_{split_name}.csv", captions)
    return result
