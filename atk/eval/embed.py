"""Whole clips and captions through a trained model, without gradients."""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from atk.data import Batch, Clip, Loader


class ClipEmbedding(NamedTuple):
    """One clip, from all its windows, on the CPU: `pooled [D]` of unit length, valid `frames [L_a, D]` in order, and
    `times [L_a]`, the centre of each frame in seconds from the start of the clip."""

    pooled: Tensor
    frames: Tensor
    times: Tensor


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode; the mode it was in is restored."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def embed_clips(
    model: nn.Module,
    loader: Loader,
    skipped: list[tuple[str, str]],
    frames: Container[str] = (),
    progress: str | None = None,
) -> Iterator[tuple[Clip, ClipEmbedding]]:
    """Embed the clips of an evaluation loader, in order.

    A clip's global vector is the mean over its windows, weighted by their length, and then of unit length again.

    Args:
        model: gives `embed_audio` and `frame_seconds`; in evaluation mode.
        loader: from `atk.data.eval_loader`.
        skipped: gets (file name, reason) of each clip with a window that cannot be decoded; it is not yielded.
        frames: names of the clips whose frames are kept; the others have none.
        progress: label of a progress bar, None for none.

    Yields:
        Each clip and its embedding.

    Raises:
        AudioError: with a loader of `on_error="raise"`, a clip cannot be decoded.
    """
    dataset, bad, windows, current = loader.loader.dataset, set(), [], None
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def finished() -> Iterator[tuple[Clip, ClipEmbedding]]:
        if windows and windows[0].file not in bad:
            yield dataset.clips[current], _join(windows, model.frame_seconds, dataset.clip_seconds or 0.0)

    for batch in tqdm(loader, progress, unit="batch", leave=False, disable=None if progress else True):
        skipped += [(name, reason) for name, reason in dict(batch.skipped).items() if name not in bad]
        bad |= {name for name, _ in batch.skipped}
        if not len(batch):
            continue
        for number, window in zip(batch.clips.tolist(), _embed(model, batch.to(device), frames), strict=True):
            if number != current:  # the windows of a clip are adjacent
                yield from finished()
                windows, current = [], number
            windows.append(window)
    yield from finished()


class _Window(NamedTuple):
    file: str
    samples: int
    pooled: Tensor  # [D]
    frames: Tensor  # [L, D], the valid ones
    places: Tensor  # [L] numbers of the valid frames in the window


@torch.no_grad()
def _embed(model: nn.Module, batch: Batch, frames: Container[str]) -> list[_Window]:
    audio = model.embed_audio(batch.audio, batch.lengths)
    pooled, mask = audio.pooled.float().cpu(), audio.mask.cpu()
    windows = []
    for n, file in enumerate(batch.files):
        valid = mask[n] if file in frames else torch.zeros_like(mask[n])
        vectors = audio.frames[n][valid.to(audio.frames.device)].float().cpu()
        windows.append(_Window(file, int(batch.lengths[n]), pooled[n], vectors, valid.nonzero()[:, 0]))
    return windows


def _join(windows: Sequence[_Window], frame_seconds: float, clip_seconds: float) -> ClipEmbedding:
    weight = torch.tensor([window.samples for window in windows], dtype=torch.float32)
    pooled = F.normalize(weight @ torch.stack([window.pooled for window in windows]), dim=0)
    times = [number * clip_seconds + (window.places + 0.5) * frame_seconds for number, window in enumerate(windows)]
    return ClipEmbedding(pooled, torch.cat([window.frames for window in windows]), torch.cat(times))


@torch.no_grad()
def embed_captions(model: nn.Module, captions: Sequence[str], batch_size: int = 64) -> Tensor:
    """Global vectors of `captions`, `[N_t, D]` of unit length on the CPU; `model` is in evaluation mode."""
    blocks = [list(captions[first : first + batch_size]) for first in range(0, len(captions), batch_size)]
    return torch.cat([model.embed_text(block).pooled.float().cpu() for block in blocks])
