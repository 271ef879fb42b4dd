"""One step of every trainer on K processes joined by gloo, compared with one process that has the whole batch.

Errors are collected for the test that started the processes.
"""

import contextlib
import itertools
import json
import os
import traceback
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from atk.cli.main import _parser, _underscores
from atk.train import grad_cache, replicas
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.difference import DifferenceConfig, DifferenceTask
from atk.train.semisupervised import SemiSupervisedConfig, SemiSupervisedTask

CPU = torch.device("cpu")
TASKS = {
    "aligned": (AlignedTask, AlignedConfig),
    "difference": (DifferenceTask, DifferenceConfig),
    "semisupervised": (SemiSupervisedTask, SemiSupervisedConfig),
}
PATIENCE = timedelta(seconds=60)
BATCH = 7  # no multiple of the ranks
WAYS = [
    {"shard": shard, "micro": micro, "gather": gather, "without": without}
    for shard, micro, gather, without in (
        (False, None, "all", None),
        (False, 2, "ring", None),
        (False, 2, "all", 0),  # a rank whose files cannot be read
        (True, None, "ring", 1),
        (True, 2, "all", None),
    )
]


def run_steps(size: int, folder: str, commands: list[list[str]]) -> None:
    """Run every way of every command on this rank and write the errors to `folder`."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    errors = []
    for index, (command, way) in enumerate(itertools.product(commands, WAYS if size == 2 else WAYS[1:4])):
        try:
            _step(rank, size, f"file://{folder}/{index}", command, way)
        except Exception:  # noqa: BLE001 (the test reports it)
            errors.append(f"{command[1]} {way}: {traceback.format_exc()}")
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(errors))


def _step(rank: int, size: int, meeting: str, command: list[str], way: dict) -> None:
    if way["shard"] and command[1] == "difference":  # refused
        return
    reference = _task(command)
    whole = next(reference.batches(0))
    held = [number for number in range(BATCH) if way["without"] is None or number % size != way["without"]]
    reference_parts = [_rows(whole, held)]
    wanted_loss, _ = grad_cache.backward(reference, reference_parts, CPU, contextlib.nullcontext)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=PATIENCE)
    task = _task(command)
    _set_gather(task, way["gather"])
    ranks = replicas.replicate_or_shard(task, way["shard"])
    own = next(task.batches(0))
    assert own.files == [name for side in _sides(whole) for name in side.files[rank::size]], "another share"
    parts = own.split(way["micro"]) if way["micro"] else [own]
    if rank == way["without"]:
        parts = []
    parts += [None] * (ranks.most(len(parts))[0] - len(parts))
    options = {"encode_last": ranks.encode_last, "scale": size}
    share, _ = grad_cache.backward(task, parts, CPU, contextlib.nullcontext, **options)
    ranks.finish()
    dist.all_reduce(share := share.detach())
    torch.testing.assert_close(share, wanted_loss.detach(), rtol=1e-5, atol=1e-7)  # spectrograms are float32
    compared = 0
    for (name, weight), (_, other) in zip(_weights(task), _weights(reference), strict=True):
        found = replicas.whole_tensor(weight.grad)
        if other.grad is None:
            assert found is None or not found.any(), f"{name} has a gradient"
            continue
        close = torch.allclose(found, other.grad, rtol=1e-4, atol=1e-6)
        assert close, f"{name}: off by {(found - other.grad).abs().max()}, {other.grad.abs().max()} is wanted"
        compared += bool(other.grad.any())
    assert compared > 20
    trained = [weight for _, weight in _weights(task) if weight.requires_grad]
    torch.optim.AdamW(ranks.groups(trained), foreach=True).step()  # as on a GPU


def _task(command: list[str]):
    parser, _ = _parser(["train"])
    parsed = parser.instantiate(parser.parse_args([_underscores(arg) for arg in command])).train
    make_task, make_config = TASKS[parsed.method]
    values = parsed[parsed.method]
    config = make_config(**{field.name: values[field.name] for field in fields(make_config)})
    task = make_task(config, CPU)
    for module in (task.model, task.criterion):
        module.double().eval()
    return task


def _set_gather(task, gather: str) -> None:
    if isinstance(task, SemiSupervisedTask):
        task.criterion["info_nce"].gather = gather
    elif not isinstance(task, DifferenceTask):
        task.criterion.gather = gather


def _weights(task) -> list[tuple[str, torch.Tensor]]:
    return [*task.model.named_parameters(), *task.criterion.named_parameters()]


def _sides(batch) -> list:
    return [batch.labeled, batch.unlabeled] if hasattr(batch, "labeled") else [batch]


def _rows(batch, numbers: list[int]):
    """The batch with these clips of it alone."""
    if hasattr(batch, "labeled"):
        return type(batch)(*(_rows(side, numbers) for side in _sides(batch)))
    values = {}
    for name, value in vars(batch).items():
        values[name] = value[numbers] if isinstance(value, torch.Tensor) else [value[n] for n in numbers if value]
    return type(batch)(**values)
