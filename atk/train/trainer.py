"""The training loop of all methods. A `Task` defines the batches and the loss."""

import contextlib
import math
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atk.data.dataset import random_stream
from atk.device import multiplies_bf16
from atk.distributed import ddp_factor, total
from atk.train import grad_cache, ranks
from atk.train.averages import MovingAverage, copy_weights, evaluation_weights
from atk.train.checkpoint import load_state
from atk.train.config import TrainConfig
from atk.train.interrupts import interrupts
from atk.train.log import RunLog, peak_memory_mib, progress_bar
from atk.train.loggers import require_loggers
from atk.train.lora import merged
from atk.train.optimizer import learning_rate, make_optimizer, set_learning_rate, without_decay
from atk.train.replicas import replicate_or_shard
from atk.train.saving import CheckpointWriter
from atk.train.task import Task
from atk.train.tuning import drop_locked_gradients, lr_factors, prepare, set_augmentation_key, train_mode


class TrainingError(RuntimeError):
    """Training cannot continue; the message says why and names the files of the batch."""


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The run was asked to stop; its state is saved, and `--resume` continues it."""


class Trainer:
    """Trains a task: schedule, clipping, logging, checkpoints, and exact resume.

    All randomness of step k (order, crops, dropout) is a function of (seed, k), so a resumed run repeats exactly what
    an uninterrupted run does; checkpoints hold no random state. With several ranks, each one gets its share
    of every batch and its own random numbers for dropout; the first rank validates and writes.

    Args:
        task: model, data, and loss.
        config: the run.
        device: device to train on.
        resume: load the last checkpoint in `config.out`. The task has already loaded the model.

    Raises:
        ValueError: the checkpoint does not match the optimizer or the criterion, or `config.tune` the model; or the
            package of a logger is missing.
        FileNotFoundError: there is no checkpoint to resume from.
    """

    def __init__(self, task: Task, config: TrainConfig, device: torch.device, resume: bool = False):
        require_loggers(config.loggers)
        if config.patience is not None and (task.validation is None or not config.eval_every):
            raise ValueError("patience: needs a split to validate on (val.csv), and eval_every above 0")
        self.task = task
        self.config = config
        self.device = device
        self.out = Path(config.out)
        self.steps = config.total_steps(task.steps_per_epoch)
        self.bf16 = multiplies_bf16(device) if config.precision == "auto" else config.precision == "bf16"
        self._adapted = config.tune.lora.rank > 0
        self.paces = prepare(task.model, config, resume)
        self.replicas = replicate_or_shard(task, config.shard)
        modules = (task.model, task.criterion)
        self.parameters: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
        undecayed = without_decay(modules) if config.optim.weight_decay else []
        groups = self.replicas.groups(self.parameters, undecayed, lr_factors(task.model, self.paces))
        self.optimizer = make_optimizer(groups, config.optim, self.steps)
        self.average = MovingAverage(self.parameters, config.ema) if config.ema else None
        self.writer = CheckpointWriter(config, self.replicas.sharded)
        self.step = 0
        self.seconds = 0.0
        self.best = -math.inf
        self.stale = 0  # validations since the best one
        if resume:
            self._resume(load_state(self.out / "checkpoints", self.parameters))

    def _resume(self, state: dict[str, Any]) -> None:
        try:
            self.task.criterion.load_state_dict(state["criterion"])
            self.replicas.load_optimizer_state(self.optimizer, self.parameters, state["optimizer"])
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"out: the run in {self.out} has a different optimizer, loss or mapper, or trains other weights; keep "
                f"the settings of its config.yaml or choose another out ({' '.join(str(error).split())})"
            ) from None
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.best = state["best"]
        self.stale = state.get("stale", 0)
        self.task.skipped |= state["skipped"]
        if self.average is not None and state.get("average") is not None:
            copy_weights(self.average.values, self.replicas.shares(self.parameters, state["average"]))
        if state.get("trained") is not None:
            copy_weights(self.parameters, self.replicas.shares(self.parameters, state["trained"]))

    def fit(self) -> None:
        """Train to the last step, or until `config.patience` is exhausted.

        Raises:
            TrainingError: the loss or the gradient is not finite.
            Interrupted: SIGINT or SIGTERM was received; the state was saved first.
            RankLost: another rank ended or stopped.
            OSError: a checkpoint cannot be written.
        """
        if self.done:
            return
        train_mode(self.task.model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.writer)
            log = None
            if ranks.is_first():
                log = stack.enter_context(RunLog(self.out, self.step, self.config.loggers, asdict(self.config)))
            bar = stack.enter_context(progress_bar(self.steps, self.step, ranks.is_first()))
            interrupt = stack.enter_context(interrupts())
            step_started = time.perf_counter()
            started = step_started - self.seconds
            for batch in ranks.lockstep_batches(self.task.batches(self.step)):
                row = self.update(batch)
                self.step += 1
                now = time.perf_counter()
                self.seconds = now - started
                bar.update()
                if log is not None and row and self._should_log():
                    self._log(log, bar, row, now - step_started)
                if self._end_step(log, interrupt.is_set()):
                    raise Interrupted(f"stopped at step {self.step} of {self.steps}; continue with --resume")
                if self.done:
                    return
                step_started = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether training has ended, at the last step or because validation has not improved for long enough."""
        patience = self.config.patience
        return self.step >= self.steps or (patience is not None and self.stale >= patience)

    def _should_log(self) -> bool:
        return self.step % self.config.log_every == 0 or self.step in (1, self.steps)

    def _log(self, log: RunLog, bar: Any, row: dict[str, float], seconds: float) -> None:
        """Log a step that took `seconds`."""
        rate = round(row.pop("files") / seconds, 2)
        memory = peak_memory_mib(self.device)
        row |= {"step": self.step, "seconds": round(self.seconds, 3), "examples_per_second": rate, "memory_mib": memory}
        log.write(row)
        bar.set_postfix(loss=f"{row['loss']:.3f}", ex_per_s=f"{rate:.0f}", MiB=memory, refresh=False)

    def _end_step(self, log: RunLog | None, interrupted: bool) -> bool:
        """Validate and save if this is due; returns whether a rank was interrupted."""
        config = self.config
        due = self.step == self.steps or bool(config.eval_every and self.step % config.eval_every == 0)
        is_best = self._validate(log) if due else False
        self.writer.check()
        best, stop = (bool(flag) for flag in ranks.all_reduce_max(is_best, interrupted))
        if due and self.task.validation is not None:
            self.stale = 0 if best else self.stale + 1
        if best or stop or self.done or self.step % config.save_every == 0:
            self._save(best, stop or self.done)
        return stop

    def update(self, batch: Any) -> dict[str, float]:
        """Take one optimizer step.

        Returns:
            The row to log; empty if the step was skipped because no rank could read a file of one of the data sets.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights are unchanged.
        """
        parts = self._parts(batch)
        count, *sizes = ranks.all_reduce_max(len(parts), *batch.sizes)
        if not all(sizes):
            return {}
        parts += [None] * (count - len(parts))  # all ranks encode equally often
        optim = self.config.optim
        torch.manual_seed(self._seed())
        set_augmentation_key(self.task.model, self._step_seed())
        lr = learning_rate(self.step, self.steps, optim)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = grad_cache.backward(
            self.task, parts, self.device, self._autocast, encode_last=self.replicas.encode_last, scale=ddp_factor()
        )
        self.replicas.finish()
        drop_locked_gradients(self.task.model, self.paces, self.step, self.task.idle())
        norm = self.replicas.clip_gradients(self.parameters, optim.clip_norm)
        row = self._row({"loss": loss, **terms, "files": loss.new_tensor(len(batch.files))}, norm)
        if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
            raise TrainingError(
                f"loss {row['loss']} with gradient norm {row['grad_norm']} at step {self.step + 1}; files of the "
                f"batch: {', '.join(batch.files)}"
            )
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.step)
        return row | {"lr": lr}

    def _row(self, shares: dict[str, Tensor], grad_norm: Tensor) -> dict[str, float]:
        """The values to log: sums over ranks of `shares`, the task's readings, and the gradient norm."""
        sums = total(torch.stack([share.detach().float() for share in shares.values()]))
        readings = self.task.readings() | {"grad_norm": grad_norm}  # copied to the host with the sums, at once
        values = torch.cat([sums, torch.stack([reading.detach().float() for reading in readings.values()])])
        return dict(zip([*shares, *readings], values.tolist(), strict=True))

    def _parts(self, batch: Any) -> list[Any]:
        """The parts of a batch, which are encoded one after the other.

        The last one is None, a part without clips, if this rank has no clips of a data set that other ranks may have.
        """
        micro_batch = self.config.micro_batch
        if not any(batch.sizes):
            return []
        parts = [batch] if micro_batch is None else batch.split(micro_batch)
        return parts if all(batch.sizes) else [*parts, None]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _step_seed(self) -> int:
        return (self.config.seed << 32) + self.step

    def _seed(self) -> int:
        """The seed of dropout and noise in this step, different on every rank."""
        step_seed = self._step_seed()
        return int(random_stream(8, step_seed, ranks.rank()).integers(2**63)) if ranks.rank() else step_seed

    def _validate(self, log: RunLog | None) -> bool:
        """Validate on the first rank and log the metrics; returns whether they are the best so far."""
        if self.task.validation is None:
            return False
        with self._evaluation_model(self.device):
            if log is None:
                return False
            self.task.model.eval()
            metrics = self.task.validate()
        train_mode(self.task.model)
        log.write({"step": self.step, **{f"val/{name}": value for name, value in metrics.items()}})
        if not metrics[self.task.monitor] > self.best:  # NaN never counts as best
            return False
        self.best = metrics[self.task.monitor]
        return True

    @contextlib.contextmanager
    def _evaluation_model(self, device: torch.device) -> Generator[list[Tensor] | None, None, None]:
        """A context in which the task of the first rank has the model that is validated and saved, as a whole.

        Yields:
            The weights being trained, if that model doesn't hold them.
        """
        weights = evaluation_weights(self.optimizer, self.parameters, self.average)
        with weights as trained, self.replicas.full_model(device):
            if not self._adapted or not ranks.is_first():
                yield self.parameters if self._adapted and trained is None else trained
                return
            model = self.task.model
            self.task.model = merged(model)
            try:
                yield self.parameters if trained is None else trained
            finally:
                self.task.model = model

    def _save(self, best: bool, final: bool) -> None:
        self.task.skipped |= ranks.merge_dicts(self.task.skipped)
        optimizer_state = self.replicas.optimizer_state(self.optimizer, self.parameters)
        with self._saved_model() as (model, trained):
            state = {
                "optimizer": optimizer_state,
                "criterion": self.task.criterion.state_dict(),
                "trained": None if trained is None else [value.detach() for value in trained],
                "average": None if self.average is None else self.average.values,
                "step": self.step,
                "seconds": self.seconds,
                "best": self.best,
                "stale": self.stale,
                "skipped": dict(self.task.skipped),
            }
            self.writer.save(model, self.step, state, best, whole=best or final or self._adapted)
        if final:
            self.writer.wait()

    @contextlib.contextmanager
    def _saved_model(self) -> Generator[tuple[Any, list[Tensor] | None], None, None]:
        """A context that yields the model for `CheckpointWriter.save`, and the weights as in `_evaluation_model`."""
        if self.replicas.sharded and not self._adapted:
            with evaluation_weights(self.optimizer, self.parameters, self.average) as trained:
                yield self.task.model, trained
            return
        with self._evaluation_model(torch.device("cpu")) as trained:
            yield self.task.model if ranks.is_first() else None, trained
