"""What methods that learn to caption share: recordings to mix in, cross-entropy, validation, and evaluation."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
from atk.eval.caption_listing import write_captions
from atk.eval.captioning import CaptionSplit, evaluate_captions
from atk.eval.embed import device_of, evaluating
from atk.models.caption_model import CaptionModel
from atk.models.generation import GenerationConfig
from atk.ops.checks import one_of
from atk.train.config import TrainConfig, fields_at_least


@dataclass(frozen=True)
class CaptioningConfig(TrainConfig):
    """Settings of the methods that learn to caption.

    Args:
        beams: width of the beam search that writes captions, `num_beams` in transformers.
        generation: further settings of that search.
        epoch_over: "clips", with one caption of each, drawn at random; or "captions", so that a clip with five
            captions occurs five times in an epoch.
        mix: what is mixed into the clips that are captioned, and which references are subtracted.
    """

    beams: int = 4
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    epoch_over: Literal["clips", "captions"] = "clips"
    mix: MixConfig = field(default_factory=MixConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("epoch_over", self.epoch_over, ("clips", "captions"))
        fields_at_least(self, 1, "beams")

    @property
    def passes_over_captions(self) -> bool:
        """As in `TrainConfig`."""
        return self.epoch_over == "captions"


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
    loss = model.cross_entropy(
        batch.audio, batch.lengths, tokens, batch.references, batch.reference_lengths, batch.common
    )
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
    model: CaptionModel, split: CaptionSplit, split_name: str | None, config: CaptioningConfig
) -> dict[str, Any]:
    """Captioning metrics of a model on a split; the captions go to `captions_<split_name>.csv` in the run folder."""
    result, captions = evaluate_captions(
        model, split, config.beams, f"evaluate {split_name}", generation=config.generation
    )
    write_captions(Path(config.out) / f"captions_{split_name}.csv", captions)
    return result
