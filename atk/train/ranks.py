"""One training run on many ranks, as `torchrun` starts them: who they are, and what they tell one another."""

import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from atk.distributed.collectives import world_size

_GROUP_LOST = ("gloo", "nccl", "by peer", "broken pipe", "timed out", "timeout", "process group")


class RankLost(RuntimeError):  # noqa: N818 (a state of the job, not of this rank)
    """Another rank is gone, or has stopped; the run cannot go on without it."""


def rank() -> int:
    """This process among the ranks; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this is the rank that writes, validates and reports."""
    return rank() == 0


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[None]:
    """Join the process group that `torchrun` describes, where it does, for the time of the context.

    Args:
        device: of this rank; tensors on a GPU travel by NCCL, those on the CPU by gloo.
        timeout: seconds that ranks wait for one another before they give up.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not dist.is_available() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    store, own, ranks = next(dist.rendezvous("env://", timeout=patience))
    # A restarted job meets at the same store, where the addresses of the ranks that died still stand.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=own, world_size=ranks, timeout=patience)
    try:
        yield
        with naming_lost_ranks():
            dist.barrier()  # ranks leave together: the first may still evaluate
        gc.collect()  # DDP must be gone before the group is, not after it at the interpreter's end
    finally:
        dist.destroy_process_group()


@contextmanager
def first_rank_first() -> Iterator[None]:
    """What rank 0 does in here is done before the others do it; they say nothing of it on stderr."""
    if not is_first():
        dist.barrier()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
        return
    yield
    if world_size() > 1:
        dist.barrier()


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turn the network's errors into `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world_size() == 1 or not any(word in text.lower() for word in _GROUP_LOST):
            raise
        reason = "timed out" if "timed out" in text.lower() or "timeout" in text.lower() else "connection closed"
        raise RankLost(f"rank {rank()} lost the others ({reason}); the rank that ended first says why") from error


def most(*numbers: int) -> list[int]:
    """The largest of each number over all ranks."""
    if world_size() == 1:
        return list(numbers)
    value = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value.tolist()


def together(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; where one cannot be had, all ranks stop: that rank with its error, the others with `RankLost`."""
    while True:
        batch = error = None
        try:
            batch = next(batches)
        except Exception as raised:
            error = raised
        failed = most(rank() + 1 if error is not None else 0)[0]
        if error is not None:
            raise error
        if failed:
            raise RankLost(f"rank {rank()} stops: rank {failed - 1} could not go on, see what it says")
        yield batch


def merged(found: dict[str, str]) -> dict[str, str]:
    """The entries of all ranks."""
    if world_size() == 1:
        return found
    everyone: list = [None] * world_size()
    dist.all_gather_object(everyone, found)
    return {name: value for part in everyone for name, value in part.items()}
