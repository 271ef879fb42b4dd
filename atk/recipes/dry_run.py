"""What `atk reproduce --dry-run` prints: the runs, their settings, and the time and memory that they should take."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from atk.data import TrainBatches, open_data
from atk.extras import optional_imports
from atk.plan import Rates, Resources, plan
from atk.plan.report import on_device
from atk.recipes.jobs import Job, Machine
from atk.recipes.recipe import path_of
from atk.train.aligned import AlignedConfig
from atk.train.config import TrainConfig
from atk.train.difference import DifferenceConfig
from atk.train.semisupervised_config import SemiSupervisedConfig


def describe(jobs: Iterable[Job], machine: Machine) -> str:
    """The runs of a table: their settings once for all seeds."""
    with optional_imports:
        import yaml

    parts = []
    rows: dict[str, list[Job]] = {}
    for job in jobs:
        rows.setdefault(job.row.name, []).append(job)
    for runs in rows.values():
        first = runs[0]
        lines = [f"## {first.row.name}: {first.row.label}"]
        lines += [f"run: {job.name}: {job.folder} ({job.state})" for job in runs]
        lines.append(f"evaluated on {first.row.target}: {first.sources.get(first.row.target, 'not given')}")
        if first.needs:
            lines.append(f"needs {', '.join(first.needs)}")
        if first.recipe.method is None:
            lines.append(f"checkpoint: {path_of(first.recipe.checkpoint, first.sources)}, evaluated as it is")
        else:
            lines.append(f"atk train {first.recipe.method} with {first.recipe.name}.yaml:")
            text = yaml.safe_dump(first.recipe.resolved(first.sources), sort_keys=False, default_flow_style=None)
            lines += [f"    {line}" for line in text.splitlines()]
            lines.append(_planned(first, machine))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _planned(job: Job, machine: Machine) -> str:
    """Number of steps, and the time and memory of the run, as far as they can be known."""
    if job.needs:
        return "time and memory: not planned without what it needs"
    text = ""
    try:
        config = job.config(replace(machine, device="cpu"))
        steps = steps_of(config)
        text = f"{steps:,} steps; "
        assert isinstance(config, (AlignedConfig, SemiSupervisedConfig, DifferenceConfig))
        config = on_device(config, machine.device)
        name = config.device
        rates = _rates(name, config.precision == "bf16")
        result = plan(config, Resources(rates, name == "cpu", machine.devices, None))
    except (ValueError, OSError) as error:
        return f"{text}time and memory: not planned ({' '.join(str(error).split())[:300]})"
    hours = steps * result.seconds / 3600
    peak = result.peak_bytes / 2**30
    return f"{text}planned on {machine.devices} x {name}: {hours:.2f} h of training, {peak:.1f} GiB per device"


@cache  # those of a CPU are measured
def _rates(name: str, bf16: bool) -> Rates:
    return Rates.of(name, bf16)


def steps_of(config: TrainConfig) -> int:
    """The number of optimizer steps; reads the list of training clips."""
    if config.steps is not None:
        return config.steps
    split = open_data(config.data, config.caption_column).read("train", config.on_error)
    if isinstance(config, DifferenceConfig) and config.epoch_over == "captions":
        split = split.by_caption()
    batches = TrainBatches(len(split.clips), config.batch_size, config.seed)
    return math.ceil(config.epochs * batches.steps_per_epoch)
