"""A plan: the memory and time of a training step, and the largest batch that fits."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from atk.device import multiplies_bf16, pick_device
from atk.ops.checks import at_least
from atk.plan.encoders import PlanConfig, trace_encoders
from atk.plan.step import USABLE, Part, Resources, Step

DEFAULT_MICRO_BATCH = 32  # for the largest batch, if the configuration has none


@dataclass(frozen=True)
class Plan:
    """A training step on one rank.

    Attributes:
        parts: weights, waveforms, encoders, embeddings, gather, op, logits, and on a CPU the allocator; they do not all
            peak at the same time.
        peak_bytes: largest number of bytes held at a time.
        seconds: duration of a step.
        einsum_bytes: what the naive einsum would hold instead of the op: its scores and their gradient.
        largest_batch: largest batch that fits into the memory of the devices, by `micro_batch` (None: encoded at once);
            empty if the memory is not given.
        facts: settings, sizes, and rates that the plan is based on.
    """

    parts: list[Part]
    peak_bytes: float
    seconds: float
    einsum_bytes: float
    largest_batch: dict[int | None, int]
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        names = {size: "at once" if size is None else f"micro_batch {size}" for size in self.largest_batch}
        largest = {names[size]: batch for size, batch in self.largest_batch.items()}
        return asdict(self) | {"largest_batch": largest}


def on_device(config: PlanConfig, device: str) -> PlanConfig:
    """A configuration with the name of its device, and with the precision that `auto` chooses there.

    Args:
        config: the configuration of a run.
        device: `auto` and `cuda` become the name of what they select here; other names are those of devices already.
    """
    if device == "auto" or device.startswith("cuda"):
        chosen = pick_device(device)
        device = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "cpu"
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if device != "cpu" or multiplies_bf16(torch.device("cpu")) else "fp32"
    return replace(config, device=device, precision=precision)


def plan(config: PlanConfig, resources: Resources, caption_tokens: int = 16) -> Plan:
    """Predict the memory and time of a training step by running its encoders on a few clips of noise.

    Args:
        config: the configuration of the run; its data are not read, and `precision` must not be "auto".
        resources: what the run gets.
        caption_tokens: tokens per caption, without special tokens; all captions are assumed to be this long.

    Raises:
        ValueError: the configuration cannot be planned, or its model cannot be loaded.
    """
    at_least("caption_tokens", caption_tokens, 1)
    if config.batch_size < resources.devices:
        raise ValueError(
            f"batch_size must be at least the number of devices, {resources.devices}; got {config.batch_size}"
        )
    encoders = trace_encoders(config, caption_tokens)
    step = Step(config, resources, encoders)
    parts, peak = step.parts(config.batch_size, config.micro_batch)
    facts = {
        "batch_size": config.batch_size,
        "micro_batch": config.micro_batch,
        "devices": resources.devices,
        "device": config.device,
        "device_memory": resources.device_memory,
        "precision": config.precision,
        "parameters": encoders.parameters,
        "frames": encoders.frames,
        "caption_tokens": encoders.valid_tokens,
        "dim": encoders.dim,
        "rates": asdict(resources.rates),
    }
    largest: dict[int | None, int] = {}
    if resources.device_memory is not None:
        for micro_batch in (config.micro_batch or DEFAULT_MICRO_BATCH, None):
            largest[micro_batch] = step.largest_batch(micro_batch, resources.device_memory)
    pairs = math.ceil(config.batch_size / resources.devices)
    seconds = sum(part.seconds for part in parts)
    return Plan(parts, peak, seconds, step.einsum_bytes(pairs), largest, facts)


def format_plan(result: Plan) -> str:
    """The plan as a table."""
    facts = result.facts
    ranks, micro_batch = facts["devices"], facts["micro_batch"]
    clips = math.ceil(facts["batch_size"] / ranks)
    at_once = micro_batch is None or micro_batch >= clips
    sizes = f"; {facts['frames']} frames per clip, {facts['caption_tokens']} tokens per caption"
    lines = [
        f"batch {facts['batch_size']:,} on {ranks} x {facts['device']}, {facts['precision']}: {clips:,} clips each, "
        + ("encoded all at once" if at_once else f"encoded {micro_batch} at a time"),
        f"{facts['parameters']:,} weights" + (sizes if facts["frames"] else ""),
        "",
        f"{'per device':38s}{'MiB':>12s}{'ms per step':>13s}",
    ]
    total = Part("total (memory: at the peak)", result.peak_bytes, result.seconds)
    lines += [
        f"{part.name:38s}{part.bytes / 2**20:12,.1f}{1e3 * part.seconds:13,.1f}" for part in (*result.parts, total)
    ]
    if result.einsum_bytes:
        lines.append(f"{'naive einsum instead of the op':38s}{result.einsum_bytes / 2**20:12,.1f}")
    return "\n".join([*lines, *_largest_batch_lines(result)])


def _largest_batch_lines(result: Plan) -> list[str]:
    if not result.largest_batch:
        return []
    memory = result.facts["device_memory"]
    fits = "fits" if result.peak_bytes <= USABLE * memory * 2**30 else "does not fit"
    lines = ["", f"{fits} into {memory:g} GiB per device, of which {USABLE:.0%} is usable; largest batch:"]
    for size, batch in result.largest_batch.items():
        name = "encoded all at once" if size is None else f"with micro_batch {size}"
        lines.append(f"  {name:36s}{f'{batch:,}' if batch else 'none':>12s}")
    return lines
