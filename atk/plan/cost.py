"""The cost of a computation: operations, bytes moved, and bytes alive, traced on a small run and extrapolated."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from atk.plan.rates import Rates


@dataclass(frozen=True)
class Cost:
    """The cost of a computation, with one entry per operation, in order.

    Attributes:
        flops: floating-point operations of matrix products and convolutions.
        half: whether they are in a 16-bit dtype.
        moved: bytes read and written.
        drawn: random numbers drawn.
        held: bytes alive after the operation, of the memory allocated since the start.
    """

    flops: npt.NDArray[np.float64]
    half: npt.NDArray[np.bool_]
    moved: npt.NDArray[np.float64]
    drawn: npt.NDArray[np.float64]
    held: npt.NDArray[np.float64]

    def seconds(self, rates: Rates) -> float:
        """The total time, if each operation takes the longest of arithmetic, memory, random numbers, and launch."""
        arithmetic = self.flops / np.where(self.half, rates.matmul, rates.single)
        limits = np.stack([arithmetic, self.moved / rates.bandwidth, self.drawn / rates.random])
        return float(np.maximum(limits.max(axis=0), rates.launch).sum())

    def peak(self) -> float:
        """The largest number of bytes alive at a time."""
        return float(self.held.max(initial=0.0))

    def first(self, count: int) -> "Cost":
        """The cost of the first `count` operations."""
        return Cost(*(getattr(self, field.name)[:count] for field in fields(self)))


class LinearCost:
    """The cost of n items, extrapolated from those of `count` and `count + 1`: every operation is linear in n.

    Args:
        count: a small number of items.
        cost: cost of `count` items.
        next_cost: cost of `count + 1` items.

    Raises:
        ValueError: the two computations have different numbers of operations.
    """

    def __init__(self, count: int, cost: Cost, next_cost: Cost):
        if len(cost.flops) != len(next_cost.flops):
            raise ValueError(
                f"model: runs {len(cost.flops)} operations for {count} clips and {len(next_cost.flops)} for "
                f"{count + 1}, so its cost cannot be extrapolated"
            )
        self.count = count
        self.cost = cost
        self.next_cost = next_cost

    def of(self, items: float) -> Cost:
        """The cost of `items` items."""
        added = items - self.count

        def scaled(name: str) -> npt.NDArray[np.float64]:
            base, with_one_more = getattr(self.cost, name), getattr(self.next_cost, name)
            return np.maximum(base + added * (with_one_more - base), 0)

        return replace(
            self.cost, flops=scaled("flops"), moved=scaled("moved"), drawn=scaled("drawn"), held=scaled("held")
        )


class Trace(TorchDispatchMode):
    """A context that records every operation that runs in it, including backward and recomputation."""

    def __init__(self):
        super().__init__()
        self._rows: list[tuple[float, ...]] = []
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._held = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        outputs = _tensors(result)
        input_storages = {_storage(tensor) for tensor in inputs}
        new = [tensor for tensor in outputs if _storage(tensor) not in input_storages]
        for tensor in new:
            self._hold(tensor)
        formula = flop_registry.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        is_view = not new and not func._schema.is_mutable
        moved = 0 if is_view else sum(tensor.nbytes for tensor in (*inputs, *outputs))
        is_random = torch.Tag.nondeterministic_seeded in func.tags and not flops
        drawn = outputs[0].numel() if is_random else 0
        half = bool(outputs) and outputs[0].itemsize == 2
        self._rows.append((flops, half, moved, drawn, self._held))
        return result

    def _hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()

        def release(_: object) -> None:
            del self._alive[key]
            self._held -= size

        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, release)
            self._held += size

    def cost(self) -> Cost:
        """The cost of what has run so far."""
        flops, half, *others = np.array(self._rows, dtype=float).reshape(-1, len(fields(Cost))).T
        return Cost(flops, half.astype(bool), *others)


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
