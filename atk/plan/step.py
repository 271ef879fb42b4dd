"""The parts of a training step: bytes and seconds of each, for any batch size.

K ranks share a batch of N pairs, N_r each; L_a frames, L_t tokens, D channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from atk.kernels.sequences import index_dtype
from atk.ops.checks import at_least
from atk.ops.info_nce_op import LOGIT_BUDGET
from atk.ops.logit_chunks import CHUNK_ELEMENTS
from atk.ops.max_mean_op import INDEX_BUDGET
from atk.plan.encoders import Encoders, PlanConfig, logits_cost
from atk.plan.rates import Rates
from atk.train.aligned import LossConfig
from atk.train.difference import DifferenceConfig

USABLE = 0.9  # share of a device's memory; fragmentation, libraries, and the process itself need the rest
MAX_CLIPS = 1 << 30  # where the search for the largest batch ends
WORKSPACE_BYTES = 64 << 20  # of winner indices that the backward recomputes at a time
STATE_BYTES = 16  # per weight: value, gradient, and two moments in float32
WEIGHT_BYTES = 4
UPDATE_BYTES = 40  # moved per weight by clipping and Adam
CPU_HEAP_BYTES = 200 << 20  # freed blocks below 32 MiB that glibc's malloc was seen to keep
NORMALIZE_PASSES = 8  # over frames and tokens: to join and normalize them, and in the backward of both
# Speed of the op's forward and of its gathered gradients, relative to the assumed matmul rate (docs/kernels.md).
CPU_OP = {"fp32": (2.0, 0.5), "bf16": (1.2, 0.5)}


@dataclass(frozen=True)
class Resources:
    """The hardware of a run.

    Args:
        rates: rates of one device.
        cpu: whether the device is a CPU.
        devices: number of ranks K, with one device each.
        device_memory: GiB per device; None = not known.
    """

    rates: Rates
    cpu: bool
    devices: int = 1
    device_memory: float | None = None

    def __post_init__(self) -> None:
        at_least("devices", self.devices, 1)
        if self.device_memory is not None and not self.device_memory > 0:
            raise ValueError(f"device_memory must be above 0 GiB, got {self.device_memory}")


@dataclass(frozen=True)
class Part:
    """A component of the step, with its memory and time.

    Attributes:
        name: its label in the plan.
        bytes: bytes that a rank holds at the peak of this part.
        seconds: seconds per step.
    """

    name: str
    bytes: float
    seconds: float


class Step:
    """The training step of a configuration, for any batch size.

    Args:
        config: the configuration of the run.
        resources: the hardware of the run.
        encoders: traced costs of the encoders.
    """

    def __init__(self, config: PlanConfig, resources: Resources, encoders: Encoders):
        self.config = config
        self.resources = resources
        self.encoders = encoders
        self.ranks = resources.devices
        self.rates = resources.rates
        loss = None if isinstance(config, DifferenceConfig) else config.loss
        self.loss_kind = None if loss is None else loss.kind  # None: captions are not contrasted
        self.aligned_loss = loss if encoders.frames and isinstance(loss, LossConfig) else None
        self.ring = not isinstance(config, DifferenceConfig) and config.gather == "ring" and self.ranks > 1
        skip_below = 0.0 if self.aligned_loss is None else self.aligned_loss.skip_below
        self.logit_bytes, self.logit_moved = logits_cost(self.loss_kind or "info_nce", skip_below)

    def parts(self, batch: int, micro_batch: int | None) -> tuple[list[Part], float]:
        """The parts of a step, and the largest number of bytes held at a time."""
        pairs = math.ceil(batch / self.ranks)
        at_once = min(micro_batch or pairs, pairs)
        states = self._weights(math.ceil(pairs / at_once))
        waveforms = self._waveforms(pairs)
        encoding, held_by_graph = self._encoding(pairs, at_once)
        embeddings, cached = self._embeddings(pairs, at_once)
        contrasted = self.loss_kind is not None
        loss = [self._gather(pairs), self._op(pairs), self._logits(pairs)] if contrasted else []
        in_loss = embeddings.bytes + held_by_graph + sum(part.bytes for part in loss)
        parts = [states, waveforms, encoding, embeddings, *loss]
        peak = states.bytes + waveforms.bytes + max(in_loss, cached + encoding.bytes)
        if self.resources.cpu:
            parts.append(Part("freed blocks that malloc keeps", min(CPU_HEAP_BYTES, encoding.bytes), 0.0))
            peak += parts[-1].bytes
        return parts, peak

    def largest_batch(self, micro_batch: int | None, device_memory: float) -> int:
        """The largest batch that fits into `device_memory` GiB per device, a multiple of the ranks; 0 if none fits."""
        limit = USABLE * device_memory * 2**30

        def fits(pairs: int) -> bool:
            return self.parts(pairs * self.ranks, micro_batch)[1] <= limit

        low, high = 0, 1
        while fits(high) and high < MAX_CLIPS:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low * self.ranks

    def einsum_bytes(self, pairs: int) -> float:
        """Bytes of the scores [N_r, N, L_a, L_t] of the naive einsum and of their gradient."""
        encoders = self.encoders
        scores = pairs * pairs * self.ranks * encoders.frames * encoders.tokens
        return 2 * scores * encoders.itemsize

    def _remote_share(self) -> float:
        """Share of the data of all ranks that comes from other ranks."""
        return (self.ranks - 1) / self.ranks

    def _weights(self, micro_batches: int) -> Part:
        """Weights, and their traffic between ranks.

        Replicated weights need one all-reduce of the gradients; sharded ones are gathered for each forward and
        backward.
        """
        parameters = self.encoders.parameters
        updated: float = parameters
        transfers = 2
        held: float = parameters * STATE_BYTES
        if self.config.shard and self.ranks > 1:
            held = held / self.ranks + self.encoders.gathered_parameters * WEIGHT_BYTES
            # Every forward and backward, and the gradients of each micro-batch.
            transfers = micro_batches * (3 if micro_batches == 1 else 4)
            updated = parameters / self.ranks
        update_seconds = updated * UPDATE_BYTES / self.rates.bandwidth
        sent = transfers * parameters * WEIGHT_BYTES * self._remote_share()
        return Part("weights, gradients, Adam", held, update_seconds + sent / self.rates.interconnect)

    def _waveforms(self, pairs: int) -> Part:
        return Part("waveforms", pairs * self.encoders.waveform_bytes, 0.0)

    def _encoding(self, pairs: int, at_once: int) -> tuple[Part, float]:
        """Forward and backward of the encoders, and the bytes that their graph holds during the loss."""
        cost = self.encoders.cost.of(at_once)
        forward = cost.first(self.encoders.forward)
        seconds = cost.seconds(self.rates)
        if at_once < pairs and not self.encoders.additive:
            seconds += forward.seconds(self.rates)
        graph = float(forward.held[-1]) if at_once == pairs else 0.0
        return Part("encoders", cost.peak(), pairs / at_once * seconds), graph

    def _embeddings(self, pairs: int, at_once: int) -> tuple[Part, float]:
        """Embeddings, normalized copies, and gradients; and the bytes held while parts are encoded again."""
        encoders = self.encoders
        embeddings = pairs * encoders.embedding_bytes
        cached = embeddings * (3 if at_once < pairs else 1)  # in parts, joined, and the gradient of the joined ones
        normalized = pairs * encoders.aligned_bytes
        seconds = NORMALIZE_PASSES * embeddings / self.rates.bandwidth
        return Part("embeddings and gradients", cached + 2 * normalized, seconds), cached

    def _gather(self, pairs: int) -> Part:
        """Captions of all ranks: their tokens and global vectors, and the gradients of these."""
        if self.ranks == 1:
            return Part("gather", 0.0, 0.0)
        encoders = self.encoders
        ring = self.ring
        itemsize = encoders.itemsize
        local = pairs * (encoders.valid_tokens + encoders.terms) * encoders.dim
        gathered = local * self.ranks
        received = self._remote_share() * gathered * (2 * itemsize + 4 if ring else 2 * itemsize)  # ring: float32 sums
        held = 2 * local * (itemsize + 4) if ring else 3 * gathered * itemsize
        sums_columns = self.loss_kind == "info_nce"  # across ranks
        column_bytes = sums_columns * 3 * 2 * self._remote_share() * pairs * self.ranks * 4
        return Part(f"gather ({'ring' if ring else 'all'})", held, (received + column_bytes) / self.rates.interconnect)

    def _op(self, pairs: int) -> Part:
        """Max-mean similarity: products, winner indices, and gradients that are gathered or multiplied."""
        if self.aligned_loss is None:
            return Part("op: none", 0.0, 0.0)
        encoders = self.encoders
        directions = list(self._directions(self.aligned_loss.direction))
        flops = 2 * pairs * pairs * self.ranks * encoders.frames * encoders.valid_tokens * encoders.dim
        if self.config.backend == "reference":
            moved = 4 * len(directions) * self.einsum_bytes(pairs)
            seconds = 3 * len(directions) * flops / self.rates.matmul + moved / self.rates.bandwidth
            return Part("op: einsum", len(directions) * self.einsum_bytes(pairs), seconds)
        ring = self.ring
        held = seconds = 0.0
        all_saved = True
        for rows, candidates in directions:
            index_bytes = pairs * pairs * (1 if ring else self.ranks) * rows * index_dtype(candidates).itemsize
            saved = index_bytes <= INDEX_BUDGET
            forward, gradients = self._op_seconds(flops, candidates)
            seconds += forward * (1 + ring + (not saved)) + gradients
            held += index_bytes if saved else WORKSPACE_BYTES
            all_saved &= saved
        return Part(f"op: winners {'saved' if all_saved else 'recomputed'}", held, seconds)

    def _directions(self, direction: str) -> Iterator[tuple[int, int]]:
        """For each direction of max-mean similarity, the rows of a pair and the candidates for each row."""
        frames, tokens = self.encoders.frames, self.encoders.valid_tokens
        if direction in ("audio", "both"):
            yield frames, tokens
        if direction in ("text", "both"):
            yield tokens, frames

    def _op_seconds(self, flops: float, candidates: int) -> tuple[float, float]:
        """Seconds of a forward, and of the gradients of frames and tokens."""
        if not self.resources.cpu:  # gradients are products with matrices of 0 and 1
            return flops / self.rates.matmul, 2 * flops / self.rates.matmul
        forward, gathered = (speed * self.rates.matmul for speed in CPU_OP[self.config.precision])
        return flops / forward, 2 * flops / candidates / gathered

    def _logits(self, pairs: int) -> Part:
        """Max-mean logits [N_r, N] and their gradients; those of global vectors are held on a CPU, up to a budget."""
        count = pairs * pairs * self.ranks
        ring = self.ring
        rate = self.rates.single if self.resources.cpu else self.rates.matmul  # a CPU multiplies in float32
        kept = 4 * (count // self.ranks if ring else count)  # a ring holds one block at a time
        if not self.resources.cpu or kept > LOGIT_BUDGET:
            kept = 0
        per_logit = (10 if ring else 8) - (2 if kept else 0)  # a product less if the backward finds the logits
        products = per_logit * count * self.encoders.dim * self.encoders.terms / rate
        chunks = 3 * 4 * min(count, CHUNK_ELEMENTS) + kept * self.encoders.terms
        matrices = 0 if self.aligned_loss is None else count
        held = matrices * self.logit_bytes
        moved = matrices * self.logit_moved / self.rates.bandwidth
        return Part("logits", held + chunks, products + moved)
