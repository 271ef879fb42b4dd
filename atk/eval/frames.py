"""The frames of many clips in a temporary file, so that memory does not grow with their number."""

import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from atk.data import Clip
from atk.eval.embed import ClipEmbedding

_NONE = torch.empty(0, 0)


class FrameFile:
    """Frames in a temporary file, written clip by clip and then memory-mapped.

    The file is deleted when the last of the mapped tensors is.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as its frames are used)
        self._shapes: list[torch.Size] = []

    def add(self, frames: Tensor) -> None:
        """Write the frames of the next clip, `[L, D]`, float32 on the CPU.

        Raises:
            OSError: the disk is full.
        """
        with _naming_folder():
            self._file.write(frames.contiguous().numpy().data)
        self._shapes.append(frames.shape)

    def mapped(self) -> list[Tensor]:
        """The frames of each clip. The system reads them from the file when they are used."""
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
        raise OSError(f"{folder}: frames cannot be written there ({error}); TMPDIR can name another folder") from error


def with_frames_on_disk(embedded: Iterable[tuple[Clip, ClipEmbedding]]) -> list[tuple[Clip, ClipEmbedding]]:
    """The clips and their embeddings, whose frames are in a temporary file."""
    frames = FrameFile()
    clips = []
    for clip, embedding in embedded:
        frames.add(embedding.frames)
        clips.append((clip, embedding._replace(frames=_NONE)))
    mapped = zip(clips, frames.mapped(), strict=True)
    return [(clip, embedding._replace(frames=values)) for (clip, embedding), values in mapped]
