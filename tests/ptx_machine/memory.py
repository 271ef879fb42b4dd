"""Global memory, made of the tensors of a launch, and the shared memory of a CTA."""

import ctypes

import numpy as np

from ptx_machine.shadow import GridShadow, WarpShadow, as_rows

u1, i8 = np.dtype("u1"), np.dtype("i8")
_SPACING = 44  # bits of an address within an allocation, far more than any tensor needs


class SharedMemory:
    """The shared memory of one CTA. Its addresses begin at `BASE`."""

    BASE = 1024

    def __init__(self, size: int):
        self.size, self.end = size, self.BASE + size
        memory = np.full(self.BASE + size + -size % 1024 + 1024, 255, u1)
        self.views = {width: memory.view(f"u{width}") for width in (1, 2, 4, 8)}
        self.shadow = WarpShadow(len(memory), initialized=False)

    def rows(self, size: int) -> np.ndarray:
        """All bytes as rows of `size`."""
        return as_rows(self.views[1], size)


class Allocation:
    """The memory of a tensor.

    Addresses are synthetic: the index of the allocation in the upper bits and the low 12 bits of the real address, so
    that an access outside of the tensor is outside of all tensors.
    """

    def __init__(self, index: int, name: str, pointer: int, size: int):
        self.name, self.size, self.pointer = name, size, pointer
        self.base = (index + 1 << _SPACING) + (pointer & 0xFFF) + 0x1000
        self.bytes = np.frombuffer((ctypes.c_ubyte * size).from_address(pointer), u1) if size else np.zeros(0, u1)
        self.views = {
            width: self.bytes[: size // width * width].view(f"u{width}")
            for width in (1, 2, 4, 8)
            if pointer % width == 0
        }
        self.shadow, self.shadow_offset = GridShadow(0), 0  # replaced, because tensors that overlap share a shadow

    def gather(self, offsets: np.ndarray, size: int) -> np.ndarray:
        """The bytes [accesses, size] at these offsets."""
        return self.bytes[offsets[:, None] + np.arange(size)]


class GlobalMemory:
    """The tensors of one launch, given as {name: (pointer, bytes)}."""

    def __init__(self, tensors: dict[str, tuple[int, int]]):
        self.allocations = [Allocation(index, name, *place) for index, (name, place) in enumerate(tensors.items())]
        for overlapping in self._overlapping():
            start = overlapping[0].pointer
            shadow = GridShadow(max(tensor.pointer + tensor.size for tensor in overlapping) - start)
            for tensor in overlapping:
                tensor.shadow, tensor.shadow_offset = shadow, tensor.pointer - start

    def _overlapping(self) -> list[list[Allocation]]:
        """Groups of tensors that share memory."""
        groups, end = [], -1
        for tensor in sorted((tensor for tensor in self.allocations if tensor.size), key=lambda tensor: tensor.pointer):
            if tensor.pointer >= end:
                groups.append([])
            groups[-1].append(tensor)
            end = max(end, tensor.pointer + tensor.size)
        return groups

    def resolve(self, addresses: np.ndarray, size: int) -> tuple[list[tuple], np.ndarray | None]:
        """Accesses of `size` bytes as (allocation, accesses, offsets), and a mask of those outside of all tensors.

        Accesses are indices or a slice, and the mask is None if nothing is outside.
        """
        indices = (addresses >> np.uint64(_SPACING)).view(i8) - 1
        present = np.unique(indices)
        inside, outside = [], np.ones(len(addresses), bool)
        for index in present[(present >= 0) & (present < len(self.allocations))]:
            allocation = self.allocations[index]
            offsets = (addresses - np.uint64(allocation.base)).view(i8)
            valid = (indices == index) & (offsets >= 0) & (offsets <= allocation.size - size)
            if valid.all():
                return [(allocation, slice(None), offsets)], None
            if valid.any():
                inside.append((allocation, np.flatnonzero(valid), offsets[valid]))
                outside &= ~valid
        return inside, outside if outside.any() else None

    def describe(self, address: int) -> str:
        """An address outside of all tensors, in words."""
        index = (address >> _SPACING) - 1
        if 0 <= index < len(self.allocations):
            allocation = self.allocations[index]
            return f"byte {address - allocation.base} of {allocation.name}, which has {allocation.size}"
        return f"address {address:#x}, which belongs to no tensor"
