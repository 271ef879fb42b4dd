"""A whole training run: run folder, training, evaluation of the held-out split, summary."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from atk.device import pick_device
from atk.distributed.collectives import world_size
from atk.models.saved import best_or_last
from atk.train import ranks
from atk.train.checkpoint import last_whole_checkpoint, write_atomically
from atk.train.config import TrainConfig
from atk.train.task import Task
from atk.train.trainer import Trainer

ConfigT = TypeVar("ConfigT", bound=TrainConfig)
MakeTask = Callable[[ConfigT, torch.device, Path | None], Task]


def run(make_task: MakeTask[ConfigT], config: ConfigT, resume: bool = False) -> dict[str, Any] | None:
    """Train, evaluate test.csv (else val.csv) with the best checkpoint, and write the run folder `config.out`.

    Under `torchrun`, all ranks train one model and the first rank writes; all of them must be able to read
    `config.out`.

    Args:
        make_task: called with the configuration, the device, and the checkpoint to resume from (None: a new run).
        config: the whole run; written to `config.yaml`.
        resume: continue from the last checkpoint in `config.out`; starts a new run if there is none yet.

    Returns:
        The content of `summary.json`; None on all ranks but the first.

    Raises:
        ValueError, FileNotFoundError, AudioError: the data or the configuration cannot be used.
        TrainingError, Interrupted, RankLost: see `atk.train.trainer.Trainer.fit`.
    """
    out = Path(config.out)
    if not resume and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out: {out} is not empty; continue its run with --resume or choose another folder")
    device = pick_device(config.device)
    with ranks.process_group(device, config.timeout), ranks.naming_lost_ranks():
        return _train(make_task, config, device, checkpoint_to_resume(config, resume))


def _train(
    make_task: MakeTask[ConfigT], config: ConfigT, device: torch.device, checkpoint: Path | None
) -> dict[str, Any] | None:
    """What `run` does on each rank."""
    out = Path(config.out)
    with ranks.first_rank_first():
        task = make_task(config, device, checkpoint)
    if task.model.config != task.config.model:
        raise ValueError(
            f"model: differs from the model of the run in {out}; keep the settings of its config.yaml or choose "
            "another out"
        )
    trainer = Trainer(task, config, device, checkpoint is not None)
    if ranks.is_first():
        out.mkdir(parents=True, exist_ok=True)
        config.save(out / "config.yaml")
    trainer.fit()
    return _summary(trainer, task, config, device) if ranks.is_first() else None


def _summary(trainer: Trainer, task: Task, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """The results of the run, which are also written to `summary.json`."""
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
    write_atomically(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def checkpoint_to_resume(config: TrainConfig, resume: bool) -> Path | None:
    """The checkpoint to resume from; None if a new run starts. Errors are as in `last_whole_checkpoint`."""
    return last_whole_checkpoint(Path(config.out) / "checkpoints") if resume else None
