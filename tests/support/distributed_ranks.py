"""Runs every case on K processes joined by gloo, and collects the errors."""

import importlib
import json
import os
import traceback
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from support.distributed_cases import CASES as LOSS_CASES
from support.distributed_sigmoid_cases import CASES as SIGMOID_CASES
from support.distributed_triplet_cases import CASES as TRIPLET_CASES
from support.distributed_wire_cases import CASES as WIRE_CASES
from support.processes import start_ranks

CASES = LOSS_CASES | SIGMOID_CASES | TRIPLET_CASES | WIRE_CASES
TIMEOUT = timedelta(seconds=60)  # of a collective that some rank does not join


@cache
def failures(size: int, cases: str = "support.distributed_ranks:CASES") -> dict[str, str]:
    """The error messages of each of `cases` on `size` ranks; "" for a case that passed on all."""
    with TemporaryDirectory() as folder:
        job = start_ranks(size, "support.distributed_ranks:run_cases", cases, size, folder)
        assert job.wait(600) == 0, job.output
        errors = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]
    return {
        name: "".join(f"rank {rank}: {of_rank[name]}\n" for rank, of_rank in enumerate(errors) if of_rank[name])
        for name in errors[0]
    }


def run_cases(cases: str, size: int, folder: str) -> None:
    """Run all cases on this rank and write their errors to `folder`."""
    module, _, name = cases.partition(":")
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # also fills uninitialized memory with NaN
    errors = {}
    for index, (title, case) in enumerate(getattr(importlib.import_module(module), name).items()):
        store = f"file://{folder}/{index}"  # a new group for every case: an error does not break the next case
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=TIMEOUT)
        try:
            dist.barrier()  # a case without collectives would leave the group while other ranks still connect
            torch.manual_seed(0)
            errors[title] = case(rank, size) or ""
        except Exception:  # noqa: BLE001 (the test reports it)
            errors[title] = traceback.format_exc()
        finally:
            dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(errors))
