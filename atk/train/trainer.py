"""The training loop that every method shares: a `Task` says what a batch is and what its loss is."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from atk.data.dataset import random_stream
from atk.distributed import ddp_factor, total
from atk.train import grad_cache, ranks
from atk.train.checkpoint import load_state, save_checkpoint
from atk.train.config import TrainConfig
from atk.train.log import RunLog, peak_memory_mib
from atk.train.optimizer import learning_rate, make_optimizer, put_back, weights_to_use
from atk.train.replicas import replicate_or_shard
from atk.train.task import Task


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and names the files of the batch."""


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The run was asked to stop; its state is saved and `--resume` goes on from there."""


class Trainer:
    """Runs a task to its last step: schedule, clipping, logging, checkpoints, exact resume.

    All randomness of step k (order, crops, dropout) is a function of (seed, k), so a resumed run repeats exactly
    what an uninterrupted one does; only weights, optimiser and step are stored. On several ranks each has its share of
    every batch, and random numbers of its own for dropout; the first validates and writes.
    """

    def __init__(self, task: Task, config: TrainConfig, device: torch.device, resume: bool = False):
        self.task, self.config, self.device = task, config, device
        self.out = Path(config.out)
        self.steps = config.steps or math.ceil(config.epochs * task.steps_per_epoch)
        self.bf16 = config.precision == "bf16"
        if config.precision == "auto" and device.type == "cuda":
            self.bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        self.ranks = replicate_or_shard(task, config.shard)
        modules = (task.model, task.criterion)
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.ranks.groups(self.parameters), config.optim, self.steps)
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        if resume:
            self._resume(load_state(self.out / "checkpoints"))

    def _resume(self, state: dict) -> None:
        try:
            self.task.criterion.load_state_dict(state["criterion"])
            if set(state["optimizer"]["param_groups"][0]) != set(self.optimizer.param_groups[0]):
                raise ValueError("another optimiser")
            self.ranks.load_optimizer_state(self.optimizer, state["optimizer"])
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"out: the run in {self.out} was made with another optimiser, loss or mapper; leave their fields as in "
                f"config.yaml or name another out ({' '.join(str(error).split())})"
            ) from None
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.task.skipped |= state["skipped"]
        if state.get("trained") is not None:
            put_back(self.parameters, state["trained"])

    def fit(self) -> None:
        """Train to the last step.

        Raises:
            TrainingError: the loss or the gradient is not finite.
            Interrupted: SIGINT or SIGTERM came; the state was saved first.
            RankLost: another rank cannot go on.
        """
        if self.step >= self.steps:
            return
        task, config = self.task, self.config
        log = RunLog(self.out, self.step) if ranks.is_first() else contextlib.nullcontext()
        disable = None if ranks.is_first() else True
        bar = tqdm(total=self.steps, initial=self.step, unit="step", dynamic_ncols=True, disable=disable)
        task.model.train()
        with log, bar, _interrupts() as interrupt:
            ready = time.perf_counter()
            started = ready - self.seconds
            for batch in ranks.together(task.batches(self.step)):
                row = self.update(batch)
                self.step += 1
                now = time.perf_counter()
                self.seconds = now - started
                last = self.step == self.steps
                bar.update()
                if row and ranks.is_first() and (self.step % config.log_every == 0 or last or self.step == 1):
                    rate = round(row.pop("files") / (now - ready), 2)
                    row |= {"step": self.step, "seconds": round(self.seconds, 3), "examples_per_second": rate}
                    row["memory_mib"] = peak_memory_mib(self.device)
                    log.write(row)
                    bar.set_postfix(loss=f"{row['loss']:.3f}", ex_per_s=f"{rate:.0f}", MiB=row["memory_mib"],
                                    refresh=False)  # fmt: skip
                due = (config.eval_every and self.step % config.eval_every == 0) or last
                best = self._validate(log) if due else False
                best, stop = (bool(said) for said in ranks.most(best, interrupt.is_set()))
                if best or stop or last or self.step % config.save_every == 0:
                    self._save(best)
                if stop:
                    raise Interrupted(f"stopped at step {self.step} of {self.steps}; go on with --resume")
                if last:
                    return
                ready = time.perf_counter()

    def update(self, batch: Any) -> dict[str, float]:
        """One optimiser step; the row to log. A batch of which no file could be read is passed over, with no row.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights are as before.
        """
        parts = self._parts(batch)
        count, *sides = ranks.most(len(parts), *batch.sides)
        if not all(sides):
            return {}
        parts += [None] * (count - len(parts))  # ranks take part in one another's steps
        optim = self.config.optim
        torch.manual_seed(self._seed())
        lr = learning_rate(self.step, self.steps, optim)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = grad_cache.backward(
            self.task, parts, self.device, self._autocast, encode_last=self.ranks.encode_last, scale=ddp_factor()
        )
        self.ranks.finish()
        norm = self.ranks.clip_gradients(self.parameters, optim.clip_norm)
        shares = {"loss": loss, **terms, "files": loss.new_tensor(len(batch.files))}
        summed = total(torch.stack([share.detach().float() for share in shares.values()]))
        readings = self.task.readings() | {"grad_norm": norm}
        # One copy to the host for all of them.
        numbers = torch.cat([summed, torch.stack([reading.detach().float() for reading in readings.values()])])
        row = dict(zip([*shares, *readings], numbers.tolist(), strict=True))
        value, norm = row["loss"], row["grad_norm"]
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingError(
                f"loss {value} with gradient norm {norm} at step {self.step + 1}; the batch's files: "
                + ", ".join(batch.files)
            )
        self.optimizer.step()
        return row | {"lr": lr}

    def _parts(self, batch: Any) -> list:
        """What is encoded at a time; None, a silent clip of no weight, where this rank lacks what others may have."""
        micro, sides = self.config.micro_batch, batch.sides
        if not any(sides):
            return []
        parts = [batch] if micro is None else batch.split(micro)
        return parts if all(sides) else [*parts, None]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _seed(self) -> int:
        """Of dropout and noise in this step, another on every rank."""
        first = (self.config.seed << 32) + self.step
        return int(random_stream(8, first, ranks.rank()).integers(2**63)) if ranks.rank() else first

    def _validate(self, log: "RunLog") -> bool:
        """Log validation metrics; True when they are the best so far. The first rank does it."""
        if self.task.validation is None:
            return False
        with self.ranks.whole_model(self.device), weights_to_use(self.optimizer, self.parameters):
            if not ranks.is_first():
                return False
            self.task.model.eval()
            metrics = self.task.validate()
            self.task.model.train()
        log.write({"step": self.step, **{f"val/{name}": value for name, value in metrics.items()}})
        if not metrics[self.task.monitor] > self.best:  # NaN is no best
            return False
        self.best = metrics[self.task.monitor]
        return True

    def _save(self, best: bool) -> None:
        self.task.skipped |= ranks.merged(self.task.skipped)
        state = {
            "optimizer": self.ranks.optimizer_state(self.optimizer),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "skipped": self.task.skipped,
        }
        with self.ranks.whole_model(torch.device("cpu")), weights_to_use(self.optimizer, self.parameters) as trained:
            if not ranks.is_first():
                return
            state |= {"criterion": self.task.criterion.state_dict(), "trained": trained}
            save_checkpoint(self.out / "checkpoints", self.step, self.task.model, state, best)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a step is finished and saved before the run stops.

    Only the first signal is caught: a second one stops a run that hangs.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def first(number: int, _: object) -> None:
        event.set()
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        signal.signal(number, first)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
