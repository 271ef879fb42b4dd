"""Training on several ranks, as started by `torchrun`: the process group, and what ranks exchange besides gradients."""

import contextlib
import gc
import os
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from atk.data.headers import collecting, taking_from
from atk.device import launcher_integer
from atk.distributed.collectives import world_size

_GROUP_LOST = ("gloo", "nccl", "by peer", "broken pipe", "timed out", "timeout", "process group")
_Batch = TypeVar("_Batch")


class RankLost(RuntimeError):  # noqa: N818 (a state of the job, not an error of this rank)
    """Another rank ended or stopped; the run cannot continue without it."""


def rank() -> int:
    """The rank of this process; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this is rank 0, which writes, validates, and reports."""
    return rank() == 0


@contextmanager
def process_group(device: torch.device, timeout: float) -> Generator[None, None, None]:
    """A context with the process group that `torchrun` describes; does nothing for a single process.

    Args:
        device: device of this rank. GPU tensors are sent by NCCL, CPU tensors by gloo.
        timeout: seconds that a rank waits for the others before it fails.

    Raises:
        ValueError: an environment variable of the launcher is missing or not an integer.
    """
    if launcher_integer("WORLD_SIZE", 1) <= 1 or not dist.is_available() or dist.is_initialized():
        yield
        return
    for variable in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(variable):
            raise ValueError(f"WORLD_SIZE is set, but {variable} is not; start several ranks with torchrun")
    for variable in ("RANK", "MASTER_PORT"):
        launcher_integer(variable, 0)  # raises an error for anything else
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = timedelta(seconds=timeout)
    store, this_rank, ranks = next(dist.rendezvous("env://", timeout=limit))
    # A restarted job uses the same store, which still holds the addresses of the ranks that died.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=this_rank, world_size=ranks, timeout=limit)
    try:
        yield
        with naming_lost_ranks():
            dist.barrier()  # the first rank may still be evaluating
    except BaseException as error:
        _clear_frames(error)  # the frames hold references to DDP
        raise
    finally:
        gc.collect()  # if DDP outlives the group, its destructor can wait forever for a thread of the group
        dist.destroy_process_group()


def _clear_frames(error: BaseException | None) -> None:
    """Clear the local variables in the tracebacks of the error and of everything that caused it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextmanager
def first_rank_first() -> Generator[None, None, None]:
    """A context that rank 0 completes before the others enter it; on the others, stderr is discarded.

    The others get the headers of audio files and the indices of shards and tables from rank 0, so that all ranks have
    the same clips.
    """
    if world_size() == 1:
        yield
        return
    if is_first():
        with collecting() as headers:
            yield
        dist.broadcast_object_list([headers])
        return
    received: list[Any] = [None]
    dist.broadcast_object_list(received)
    with open(os.devnull, "w") as devnull, contextlib.redirect_stderr(devnull), taking_from(received[0]):  # noqa: PTH123 (a device)
        yield


@contextmanager
def naming_lost_ranks() -> Generator[None, None, None]:
    """A context that turns network errors into `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world_size() == 1 or not any(word in text.lower() for word in _GROUP_LOST):
            raise
        reason = "timed out" if "timed out" in text.lower() or "timeout" in text.lower() else "connection closed"
        raise RankLost(
            f"rank {rank()} lost contact with the others ({reason}); see the error of the rank that ended first"
        ) from error


def all_reduce_max(*values: int) -> list[int]:
    """The maximum of each value over all ranks."""
    if world_size() == 1:
        return list(values)
    maxima = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    return maxima.tolist()


def lockstep_batches(batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """Yield the batches of this rank in lockstep with the other ranks.

    If a rank fails to get a batch, all of them stop: that rank with its error, the others with `RankLost`.
    """
    while True:
        batch, error = _next_or_error(batches)
        failed = all_reduce_max(rank() + 1 if error is not None else 0)[0]
        if error is not None:
            raise error
        if failed:
            raise RankLost(f"rank {rank()} stops because rank {failed - 1} failed; see its error")
        yield batch


def _next_or_error(batches: Iterator[_Batch]) -> tuple[Any, Exception | None]:
    try:
        return next(batches), None
    except Exception as error:  # noqa: BLE001 (raised again once all ranks know)
        return None, error


def merge_dicts(entries: dict[str, str]) -> dict[str, str]:
    """The union of the dictionaries of all ranks; on equal keys, the last rank wins."""
    if world_size() == 1:
        return entries
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, entries)
    return {name: value for part in parts for name, value in part.items()}
