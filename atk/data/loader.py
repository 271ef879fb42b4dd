"""Loaders: data set, order and worker processes put together. The number of workers never changes the batches."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import BaseContext

import torch
from torch.utils.data import DataLoader

from atk.checks import one_of
from atk.data.audio import AudioError
from atk.data.captions import ON_ERROR, Clip
from atk.data.dataset import Batch, EvalDataset, TrainDataset
from atk.data.sampler import TrainBatches
from atk.data.unlabeled import UnlabeledAudio, UnlabeledBatches, UnlabeledDataset


class Loader:
    """Batches of a data set, read by worker processes.

    With `on_error="raise"` a file that cannot be decoded raises AudioError here, in the caller's process; with "skip"
    it is left out of its batch and named in `Batch.skipped`. A batch can end up empty.
    """

    def __init__(self, loader: DataLoader, on_error: str):
        one_of("on_error", on_error, ON_ERROR)
        self.loader, self.on_error = loader, on_error

    @property
    def batches(self) -> TrainBatches | UnlabeledBatches:
        """The order of training, with `steps_per_epoch` and `note`."""
        return self.loader.batch_sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if batch.skipped and self.on_error == "raise":
                raise AudioError(*batch.skipped[0])
            yield batch


def train_loader(clips: Sequence[Clip], *, sample_rate: int, clip_seconds: float, seed: int = 0, **options) -> Loader:
    """Training batches of `TrainDataset(clips, sample_rate, clip_seconds, seed)`; options as for `batches_of`."""
    return batches_of(TrainDataset(clips, sample_rate, clip_seconds, seed), **options)


def batches_of(
    dataset: TrainDataset,
    *,
    batch_size: int,
    start_step: int = 0,
    bucket: bool = False,
    drop_last: bool = True,
    workers: int = 0,
    pin_memory: bool = False,
    on_error: str = "skip",
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Endless training batches from step `start_step` on; batch k is a function of the data set, its seed and k alone.

    See `TrainBatches` for the order; `workers` is the number of processes that read audio (0 = this one), `pin_memory`
    page-locks batches for copies to a GPU. With `world_size` above 1 these are the shares of one `rank`.
    """
    lengths = [min(clip.seconds, dataset.clip_seconds) for clip in dataset.clips]
    batches = TrainBatches(lengths, batch_size, dataset.seed, start_step, bucket, drop_last, rank, world_size)
    options = _options(workers, pin_memory, dataset.collate)
    return Loader(DataLoader(dataset, batch_sampler=batches, **options), on_error)


def one_pass(dataset: TrainDataset, *, batch_size: int, workers: int = 0, on_error: str = "skip") -> Loader:
    """Every clip of a training data set once, in order, as drawn for epoch 0."""
    keys = [(index, 0) for index in range(len(dataset))]
    batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
    options = _options(workers, False, dataset.collate)
    return Loader(DataLoader(dataset, batch_sampler=batches, **options), on_error)


def unlabeled_loader(
    pool: UnlabeledAudio,
    *,
    sample_rate: int,
    clip_seconds: float,
    batch_size: int,
    seed: int = 0,
    start_step: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
    on_error: str = "skip",
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Endless full batches of random crops from step `start_step` on; batch k is a function of (seed, k) alone.

    `Batch.clips` are numbers in the pool, captions are "". See `UnlabeledBatches` for the order and `UnlabeledDataset`
    for the clips that take the place of unreadable ones; a batch lacks clips only where too many are unreadable.
    """
    dataset = UnlabeledDataset(pool, sample_rate, clip_seconds, seed)
    batches = UnlabeledBatches(len(pool), batch_size, seed, start_step, rank, world_size)
    options = _options(workers, pin_memory, dataset.collate)
    return Loader(DataLoader(dataset, batch_sampler=batches, **options), on_error)


def eval_loader(
    clips: Sequence[Clip],
    *,
    sample_rate: int,
    clip_seconds: float | None,
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
    on_error: str = "skip",
) -> Loader:
    """One pass over the windows of all clips in order (see `EvalDataset`); `clip_seconds=None` takes clips whole.

    Workers stay between passes, so that frequent validation does not pay for their start.
    """
    dataset = EvalDataset(clips, sample_rate, clip_seconds)
    options = _options(workers, pin_memory, dataset.collate)
    return Loader(DataLoader(dataset, batch_size, persistent_workers=workers > 0, **options), on_error)


def _options(workers: int, pin_memory: bool, collate_fn: Callable) -> dict:
    # A generator of their own keeps loaders from drawing on the random state that dropout uses.
    options = {
        "collate_fn": collate_fn,
        "pin_memory": pin_memory,
        "num_workers": workers,
        "generator": torch.Generator(),
    }
    if workers:
        options |= {"worker_init_fn": _start_worker, "multiprocessing_context": _context()}
    return options


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from atk.data.workers import WorkerContext

    return WorkerContext()


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group: only the trainer answers it, at the end of its step. SIGTERM: `Worker`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # torch watches for a new parent id, but a worker's parent is the fork server, which lives as long as its workers.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
