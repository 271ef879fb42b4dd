"""What a computation costs: operations, bytes moved and bytes held, read off a small run and scaled to a large one."""

import weakref
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from atk.plan.rates import Rates


@dataclass(frozen=True)
class Cost:
    """A computation on n items, one entry for each of its operations, in order.

    Attributes:
        flops: of matrix products and convolutions.
        half: whether they are in a 16-bit type.
        moved: bytes read and written.
        drawn: random numbers.
        held: bytes that live after the operation, of what was made since the start.
    """

    flops: np.ndarray
    half: np.ndarray
    moved: np.ndarray
    drawn: np.ndarray
    held: np.ndarray

    def seconds(self, rates: Rates) -> float:
        """For each operation the longest of arithmetic, memory, random numbers and launch."""
        arithmetic = self.flops / np.where(self.half, rates.matmul, rates.single)
        limits = arithmetic, self.moved / rates.bandwidth, self.drawn / rates.random
        return float(np.maximum(np.max(limits, axis=0), rates.launch).sum())

    def peak(self) -> float:
        """Most bytes held at a time."""
        return float(self.held.max(initial=0.0))

    def first(self, count: int) -> "Cost":
        """The first `count` operations."""
        return Cost(*(getattr(self, field.name)[:count] for field in fields(self)))


class LinearCost:
    """The cost of n items, from those of `few` and `few + 1`: every operation is linear in n."""

    def __init__(self, few: int, at_few: Cost, at_one_more: Cost):
        if len(at_few.flops) != len(at_one_more.flops):
            raise ValueError(
                f"model: takes {len(at_few.flops)} operations for {few} clips and {len(at_one_more.flops)} for "
                f"{few + 1}, so its cost cannot be scaled"
            )
        self.few, self.at_few, self.at_one_more = few, at_few, at_one_more

    def of(self, items: float) -> Cost:
        """The cost of `items`."""
        more = items - self.few

        def scaled(name: str) -> np.ndarray:
            first, second = getattr(self.at_few, name), getattr(self.at_one_more, name)
            return np.maximum(first + more * (second - first), 0)

        return replace(self.at_few, **{name: scaled(name) for name in ("flops", "moved", "drawn", "held")})


class Trace(TorchDispatchMode):
    """Writes down each operation that runs in its context, backward and recomputation too."""

    def __init__(self):
        super().__init__()
        self._rows: list[tuple[float, ...]] = []
        self._alive: dict[int, weakref.ref] = {}
        self._held = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        given = {_storage(tensor) for tensor in inputs}
        new = [tensor for tensor in outputs if _storage(tensor) not in given]
        for tensor in new:
            self._hold(tensor)
        formula = flop_registry.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        moves = bool(new) or func._schema.is_mutable  # else it is a view
        moved = sum(tensor.nbytes for tensor in (*inputs, *outputs)) if moves else 0
        random = torch.Tag.nondeterministic_seeded in func.tags and not flops
        drawn = outputs[0].numel() if random else 0
        self._rows.append((flops, bool(outputs) and outputs[0].itemsize == 2, moved, drawn, self._held))
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()

        def release(_: weakref.ref) -> None:
            del self._alive[key]
            self._held -= size

        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, release)
            self._held += size

    def cost(self) -> Cost:
        """What has run so far."""
        flops, half, *others = np.array(self._rows, dtype=float).reshape(-1, len(fields(Cost))).T
        return Cost(flops, half.astype(bool), *others)


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
