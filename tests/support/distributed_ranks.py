"""Starts K processes joined by gloo, has them run every case, and collects what failed."""

import json
import os
import sys
import traceback
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing
from support.distributed_cases import CASES as LOSS_CASES
from support.distributed_wire_cases import CASES as WIRE_CASES

CASES = LOSS_CASES | WIRE_CASES
PATIENCE = timedelta(seconds=60)  # after which a collective that some rank does not join fails


@cache
def failures(size: int) -> dict[str, str]:
    """What each of `CASES` said on `size` ranks, "" when it passed on all."""
    with TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (size, folder), size)
        said = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]
    return {name: "".join(f"rank {rank}: {found[name]}\n" for rank, found in enumerate(said) if found[name])
            for name in said[0]}  # fmt: skip


def _work(rank: int, size: int, folder: str) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # and uninitialised memory holds NaN
    said = {}
    for number, (name, case) in enumerate(CASES.items()):
        meeting = f"file://{folder}/{number}"  # a new one for every case: one that fails does not break the next
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=PATIENCE)
        try:
            dist.barrier()  # until all are joined: a case that talks to nobody would leave while others still connect
            torch.manual_seed(0)
            said[name] = case(rank, size) or ""
        except Exception:
            said[name] = traceback.format_exc()
        finally:
            dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(said))
