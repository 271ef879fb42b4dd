"""Where the time of an aligned training step goes, by stage, in this process; `large_batch.py` runs it.

python benchmarks/large_batch_profile.py --data DIR --out RUN --batch-size 256 --micro-batch 64 --workers 1
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.trainer import Trainer

OPS = "atk::"  # custom ops of this library, in the profiler's names


class Stages:
    """Seconds by stage: each moment belongs to the stage entered last, so that they add up to the whole."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Forget what was measured."""
        self.seconds, self.current, self.since = defaultdict(float), None, time.perf_counter()

    def enter(self, stage: str | None) -> None:
        """End the stage before, begin this one; None: nothing is measured until the next."""
        now = time.perf_counter()
        if self.current is not None:
            self.seconds[self.current] += now - self.since
        self.current, self.since = stage, now


def _watch_encoders(stages: Stages, model: torch.nn.Module) -> None:
    """Enter a stage where the model's parts begin and, in the backward, where the gradient comes to them."""

    def forward(name: str) -> str:
        return f"{name}, forward" if torch.is_grad_enabled() else f"{name}, first pass without graph"

    audio, text = model.audio_encoder, model.text_encoder
    audio.register_forward_pre_hook(lambda *_: stages.enter(forward("audio encoder")))
    audio.log_mel.register_forward_pre_hook(lambda *_: stages.enter("features (log-mel)"))
    audio.log_mel.register_forward_hook(lambda *_: stages.enter(forward("audio encoder")))
    text.register_forward_pre_hook(lambda *_: stages.enter(forward("text encoder")))
    tokenize = model.tokenize

    def timed_tokenize(*arguments) -> dict:
        stages.enter("tokenizer")
        tokens = tokenize(*arguments)
        stages.enter("other")
        return tokens

    def watched(name: str, encode: Callable) -> Callable:
        def encode_and_watch(*arguments) -> tuple:
            embedding = encode(*arguments)
            stages.enter("other")
            for value in embedding[:2]:  # the global vector, and those of frames or tokens
                if value.requires_grad:
                    value.register_hook(lambda _: stages.enter(f"{name} encoder, backward"))
            return embedding

        return encode_and_watch

    model.tokenize = timed_tokenize
    model.encode_audio = watched("audio", model.encode_audio)
    model.encode_text = watched("text", model.encode_text)


def _watch_loss(stages: Stages, criterion: torch.nn.Module) -> None:
    """Loss: from the call for its terms to the total, and its backward until an encoder's begins."""
    terms, total = criterion.terms, criterion.total

    def timed_terms(**embeddings) -> dict:
        stages.enter("loss, forward")
        return terms(**embeddings)

    def timed_total(values: dict) -> torch.Tensor:
        loss = total(values)
        stages.enter("loss, backward")
        return loss

    criterion.terms, criterion.total = timed_terms, timed_total


def profile(config: AlignedConfig) -> dict:
    """Mean seconds of the stages of a step, the first step left out; those of this library's ops are in the loss's.

    Returns:
        `{"stages": {name: seconds}, "ops": {name: seconds}, "step_seconds": their sum, "steps": number averaged}`.
    """
    stages, task = Stages(), AlignedTask(config, torch.device("cpu"))
    trainer = Trainer(task, config, torch.device("cpu"))
    _watch_encoders(stages, task.model)
    _watch_loss(stages, task.criterion)
    trainer.optimizer.register_step_pre_hook(lambda *_: stages.enter("optimiser"))
    trainer.optimizer.register_step_post_hook(
        lambda *_: stages.enter("other" if trainer.step + 1 < trainer.steps else None)
    )
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    batches = task.batches

    def timed_batches(start_step: int) -> Iterator:
        loaded = iter(batches(start_step))
        for step in range(trainer.steps):
            if step == 1:
                stages.clear()
                profiler.start()
            stages.enter("waiting for data")
            batch = next(loaded)
            stages.enter("other")
            yield batch

    task.batches = timed_batches
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
    parser.add_argument("--micro-batch", type=int, help="none: the whole batch at once")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="at least 2; the first is not measured")
    parser.add_argument("--backend", default="cpp")
    options = vars(parser.parse_args())
    if options["steps"] < 2:
        parser.error(f"--steps must be at least 2, got {options['steps']}")
    options["out"] = str(options["out"])
    config = AlignedConfig(**options, device="cpu", precision="fp32", log_every=1, save_every=10**6, eval_every=0)
    result = profile(config)
    Path(config.out, "profile.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
