"""The training loop of all methods. A `Task` defines the batches and the loss."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from atk.data.dataset import random_stream
from atk.device import multiplies_bf16
from atk.distributed import ddp_factor, total
from atk.extras import optional_imports
from atk.train import grad_cache, ranks
from atk.train.checkpoint import load_state, save_checkpoint
from atk.train.config import TrainConfig
from atk.train.log import RunLog, peak_memory_mib
from atk.train.optimizer import copy_weights, evaluation_weights, learning_rate, make_optimizer, without_decay
from atk.train.replicas import replicate_or_shard
from atk.train.task import Task


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
        ValueError: the checkpoint does not match the optimizer or the criterion.
        FileNotFoundError: there is no checkpoint to resume from.
    """

    def __init__(self, task: Task, config: TrainConfig, device: torch.device, resume: bool = False):
        self.task = task
        self.config = config
        self.device = device
        self.out = Path(config.out)
        self.steps = config.steps or math.ceil(config.epochs * task.steps_per_epoch)
        self.bf16 = multiplies_bf16(device) if config.precision == "auto" else config.precision == "bf16"
        self.replicas = replicate_or_shard(task, config.shard)
        modules = (task.model, task.criterion)
        self.parameters: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
        undecayed = without_decay(modules) if config.optim.weight_decay else []
        self.optimizer = make_optimizer(self.replicas.groups(self.parameters, undecayed), config.optim, self.steps)
        self.step = 0
        self.seconds = 0.0
        self.best = -math.inf
        if resume:
            self._resume(load_state(self.out / "checkpoints"))

    def _resume(self, state: dict[str, Any]) -> None:
        try:
            self.task.criterion.load_state_dict(state["criterion"])
            if set(state["optimizer"]["param_groups"][0]) != set(self.optimizer.param_groups[0]):
                raise ValueError("a different optimizer")
            self.replicas.load_optimizer_state(self.optimizer, self.parameters, state["optimizer"])
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"out: the run in {self.out} has a different optimizer, loss or mapper; keep the settings of its "
                f"config.yaml or choose another out ({' '.join(str(error).split())})"
            ) from None
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.best = state["best"]
        self.task.skipped |= state["skipped"]
        if state.get("trained") is not None:
            copy_weights(self.parameters, state["trained"])

    def fit(self) -> None:
        """Train to the last step.

        Raises:
            TrainingError: the loss or the gradient is not finite.
            Interrupted: SIGINT or SIGTERM was received; the state was saved first.
            RankLost: another rank ended or stopped.
        """
        if self.step >= self.steps:
            return
        self.task.model.train()
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(RunLog(self.out, self.step)) if ranks.is_first() else None
            bar = stack.enter_context(self._progress_bar())
            interrupt = stack.enter_context(_interrupts())
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
                last = self.step == self.steps
                if self._end_step(log, interrupt.is_set()):
                    raise Interrupted(f"stopped at step {self.step} of {self.steps}; continue with --resume")
                if last:
                    return
                step_started = time.perf_counter()

    def _progress_bar(self) -> Any:
        with optional_imports:
            from tqdm import tqdm  # pyrefly: ignore[untyped-import]  # its stubs are a separate package

        return tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            disable=None if ranks.is_first() else True,
        )

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
        last = self.step == self.steps
        due = last or bool(config.eval_every and self.step % config.eval_every == 0)
        is_best = self._validate(log) if due else False
        best, stop = (bool(flag) for flag in ranks.all_reduce_max(is_best, interrupted))
        if best or stop or last or self.step % config.save_every == 0:
            self._save(best)
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
        lr = learning_rate(self.step, self.steps, optim)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = grad_cache.backward(
            self.task, parts, self.device, self._autocast, encode_last=self.replicas.encode_last, scale=ddp_factor()
        )
        self.replicas.finish()
        norm = self.replicas.clip_gradients(self.parameters, optim.clip_norm)
        row = self._row({"loss": loss, **terms, "files": loss.new_tensor(len(batch.files))}, norm)
        if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
            raise TrainingError(
                f"loss {row['loss']} with gradient norm {row['grad_norm']} at step {self.step + 1}; files of the "
                f"batch: {', '.join(batch.files)}"
            )
        self.optimizer.step()
        return row | {"lr": lr}

    def _row(self, shares: dict[str, Tensor], grad_norm: Tensor) -> dict[str, float]:
        """The values to log: sums over ranks of `shares`, the task's readings, and the gradient norm."""
        sums = total(torch.stack([share.detach().float() for share in shares.values()]))
        readings = self.task.readings() | {"grad_norm": grad_norm}
        # One copy to the host for all values.
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

    def _seed(self) -> int:
        """The seed of dropout and noise in this step, different on every rank."""
        step_seed = (self.config.seed << 32) + self.step
        return int(random_stream(8, step_seed, ranks.rank()).integers(2**63)) if ranks.rank() else step_seed

    def _validate(self, log: RunLog | None) -> bool:
        """Validate on the first rank and log the metrics; returns whether they are the best so far."""
        if self.task.validation is None:
            return False
        with self.replicas.full_model(self.device), evaluation_weights(self.optimizer, self.parameters):
            if log is None:
                return False
            self.task.model.eval()
            metrics = self.task.validate()
            self.task.model.train()
        log.write({"step": self.step, **{f"val/{name}": value for name, value in metrics.items()}})
        if not metrics[self.task.monitor] > self.best:  # NaN never counts as best
            return False
        self.best = metrics[self.task.monitor]
        return True

    def _save(self, best: bool) -> None:
        self.task.skipped |= ranks.merge_dicts(self.task.skipped)
        state = {
            "optimizer": self.replicas.optimizer_state(self.optimizer, self.parameters),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "skipped": self.task.skipped,
        }
        full_model = self.replicas.full_model(torch.device("cpu"))
        with full_model, evaluation_weights(self.optimizer, self.parameters) as trained:
            if not ranks.is_first():
                return
            state |= {"criterion": self.task.criterion.state_dict(), "trained": trained}
            save_checkpoint(self.out / "checkpoints", self.step, self.task.model, state, best)


@contextmanager
def _interrupts() -> Generator[threading.Event, None, None]:
    """An event that SIGINT and SIGTERM set, so that the step is completed and saved before the run stops.

    Only the first signal is caught, so that a second one can stop a run that hangs.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def first_signal(signum: int, _: FrameType | None) -> None:
        event.set()
        signal.signal(signum, previous[signal.Signals(signum)])

    for signum in previous:
        signal.signal(signum, first_signal)
    try:
        yield event
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
