"""One step of every trainer on K processes with gloo, compared with the same step on one process.

Failures are collected for the test that started the processes.
"""

import contextlib
import gc
import itertools
import json
import os
import traceback
import weakref
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from support.runs import parsed_config
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from atk.cli.main import main
from atk.data import headers, read_split
from atk.train import grad_cache, replicas
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.difference import DifferenceConfig, DifferenceTask
from atk.train.ranks import RankLost, all_reduce_max, first_rank_first, naming_lost_ranks, process_group
from atk.train.semisupervised import SemiSupervisedTask, UnlabeledTask
from atk.train.semisupervised_config import SemiSupervisedConfig
from atk.train.unified import UnifiedTask
from atk.train.unified_config import UnifiedConfig

CPU = torch.device("cpu")
TASKS = {
    "aligned": (AlignedTask, AlignedConfig),
    "difference": (DifferenceTask, DifferenceConfig),
    "semisupervised": (SemiSupervisedTask, SemiSupervisedConfig),
    "unified": (UnifiedTask, UnifiedConfig),
}
TIMEOUT = timedelta(seconds=60)
BATCH = 7  # not a multiple of the number of ranks
CASES = [
    {"shard": shard, "micro_batch": micro_batch, "gather": gather, "unreadable_rank": unreadable_rank}
    for shard, micro_batch, gather, unreadable_rank in (
        (False, None, "all", None),
        (False, 2, "ring", None),
        (False, 2, "all", 0),  # the files of rank 0 cannot be read
        (True, None, "ring", 1),
        (True, 2, "all", None),
    )
]


def run_steps(size: int, folder: str, commands: list[list[str]]) -> None:
    """Run every case of every command on this rank, and write the failures to `folder`."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    failures = []
    cases = CASES if size == 2 else CASES[1:4]
    for index, (command, case) in enumerate(itertools.product(commands, cases)):
        try:
            _step(rank, size, f"file://{folder}/{index}", command, case)
        except Exception:  # noqa: BLE001 (reported by the test)
            failures.append(f"{command[1]} {case}: {traceback.format_exc()}")
        finally:
            if dist.is_initialized():
                gc.collect()  # DDP must be freed before its process group
                dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(failures))


def launch(ranks: int, command: list[str], max_restarts: int) -> None:
    """`torchrun -m atk`, but the ranks are forks of this process, which has imported everything."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, max_restarts=max_restarts, start_method="fork",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="test",
    )  # fmt: skip
    elastic_launch(config, main)(command)


def read_clips(data: str, folder: str) -> None:
    """Read a split as a task does; write its clips and the number of headers that this rank has read."""
    opened = []
    read = headers.audio_info
    headers.audio_info = lambda path: opened.append(path) or read(path)
    with process_group(CPU, 60.0):
        with first_rank_first():
            split = read_split(data, "train")
        lines = [clip.file_name for clip in split.clips], split.skipped, len(opened)
        (Path(folder) / os.environ["RANK"]).write_text(json.dumps(lines))


def lose_a_rank(folder: str) -> None:
    """Fail in a step with DDP; write whether DDP was freed before the group was destroyed."""
    replica: list[weakref.ref] = []
    freed = []
    destroy_group = dist.destroy_process_group

    def destroy():
        freed.append(replica[0]() is None)
        destroy_group()

    dist.destroy_process_group = destroy
    with contextlib.suppress(RankLost), process_group(CPU, 60.0), naming_lost_ranks():
        _fail_with_a_replica(replica)
    (Path(folder) / os.environ["RANK"]).write_text(json.dumps(freed))


def _fail_with_a_replica(references: list[weakref.ref]) -> None:
    replica = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    references.append(weakref.ref(replica))
    replica(torch.ones(2)).sum().backward()
    raise RuntimeError("Connection closed by peer")


def _step(rank: int, size: int, init_method: str, command: list[str], case: dict) -> None:
    if case["shard"] and command[1] == "difference":  # not supported
        return
    reference = _task(command)
    batch = next(reference.batches(0))
    readable = [
        clip for clip in range(BATCH) if case["unreadable_rank"] is None or clip % size != case["unreadable_rank"]
    ]
    expected_loss, _ = grad_cache.backward(reference, [_select(batch, readable)], CPU, contextlib.nullcontext)
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=size, timeout=TIMEOUT)
    task = _task(command)
    _set_gather(task, case["gather"])
    ranks = replicas.replicate_or_shard(task, case["shard"])
    local = next(task.batches(0))
    expected_files = [name for part in _parts_of(batch) for name in part.files[rank::size]]
    assert local.files == expected_files, "a different share"
    parts = local.split(case["micro_batch"]) if case["micro_batch"] else [local]
    if rank == case["unreadable_rank"]:
        parts = []
    parts += [None] * (all_reduce_max(len(parts))[0] - len(parts))
    options = {"encode_last": ranks.encode_last, "scale": size}
    share, _ = grad_cache.backward(task, parts, CPU, contextlib.nullcontext, **options)
    ranks.finish()
    dist.all_reduce(share := share.detach())
    torch.testing.assert_close(share, expected_loss.detach(), rtol=1e-5, atol=1e-7)  # spectrograms are float32
    assert _compared_gradients(task, reference) > 20
    trained = [weight for _, weight in _weights(task) if weight.requires_grad]
    torch.optim.AdamW(ranks.groups(trained, []), foreach=True).step()  # as on a GPU


def _compared_gradients(task, reference) -> int:
    """Check the gradients of all weights; return how many of them are not zero."""
    compared = 0
    for (name, weight), (_, expected) in zip(_weights(task), _weights(reference), strict=True):
        grad = replicas.full_tensor(weight.grad)
        if expected.grad is None:
            assert grad is None or not grad.any(), f"{name} has a gradient"
            continue
        close = torch.allclose(grad, expected.grad, rtol=1e-4, atol=1e-6)
        assert close, f"{name}: off by {(grad - expected.grad).abs().max()} of {expected.grad.abs().max()}"
        compared += bool(expected.grad.any())
    return compared


def _task(command: list[str]):
    make_task, make_config = TASKS[command[1]]
    values = parsed_config(command)
    config = make_config(**{field.name: values[field.name] for field in fields(make_config)})
    task = make_task(config, CPU)
    for module in (task.model, task.criterion):
        module.double().eval()
    return task


def _set_gather(task, gather: str) -> None:
    if isinstance(task, UnlabeledTask):
        task.criterion.info_nce.gather = gather
    elif not isinstance(task, DifferenceTask):
        task.criterion.gather = gather


def _weights(task) -> list[tuple[str, torch.Tensor]]:
    return [*task.model.named_parameters(), *task.criterion.named_parameters()]


def _parts_of(batch) -> list:
    """The batches of captioned and of unlabeled clips."""
    return [batch.labeled, batch.unlabeled] if hasattr(batch, "labeled") else [batch]


def _select(batch, clips: list[int]):
    """The batch with only these clips."""
    if hasattr(batch, "labeled"):
        return type(batch)(*(_select(part, clips) for part in _parts_of(batch)))
    values = {}
    for name, value in vars(batch).items():
        values[name] = value[clips] if isinstance(value, torch.Tensor) else [value[i] for i in clips if value]
    return type(batch)(**values)
