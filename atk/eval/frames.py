"""The embeddings of many clips in a temporary file, so that memory does not grow with their number."""

import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from atk.data import Clip
from atk.eval.embed import ClipEmbedding


class TensorFile:
    """Embeddings in a temporary file, written one after the other and then memory-mapped.

    The file is deleted when the last of the mapped tensors is.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as its tensors are used)
        self._shapes: list[torch.Size] = []

    def add(self, values: Tensor) -> None:
        """Write the next tensor, float32 on the CPU.

        Raises:
            OSError: the disk is full.
        """
        with _naming_folder():
            self._file.write(values.contiguous().numpy().data)
        self._shapes.append(values.shape)

    def mapped(self) -> list[Tensor]:
        """The tensors in order. The system reads them from the file when they are used."""
        with _naming_folder():
            self._file.flush()
        sizes = [shape.numel() for shape in self._shapes]
        if not sum(sizes):
            return [torch.zeros(shape) for shape in self._shapes]
        values = torch.from_numpy(np.memmap(self._file, np.float32, "c"))  # "c": private, as tensors must be writable
        return [part.view(shape) for part, shape in zip(values.split(sizes), self._shapes, strict=True)]


@contextmanager
def _naming_folder() -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise OSError(
            f"{folder}: embeddings cannot be written there ({error}); TMPDIR can name another folder"
        ) from error


def on_disk(embedded: Iterable[tuple[Clip, ClipEmbedding]]) -> list[tuple[Clip, ClipEmbedding]]:
    """The clips and their embeddings, which are in a temporary file."""
    file = TensorFile()
    clips = []
    for clip, embedding in embedded:
        for values in embedding:  # also the small ones: the heap could not reuse the memory of frames between them
            file.add(values)
        clips.append(clip)
    values = iter(file.mapped())
    return [(clip, ClipEmbedding(*tensors)) for clip, *tensors in zip(clips, values, values, values, strict=True)]
