"""Loaders: data set, order and worker processes put together. The number of workers never changes the batches."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.context import BaseContext

import torch
from torch.utils.data import DataLoader, Dataset

from atk.data.audio import AudioError
from atk.data.captions import ON_ERROR, Clip
from atk.data.dataset import Batch, EvalDataset, TrainDataset
from atk.data.sampler import TrainBatches
from atk.data.unlabeled import UnlabeledAudio, UnlabeledBatches, UnlabeledDataset
from atk.ops.checks import one_of


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
        """The order of training; that of captioned clips has `steps_per_epoch` and `note`."""
        return self.loader.batch_sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if batch.skipped and self.on_error == "raise":
                raise AudioError(*batch.skipped[0])
            yield batch


def train_loader(clips: Sequence[Clip], *, sample_rate: int, clip_seconds: float, seed: int = 0, **options) -> Loader:
    """Endless training batches: a random crop of each clip and one of its captions (see `TrainDataset`).

    Args:
        clips: `read_split(...).clips`.
        sample_rate: of the waveforms, in Hz; files of other rates are resampled.
        clip_seconds: longest crop; shorter clips are zero-padded, and `Batch.lengths` tells.
        seed: of order, crops and captions.
        options: `batch_size` and whatever else `batches_of` takes.

    Raises:
        ValueError: an argument is out of range.
    """
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

    Args:
        dataset: the clips.
        batch_size, start_step, bucket, drop_last: as in `TrainBatches`, which says what the order is.
        workers: processes that read audio; 0 = this one.
        pin_memory: page-lock batches, for copies to a GPU.
        on_error: "skip" leaves out files that cannot be decoded and names them, "raise" stops at the first.
        rank, world_size: give the share of one rank of every batch.

    Raises:
        ValueError: an argument is out of range.
    """
    lengths = [min(clip.seconds, dataset.clip_seconds) for clip in dataset.clips]
    batches = TrainBatches(lengths, batch_size, dataset.seed, start_step, bucket, drop_last, rank, world_size)
    return _loader(dataset, on_error, workers, pin_memory, batch_sampler=batches)


def one_pass(dataset: TrainDataset, *, batch_size: int, workers: int = 0, on_error: str = "skip") -> Loader:
    """Every clip of a training data set once, in order, as drawn for epoch 0."""
    keys = [(index, 0) for index in range(len(dataset))]
    batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
    return _loader(dataset, on_error, workers, batch_sampler=batches)


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
    return _loader(dataset, on_error, workers, pin_memory, batch_sampler=batches)


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
    """One pass over the windows of all clips, in order (see `EvalDataset`).

    Args:
        clips: of `read_split` or `read_folder`.
        sample_rate: of the waveforms, in Hz.
        clip_seconds: length of a window; None takes clips whole.
        batch_size: windows in a batch.
        workers: processes that read audio; 0 = this one. They stay between passes, so that frequent validation does
            not pay for their start.
        pin_memory, on_error: as in `batches_of`.

    Raises:
        ValueError: an argument is out of range.
    """
    dataset = EvalDataset(clips, sample_rate, clip_seconds)
    return _loader(dataset, on_error, workers, pin_memory, batch_size=batch_size, persistent_workers=workers > 0)


def _loader(dataset: Dataset, on_error: str, workers: int, pin_memory: bool = False, **options) -> Loader:
    if workers:
        options |= {"num_workers": workers, "worker_init_fn": _start_worker, "multiprocessing_context": _context()}
    # A generator of their own keeps loaders from drawing on the random state that dropout uses.
    options |= {"collate_fn": dataset.collate, "pin_memory": pin_memory, "generator": torch.Generator()}
    return Loader(DataLoader(dataset, **options), on_error)


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
