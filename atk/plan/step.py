"""The parts of a training step: bytes and seconds of each, for any size of batch.

K ranks share a batch of N pairs, N_r each; L_a frames, L_t tokens, D channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from atk.kernels.sequences import index_dtype
from atk.ops.checks import at_least
from atk.ops.info_nce_chunked import CHUNK_ELEMENTS
from atk.ops.max_mean_op import INDEX_BUDGET
from atk.plan.encoders import Encoders, logits_cost
from atk.plan.rates import Rates
from atk.train.contrastive import ContrastiveConfig

USABLE = 0.9  # of a device's memory: fragments, libraries and the process itself need some
MOST_CLIPS = 1 << 30  # where the search for the largest batch ends
WORKSPACE_BYTES = 64 << 20  # of winners that the backward finds again at a time
STATE_BYTES, WEIGHT_BYTES = 16, 4  # of a weight: itself, its gradient and two moments in float32; itself
UPDATE_BYTES = 40  # moved for a weight by clipping and Adam
CPU_HEAP_BYTES = 200 << 20  # freed blocks below 32 MiB that glibc's malloc was seen to keep
NORMALIZE_PASSES = 8  # over frames and tokens: to join them, to normalise them, and back
# Speed of the op's forward and of its gathered gradients over the counted rate of products (docs/kernels.md).
CPU_OP = {"fp32": (2.0, 0.5), "bf16": (1.2, 0.5)}


@dataclass(frozen=True)
class Resources:
    """What a run gets.

    Args:
        rates: of one device.
        cpu: whether that is a CPU.
        devices: ranks K, of one device each.
        device_memory: GiB of each, None = not known.
    """

    rates: Rates
    cpu: bool
    devices: int = 1
    device_memory: float | None = None

    def __post_init__(self):
        at_least("devices", self.devices, 1)
        if self.device_memory is not None and not self.device_memory > 0:
            raise ValueError(f"device_memory must be above 0 GiB, got {self.device_memory}")


@dataclass(frozen=True)
class Part:
    """A line of the plan: bytes that a rank holds at this part's peak, and seconds a step."""

    name: str
    bytes: float
    seconds: float


class Step:
    """The step of a configuration, for any size of batch."""

    def __init__(self, config: ContrastiveConfig, resources: Resources, encoders: Encoders):
        self.config, self.resources, self.encoders = config, resources, encoders
        self.ranks, self.rates = resources.devices, resources.rates
        self.aligned = encoders.frames > 0
        skip_below = config.loss.skip_below if self.aligned else 0.0
        self.logit_bytes, self.logit_moved = logits_cost(skip_below)

    def parts(self, batch: int, micro: int | None) -> tuple[list[Part], float]:
        """The parts of a step, and most bytes that are held at a time."""
        pairs = math.ceil(batch / self.ranks)
        at_once = min(micro or pairs, pairs)
        states, waveforms = self._weights(math.ceil(pairs / at_once)), self._waveforms(pairs)
        encoding, held_by_graph = self._encoding(pairs, at_once)
        embeddings, cached = self._embeddings(pairs, at_once)
        loss = [self._gather(pairs), self._op(pairs), self._logits(pairs)]
        in_loss = embeddings.bytes + held_by_graph + sum(part.bytes for part in loss)
        parts = [states, waveforms, encoding, embeddings, *loss]
        peak = states.bytes + waveforms.bytes + max(in_loss, cached + encoding.bytes)
        if self.resources.cpu:
            parts.append(Part("freed blocks that malloc keeps", min(CPU_HEAP_BYTES, encoding.bytes), 0.0))
            peak += parts[-1].bytes
        return parts, peak

    def largest_batch(self, micro: int | None) -> int:
        """The largest batch that fits, a multiple of the ranks; 0: none does."""
        limit = USABLE * self.resources.device_memory * 2**30

        def fits(pairs: int) -> bool:
            return self.parts(pairs * self.ranks, micro)[1] <= limit

        low, high = 0, 1
        while fits(high) and high < MOST_CLIPS:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low * self.ranks

    def einsum_bytes(self, pairs: int) -> float:
        """Scores [N_r, N, L_a, L_t] of the naive einsum, and their gradient."""
        encoders = self.encoders
        scores = pairs * pairs * self.ranks * encoders.frames * encoders.tokens
        return 2 * scores * encoders.itemsize

    def _others(self) -> float:
        """Share of what all ranks have that comes from others."""
        return (self.ranks - 1) / self.ranks

    def _weights(self, parts: int) -> Part:
        """Replicated: an all-reduce of gradients. Sharded: layers put together for every forward and backward."""
        weights, sent = self.encoders.parameters, 2
        held = weights * STATE_BYTES
        if self.config.shard and self.ranks > 1:
            held = held / self.ranks + self.encoders.put_together * WEIGHT_BYTES
            sent = parts * (3 if parts == 1 else 4)  # each forward, each backward, and the gradients of each part
            weights /= self.ranks
        moved = weights * UPDATE_BYTES / self.rates.bandwidth
        sent = sent * self.encoders.parameters * WEIGHT_BYTES * self._others() / self.rates.interconnect
        return Part("weights, gradients, Adam", held, moved + sent)

    def _waveforms(self, pairs: int) -> Part:
        return Part("waveforms", pairs * self.encoders.waveform_bytes, 0.0)

    def _encoding(self, pairs: int, at_once: int) -> tuple[Part, float]:
        """Encoders' forward and backward, and what their graph holds while the loss is taken."""
        cost = self.encoders.cost.of(at_once)
        forward = cost.first(self.encoders.forward)
        seconds = cost.seconds(self.rates)
        if at_once < pairs:
            seconds += forward.seconds(self.rates)
        graph = float(forward.held[-1]) if at_once == pairs else 0.0
        return Part("encoders", cost.peak(), pairs / at_once * seconds), graph

    def _embeddings(self, pairs: int, at_once: int) -> tuple[Part, float]:
        """Embeddings, unit copies and gradients; and those that are held while parts are encoded again."""
        encoders = self.encoders
        all_of_them = pairs * encoders.embedding_bytes
        cached = all_of_them * (3 if at_once < pairs else 1)  # in parts and joined; their gradient
        unit = pairs * encoders.aligned_bytes
        seconds = NORMALIZE_PASSES * all_of_them / self.rates.bandwidth
        return Part("embeddings and gradients", cached + 2 * unit, seconds), cached

    def _gather(self, pairs: int) -> Part:
        """Captions of all ranks: their tokens and global vectors, and the gradients of these."""
        if self.ranks == 1:
            return Part("gather", 0.0, 0.0)
        encoders, ring = self.encoders, self.config.gather == "ring"
        own = pairs * (encoders.valid_tokens + encoders.terms) * encoders.dim
        whole, size = own * self.ranks, encoders.itemsize
        received = self._others() * whole * (2 * size + 4 if ring else 2 * size)  # a ring's sums are in float32
        held = 2 * own * (size + 4) if ring else 3 * whole * size
        columns = 3 * 2 * self._others() * pairs * self.ranks * 4
        return Part(f"gather ({self.config.gather})", held, (received + columns) / self.rates.interconnect)

    def _op(self, pairs: int) -> Part:
        """Max-mean similarity: products, winners of frames (or tokens), gathered or multiplied gradients."""
        if not self.aligned:
            return Part("op: none", 0.0, 0.0)
        looks = list(self._looks())
        flops = 2 * pairs * pairs * self.ranks * self.encoders.frames * self.encoders.valid_tokens * self.encoders.dim
        if self.config.backend == "reference":
            moved = 4 * len(looks) * self.einsum_bytes(pairs)
            seconds = 3 * len(looks) * flops / self.rates.matmul + moved / self.rates.bandwidth
            return Part("op: einsum", len(looks) * self.einsum_bytes(pairs), seconds)
        ring = self.config.gather == "ring" and self.ranks > 1
        held = seconds = 0.0
        saved = True
        for own, other in looks:
            index = pairs * pairs * (1 if ring else self.ranks) * own * index_dtype(other).itemsize
            keeps = index <= INDEX_BUDGET
            forward, gradients = self._op_seconds(flops, other)
            seconds += forward * (1 + ring + (not keeps)) + gradients
            held += index if keeps else WORKSPACE_BYTES
            saved &= keeps
        return Part(f"op: winners {'saved' if saved else 'computed again'}", held, seconds)

    def _looks(self) -> Iterator[tuple[int, int]]:
        """Rows that look for a winner, and those among which they look, of a pair, in each direction."""
        frames, tokens = self.encoders.frames, self.encoders.valid_tokens
        if self.config.loss.direction in ("audio", "both"):
            yield frames, tokens
        if self.config.loss.direction in ("text", "both"):
            yield tokens, frames

    def _op_seconds(self, flops: float, looked_at: int) -> tuple[float, float]:
        """Of a forward, and of the gradients of both sides."""
        if not self.resources.cpu:  # gradients are products with matrices of 0 and 1
            return flops / self.rates.matmul, 2 * flops / self.rates.matmul
        forward, gathered = (speed * self.rates.matmul for speed in CPU_OP[self.config.precision])
        return flops / forward, 2 * flops / looked_at / gathered

    def _logits(self, pairs: int) -> Part:
        """Max-mean logits [N_r, N] and their gradients; those of global vectors are never held whole."""
        count, ring = pairs * pairs * self.ranks, self.config.gather == "ring" and self.ranks > 1
        rate = self.rates.single if self.resources.cpu else self.rates.matmul  # chunks are widened to float32
        products = (10 if ring else 8) * count * self.encoders.dim * self.encoders.terms / rate
        chunks = 3 * 4 * min(count, CHUNK_ELEMENTS)
        held = count * self.logit_bytes if self.aligned else 0.0
        moved = count * self.logit_moved / self.rates.bandwidth if self.aligned else 0.0
        return Part("logits", held + chunks, products + moved)
