"""A whole training run, the same for every method: run folder, training, evaluation of the held-out split, summary."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from atk.device import pick_device
from atk.distributed.collectives import world_size
from atk.train import ranks
from atk.train.checkpoint import best_or_last, write_whole
from atk.train.config import TrainConfig
from atk.train.task import Task
from atk.train.trainer import Trainer


def run(make_task: Callable[..., Task], config: TrainConfig, resume: bool = False) -> dict | None:
    """Train, evaluate test.csv (else val.csv) with the best checkpoint, and write the run folder `config.out`.

    Started by `torchrun`, all ranks train together, and the first writes; `config.out` is a folder that all can read.

    Args:
        make_task: called with the configuration, the device and the checkpoint to go on from (None: start).
        config: the whole run; written to `config.yaml`.
        resume: go on from the last checkpoint of `config.out`, or start where there is none yet.

    Returns:
        What `summary.json` holds; None on other ranks than the first.

    Raises:
        ValueError, FileNotFoundError, AudioError: the data or the configuration cannot be used.
        TrainingError, Interrupted, RankLost: see `atk.train.trainer.Trainer.fit`.
    """
    out = Path(config.out)
    if not resume and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out: {out} is not empty; go on with --resume or name another folder")
    device = pick_device(config.device)
    with ranks.process_group(device, config.timeout), ranks.naming_lost_ranks():
        return _train(make_task, config, device, to_resume(config, resume))


def _train(
    make_task: Callable[..., Task], config: TrainConfig, device: torch.device, checkpoint: Path | None
) -> dict | None:
    """What `run` does on each rank."""
    out = Path(config.out)
    with ranks.first_rank_first():
        task = make_task(config, device, checkpoint)
    if task.model.config != config.model:
        raise ValueError(
            f"model: the run in {out} has another; leave these fields as in config.yaml or name another out"
        )
    trainer = Trainer(task, config, device, checkpoint is not None)
    if ranks.is_first():
        out.mkdir(parents=True, exist_ok=True)
        config.save(out / "config.yaml")
    trainer.fit()
    return _summary(trainer, task, config, device) if ranks.is_first() else None


def _summary(trainer: Trainer, task: Task, config: TrainConfig, device: torch.device) -> dict:
    """What the run came to, written to `summary.json`."""
    out = Path(config.out)
    summary = {
        "method": task.method,
        "data": config.data,
        "split": task.held_out,
        "steps": trainer.step,
        "seconds": round(trainer.seconds, 1),
        "device": str(device),
        "ranks": world_size(),
        "backend": task.backend,
        "skipped": len(task.skipped),
        "metrics": task.evaluate(best_or_last(out)) if task.held_out else None,
    }
    write_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def to_resume(config: TrainConfig, resume: bool) -> Path | None:
    """The checkpoint to go on from, None where the run is to start."""
    last = Path(config.out) / "checkpoints" / "last"
    return last if resume and last.is_dir() else None
