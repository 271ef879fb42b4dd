"""Loaders combine a dataset, an order, and worker processes. The worker count never changes the batches."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.context import BaseContext
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from atk.data.audio import AudioError, DataWarning
from atk.data.captions import ON_ERROR, Clip
from atk.data.dataset import Batch, EvalDataset, TrainDataset
from atk.data.sampler import SetWeights, TrainBatches, UnlabeledBatches
from atk.data.unlabeled import UnlabeledAudio, UnlabeledDataset
from atk.ops.checks import one_of


class Loader:
    """Batches of a dataset, loaded by worker processes.

    With `on_error="raise"`, a file that cannot be decoded raises AudioError in the process that iterates. With "skip",
    the file is left out of its batch and listed in `Batch.skipped`; a batch can end up empty. The notes of a file are
    issued once, as a `DataWarning`.
    """

    def __init__(self, loader: DataLoader, on_error: str):
        one_of("on_error", on_error, ON_ERROR)
        self.loader = loader
        self.on_error = on_error
        self._noted: set[str] = set()

    @property
    def batches(self) -> TrainBatches | UnlabeledBatches:
        """Order of the batches of a training loader; `TrainBatches` has `steps_per_epoch` and `note`."""
        return cast("TrainBatches | UnlabeledBatches", self.loader.batch_sampler)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            for name, note in batch.notes:
                if name not in self._noted:
                    self._noted.add(name)
                    warnings.warn(f"{name}: {note}", DataWarning, stacklevel=2)
            if batch.skipped and self.on_error == "raise":
                raise AudioError(*batch.skipped[0])
            yield batch


def train_loader(
    clips: Sequence[Clip], *, sample_rate: int, clip_seconds: float, seed: int = 0, **options: Any
) -> Loader:
    """Endless training batches: a random crop of each clip and one of its captions (see `TrainDataset`).

    Args:
        clips: clips from `read_split`.
        sample_rate: sample rate of the waveforms, in Hz; files with other rates are resampled.
        clip_seconds: longest crop; shorter clips are zero-padded, with their length in `Batch.lengths`.
        seed: seed of the order, crops, and captions.
        options: `batch_size` and any other keyword argument of `batches_of`.

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
    sets: SetWeights | None = None,
) -> Loader:
    """Endless training batches from step `start_step` on; batch k depends neither on `start_step` nor on `workers`.

    Args:
        dataset: training dataset.
        batch_size, start_step, bucket, drop_last: as in `TrainBatches`, which defines the order.
        workers: processes that read audio; 0 reads in this process.
        pin_memory: page-lock batches, for copies to a GPU.
        on_error: "skip" leaves out files that cannot be decoded and lists them; "raise" stops at the first one.
        rank, world_size: load only the clips of this rank from every batch.
        sets: as in `TrainBatches`.

    Raises:
        ValueError: an argument is out of range.
    """
    lengths = [min(clip.seconds, dataset.clip_seconds) for clip in dataset.clips]
    batches = TrainBatches(lengths, batch_size, dataset.seed, start_step, bucket, drop_last, rank, world_size, sets)
    return _loader(dataset, on_error, workers, pin_memory, batch_sampler=batches)


def one_pass(dataset: TrainDataset, *, batch_size: int, workers: int = 0, on_error: str = "skip") -> Loader:
    """A single pass over a training dataset: every clip once, in order, with the crops and captions of epoch 0."""
    indices = [(clip, 0) for clip in range(len(dataset))]
    batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
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

    `Batch.clips` are indices in the pool, and captions are "". See `UnlabeledBatches` for the order and
    `UnlabeledDataset` for how unreadable clips are replaced; a batch is incomplete only if too many are unreadable.

    Args:
        pool: unlabeled clips.
        sample_rate: sample rate of the waveforms, in Hz.
        clip_seconds: longest crop; shorter clips are zero-padded.
        batch_size: clips per batch, over all ranks.
        seed: seed of the order, crops, and replacements.
        start_step: first batch to yield.
        workers, pin_memory, on_error, rank, world_size: as in `batches_of`.

    Raises:
        ValueError: an argument is out of range.
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
    chunks: int | None = None,
    stride: float | None = None,
) -> Loader:
    """One pass over the windows of all clips, in order (see `EvalDataset`).

    Args:
        clips: clips from `read_split` or `read_folder`.
        sample_rate: sample rate of the waveforms, in Hz.
        clip_seconds: length of a window; None uses whole clips.
        batch_size: windows per batch.
        workers: processes that read audio; 0 reads in this process. Workers are kept between passes, so that frequent
            validation doesn't restart them.
        pin_memory, on_error: as in `batches_of`.
        chunks: number of overlapping windows of each clip that is longer than one; None = consecutive windows.
        stride: time from one window to the next, in seconds; None = consecutive windows.

    Raises:
        ValueError: an argument is out of range.
    """
    dataset = EvalDataset(clips, sample_rate, clip_seconds, chunks, stride)
    return _loader(dataset, on_error, workers, pin_memory, batch_size=batch_size, persistent_workers=workers > 0)


def _loader(
    dataset: TrainDataset | EvalDataset | UnlabeledDataset,
    on_error: str,
    workers: int,
    pin_memory: bool = False,
    **options: Any,
) -> Loader:
    if workers:
        options |= {"num_workers": workers, "worker_init_fn": _start_worker, "multiprocessing_context": _context()}
    # With a separate generator, loaders don't advance the global random state that dropout uses.
    options |= {"collate_fn": dataset.collate, "pin_memory": pin_memory, "generator": torch.Generator()}
    return Loader(DataLoader(dataset, **options), on_error)


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from atk.data.workers import WorkerContext

    return WorkerContext()


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group, but only the trainer handles it, at the end of its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # torch watches for a new parent ID, but a worker's parent is the fork server, which outlives the trainer.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None  # workers only
    trainer.join()
    os._exit(1)
