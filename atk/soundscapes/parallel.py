"""Map a function over items with several processes, in order."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

_ITEMS_PER_PROCESS = 100  # below this, starting another process takes longer than it saves

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_work: dict[str, Callable[[Any], Any]] = {}  # the function of a worker, sent once and not with every item


def map_in_order(
    items: Sequence[_Item], function: Callable[[_Item], _Result], processes: int | None
) -> Generator[_Result, None, None]:
    """Yield `function(item)` for each item in order, with several processes if there are enough items.

    Args:
        items: what to map.
        function: a function that can be pickled; it runs with a single thread of PyTorch, so that the result depends on
            neither the number of processes nor that of threads.
        processes: maximum number of processes; None uses one per CPU.
    """
    count = max(1, min(processes or _cpus(), -(-len(items) // _ITEMS_PER_PROCESS)))
    if count == 1:
        with _one_thread():
            yield from map(function, items)
        return
    # Forking avoids a second import. The children use NumPy and one thread of PyTorch, and need no inherited threads.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(function,)) as pool:
        try:
            yield from pool.map(_call, items, chunksize=16)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start(function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles Ctrl-C; it stops the children
    torch.set_num_threads(1)
    _work["function"] = function


def _call(item: Any) -> Any:
    return _work["function"](item)


@contextmanager
def _one_thread() -> Generator[None, None, None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
