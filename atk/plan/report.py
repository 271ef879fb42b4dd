"""A plan: what a step of a configuration takes, and the largest batch that fits."""

import math
from dataclasses import asdict, dataclass

from atk.ops.checks import at_least
from atk.plan.encoders import trace_encoders
from atk.plan.step import USABLE, Part, Resources, Step
from atk.train.contrastive import ContrastiveConfig

USUAL_MICRO_BATCH = 32  # for the largest batch where none is asked for


@dataclass(frozen=True)
class Plan:
    """A step on one rank.

    Attributes:
        parts: weights, waveforms, encoders, embeddings, gather, op, logits, and on a CPU the allocator; not all are
            at their peak together.
        peak_bytes: most that is held at a time.
        seconds: a step.
        einsum_bytes: what the naive einsum would hold in the op's place, its scores and their gradient.
        largest_batch: that fits into the devices' memory, by `micro_batch` (None: encoded at once); empty where the
            memory is not known.
        facts: what the plan was made for.
    """

    parts: list[Part]
    peak_bytes: float
    seconds: float
    einsum_bytes: float
    largest_batch: dict[int | None, int]
    facts: dict

    def to_dict(self) -> dict:
        """For JSON."""
        names = {size: "at once" if size is None else f"micro_batch {size}" for size in self.largest_batch}
        largest = {names[size]: batch for size, batch in self.largest_batch.items()}
        return asdict(self) | {"largest_batch": largest}


def plan(config: ContrastiveConfig, resources: Resources, caption_tokens: int = 16) -> Plan:
    """Memory and time of a step of `config`, by running its encoders on a few clips of noise.

    Args:
        config: as for training; its data are not read, and `precision` must not be "auto".
        resources: what it is to run on.
        caption_tokens: tokens of a caption, without special ones; captions are taken to be all that long.

    Raises:
        ValueError: the configuration cannot be planned, or its model cannot be loaded.
    """
    at_least("caption_tokens", caption_tokens, 1)
    if config.batch_size < resources.devices:
        raise ValueError(f"batch_size must be at least devices, {resources.devices}, got {config.batch_size}")
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
    pairs = math.ceil(config.batch_size / resources.devices)
    largest = {}
    if resources.device_memory is not None:
        largest = {micro: step.largest_batch(micro) for micro in (config.micro_batch or USUAL_MICRO_BATCH, None)}
    seconds = sum(part.seconds for part in parts)
    return Plan(parts, peak, seconds, step.einsum_bytes(pairs), largest, facts)


def format_plan(result: Plan) -> str:
    """The plan as a table."""
    facts = result.facts
    ranks, micro = facts["devices"], facts["micro_batch"]
    each = math.ceil(facts["batch_size"] / ranks)
    lines = [
        f"batch {facts['batch_size']:,} on {ranks} x {facts['device']}, {facts['precision']}: {each:,} clips each, "
        + ("encoded at once" if micro is None or micro >= each else f"encoded {micro} at a time"),
        f"{facts['parameters']:,} weights; {facts['frames']} frames a clip, {facts['caption_tokens']} tokens a caption",
        "",
        f"{'on each device':38s}{'MiB':>12s}{'ms a step':>12s}",
    ]
    whole = Part("together, at the highest moment", result.peak_bytes, result.seconds)
    for part in (*result.parts, whole):
        lines.append(f"{part.name:38s}{part.bytes / 2**20:12,.1f}{1e3 * part.seconds:12,.1f}")
    lines.append(f"{'an einsum in place of the op':38s}{result.einsum_bytes / 2**20:12,.1f}")
    if result.largest_batch:
        memory = facts["device_memory"]
        fits = "fits" if result.peak_bytes <= USABLE * memory * 2**30 else "does not fit"
        lines += [
            "",
            f"in {memory:g} GiB a device, of which {USABLE:.0%} are counted on, it {fits}; the largest batch:",
        ]
        for size, batch in result.largest_batch.items():
            name = "encoded at once" if size is None else f"with micro_batch {size}"
            lines.append(f"  {name:36s}{f'{batch:,}' if batch else 'none':>12s}")
    return "\n".join(lines)
