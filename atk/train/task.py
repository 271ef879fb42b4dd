"""A training method as the trainer sees it, and what methods that learn from captioned clips share."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from atk.data import SetWeights, TrainBatches, TrainDataset, batches_of, describe_skipped, open_data
from atk.data.captions import OnError
from atk.device import default_workers
from atk.distributed.collectives import world_size
from atk.models.captioner import Captioner
from atk.models.clap import CLAP
from atk.ops.backend import choose
from atk.train import ranks
from atk.train.config import TrainConfig
from atk.train.grad_cache import CachedTask


class Task(CachedTask, Protocol):
    """A training method: a loss that is a function of embeddings, which can be computed in parts.

    `encode` and `loss_of` run under autocast. `loss_of` returns this rank's share of the loss and of its terms; the
    shares of all ranks add up to the whole. A batch has `files` (the names of its files), `sizes` (the number of clips
    of each data set in it), and `split` (into parts).
    """

    method: str
    config: Any  # the configuration of the method
    monitor: str  # the validation metric that selects the best checkpoint; higher is better
    held_out: str | None  # the split that is evaluated after training
    steps_per_epoch: int
    skipped: dict[str, str]  # file -> why it could not be used

    @property
    def backend(self) -> str:
        """The backend of the fused op."""
        ...

    @property
    def validation(self) -> object | None:
        """The validation data; None if there is none."""
        ...

    def batches(self, start_step: int, /) -> Iterator[Any]:
        """The batches from step `start_step` on, a pure function of seed and step."""
        ...

    def readings(self) -> dict[str, Tensor]:
        """Values to log, the same on every rank."""
        ...

    def idle(self) -> Iterable[nn.Module]:
        """Modules that the loss at this step does not use; their weights stay as they are."""
        ...

    def validate(self) -> dict[str, float]:
        """Validation metrics; raises ValueError if no file could be read."""
        ...

    def evaluate(self, checkpoint: Path, /) -> dict[str, Any]:
        """Metrics of a saved model on the held-out split, for summary.json."""
        ...


class ReadingOptions(TypedDict):
    """How a split to validate or evaluate on is read."""

    sample_rate: int
    clip_seconds: float
    batch_size: int
    workers: int
    on_error: OnError


class PassOptions(TypedDict):
    """How one pass over the clips of a split is loaded."""

    batch_size: int
    workers: int
    on_error: OnError


class LoadingOptions(TypedDict):
    """How the training batches of any data set are loaded."""

    start_step: int
    workers: int
    pin_memory: bool
    on_error: OnError
    rank: int
    world_size: int


ConfigT = TypeVar("ConfigT", bound=TrainConfig)
ModelT = TypeVar("ModelT", bound=CLAP | Captioner)


class CaptionedTask(Generic[ConfigT, ModelT]):
    """Batches of the captioned clips in `config.data`; subclasses create `model` and `dataset` from them.

    Args:
        config: the run.
        device: device to train on.

    Raises:
        ValueError, FileNotFoundError, AudioError: as for `atk.data.read_data`.
        BackendError: the backend cannot run here.
    """

    op: str  # the op whose backend `config.backend` chooses
    model: ModelT
    dataset: TrainDataset

    def __init__(self, config: ConfigT, device: torch.device):
        self.config = config
        self.device = device
        _ = self.backend  # raises an error now if it cannot run
        self.workers = default_workers(device) if config.workers is None else config.workers
        self.data = open_data(config.data, config.caption_column)
        train = self.data.read("train", config.on_error)
        self.recordings = train.clips
        if config.passes_over_captions:
            train = train.by_caption()
        self.clips = train.clips
        self.sets: SetWeights | None = None
        if config.data_weights is not None:
            self.sets = SetWeights(train.sizes or (len(train.clips),), config.data_weights)
        self.skipped = dict(train.skipped)
        self.captions = [caption for clip in train.clips for caption in clip.captions]
        order = TrainBatches(len(self.clips), config.batch_size, config.seed, sets=self.sets)
        self.steps_per_epoch = order.steps_per_epoch
        self.held_out = next((split for split in ("test", "val") if self.has(split)), None)
        unmeasured = "" if self.held_out else "no val or test split, so nothing is validated or evaluated"
        for note in (describe_skipped(train.skipped), order.note, unmeasured):
            if note:
                print(f"train: {note}", file=sys.stderr)
        torch.manual_seed(config.seed)

    @property
    def backend(self) -> str:
        """The backend of the fused op; `"auto"` may choose another one after a failed self-check."""
        half = self.device.type == "cuda" and self.config.precision != "fp32"
        dtype = torch.bfloat16 if half else torch.float32
        return choose(self.config.backend, self.device, dtype, self.op, check=False)

    def has(self, split: str) -> bool:
        """Whether a data set has a split of this name."""
        return split in self.data.splits()

    def reading_options(self) -> ReadingOptions:
        """How a split to validate or evaluate on is read."""
        return {
            "sample_rate": self.model.sample_rate,
            "clip_seconds": self.config.clip_seconds,
            "batch_size": self.config.batch_size,
            "workers": self.workers,
            "on_error": self.config.on_error,
        }

    def pass_options(self) -> PassOptions:
        """How one pass over the clips of a split is loaded."""
        config = self.config
        return {"batch_size": config.batch_size, "workers": self.workers, "on_error": config.on_error}

    def loading_options(self, start_step: int) -> LoadingOptions:
        """How the training batches of any data set are loaded, from a step on."""
        return {
            "start_step": start_step,
            "workers": self.workers,
            "pin_memory": self.device.type == "cuda",
            "on_error": self.config.on_error,
            "rank": ranks.rank(),
            "world_size": world_size(),
        }

    def batches(self, start_step: int) -> Iterator[Any]:
        """Training batches from a step on. Files that cannot be read are reported once."""
        config = self.config
        loader = batches_of(
            self.dataset,
            batch_size=config.batch_size,
            bucket=config.bucket,
            sets=self.sets,
            **self.loading_options(start_step),
        )
        for batch in loader:
            self.report(batch.skipped)
            yield batch.to(self.device)

    def idle(self) -> Iterable[nn.Module]:
        """No modules: the loss of most methods is the same at every step."""
        return ()

    def silence(self) -> Any:
        """A batch of one silent clip."""
        return self.dataset.collate([self.dataset.silence()]).to(self.device)

    def report(self, skipped: list[tuple[str, str]]) -> None:
        """Print the names of the unreadable files of a batch to stderr, once each."""
        for name, reason in skipped:
            if name not in self.skipped:
                self.skipped[name] = reason
                print(f"skipped {name} ({reason})", file=sys.stderr)
