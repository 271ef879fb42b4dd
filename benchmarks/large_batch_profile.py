"""Measure by stage where the time of an aligned training step goes; `large_batch.py` runs this script.

python benchmarks/large_batch_profile.py --data DIR --out RUN --batch-size 256 --micro-batch 64 --workers 1
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from atk.models.clap import CLAP
from atk.nn import AlignedContrastiveLoss
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.config import Precision
from atk.train.trainer import Trainer

OPS = "atk::"  # prefix of this library's custom ops in the profile


class Stages:
    """Seconds by stage. Each moment belongs to the stage entered last, so the stages add up to the whole."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Reset all measurements."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.current: str | None = None
        self.since = time.perf_counter()

    def enter(self, stage: str | None) -> None:
        """End the current stage and begin this one; None stops the measurement until the next call."""
        now = time.perf_counter()
        if self.current is not None:
            self.seconds[self.current] += now - self.since
        self.current = stage
        self.since = now


def _watch_encoders(stages: Stages, model: CLAP) -> None:
    """Enter a stage when a part of the model begins and, in the backward, when its output receives its gradient."""

    def forward(name: str) -> str:
        return f"{name}, forward" if torch.is_grad_enabled() else f"{name}, first pass without graph"

    audio = model.audio_encoder
    log_mel = audio.get_submodule("log_mel")
    audio.register_forward_pre_hook(lambda *_: stages.enter(forward("audio encoder")))
    log_mel.register_forward_pre_hook(lambda *_: stages.enter("features (log-mel)"))
    log_mel.register_forward_hook(lambda *_: stages.enter(forward("audio encoder")))
    model.text_encoder.register_forward_pre_hook(lambda *_: stages.enter(forward("text encoder")))
    tokenize = model.tokenize

    def timed_tokenize(*arguments: Any) -> dict[str, torch.Tensor]:
        stages.enter("tokenizer")
        tokens = tokenize(*arguments)
        stages.enter("other")
        return tokens

    def watched(name: str, encode: Callable[..., tuple]) -> Callable[..., tuple]:
        def encode_and_watch(*arguments: Any) -> tuple:
            embedding = encode(*arguments)
            stages.enter("other")
            for value in embedding[:2]:  # the global vector, and the frames or tokens
                if value.requires_grad:
                    value.register_hook(lambda _: stages.enter(f"{name} encoder, backward"))
            return embedding

        return encode_and_watch

    _replace(model, tokenize=timed_tokenize)
    _replace(model, encode_audio=watched("audio", model.encode_audio), encode_text=watched("text", model.encode_text))


def _watch_loss(stages: Stages, criterion: AlignedContrastiveLoss) -> None:
    """Enter a stage when the loss begins, and another when its backward begins."""
    terms, total = criterion.terms, criterion.total

    def timed_terms(**embeddings: Any) -> dict[str, torch.Tensor]:
        stages.enter("loss, forward")
        return terms(**embeddings)

    def timed_total(values: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = total(values)
        stages.enter("loss, backward")
        return loss

    _replace(criterion, terms=timed_terms, total=timed_total)


def _replace(target: object, **methods: Callable) -> None:
    """Replace methods of one object."""
    for name, method in methods.items():
        setattr(target, name, method)


def profile(config: AlignedConfig) -> dict[str, Any]:
    """Mean seconds per step of each stage, without the first step; this library's ops are part of the loss's stages.

    Returns:
        `stages` and `ops` (each `{name: seconds}`), `step_seconds` (the sum of the stages), `steps` (how many were
        averaged), and `batch`, `micro_batch`, and `workers` of the configuration.
    """
    device = torch.device("cpu")
    stages = Stages()
    task = AlignedTask(config, device)
    trainer = Trainer(task, config, device)
    _watch_encoders(stages, task.model)
    assert isinstance(task.criterion, AlignedContrastiveLoss)  # the configuration has no triplet loss
    _watch_loss(stages, task.criterion)
    trainer.optimizer.register_step_pre_hook(lambda *_: stages.enter("optimizer"))
    trainer.optimizer.register_step_post_hook(
        lambda *_: stages.enter("other" if trainer.step + 1 < trainer.steps else None)
    )
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    batches = task.batches

    def timed_batches(start_step: int) -> Iterator[Any]:
        loaded = iter(batches(start_step))
        for step in range(trainer.steps):
            if step == 1:
                stages.clear()
                profiler.start()
            stages.enter("waiting for data")
            batch = next(loaded)
            stages.enter("other")
            yield batch

    _replace(task, batches=timed_batches)
    trainer.out.mkdir(parents=True, exist_ok=True)
    trainer.fit()
    profiler.stop()
    steps = trainer.steps - 1
    events = [event for event in profiler.key_averages() if event.key.startswith(OPS)]
    return {
        "batch": config.batch_size,
        "micro_batch": config.micro_batch,
        "workers": config.workers,
        "steps": steps,
        "stages": {name: seconds / steps for name, seconds in stages.seconds.items()},
        "ops": {event.key: event.cpu_time_total / 1e6 / steps for event in events},
        "step_seconds": sum(stages.seconds.values()) / steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train.csv")
    parser.add_argument("--out", type=Path, required=True, help="run folder; the result is its profile.json")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, help="clips encoded at a time (default: the whole batch)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="at least 2; the first is not measured")
    parser.add_argument("--backend", default="cpp")
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision))
    options = vars(parser.parse_args())
    if options["steps"] < 2:
        parser.error(f"--steps must be at least 2, got {options['steps']}")
    options["out"] = str(options["out"])
    config = AlignedConfig(**options, device="cpu", log_every=1, save_every=10**6, eval_every=0)
    result = profile(config)
    Path(config.out, "profile.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
