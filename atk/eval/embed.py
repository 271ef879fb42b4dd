"""Embed clips and captions with a trained model, without gradients."""

from collections.abc import Container, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.data import Batch, Clip, EvalDataset, Loader, eval_loader
from atk.data.captions import OnError
from atk.data.progress import progress_bar
from atk.data.sets import read_all
from atk.models.clap import AudioEmbedding, TextEmbedding
from atk.ops.checks import at_least, strings


class EmbeddingModel(Protocol):
    """A model with a shared space for audio and text, such as `atk.models.clap.CLAP`."""

    training: bool

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        ...

    @property
    def frame_seconds(self) -> float:
        """Duration of one frame of `embed_audio`, in seconds."""
        ...

    def embed_audio(self, audio: Tensor, lengths: Tensor) -> AudioEmbedding:
        """Embed waveforms `[N, S]` with `lengths [N]` valid samples; vectors have unit length."""
        ...

    def embed_text(self, captions: list[str]) -> TextEmbedding:
        """Embed captions; vectors have unit length."""
        ...

    def log_mel(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel spectrogram `[N, frames, mel_bins]` of waveforms; only `atk.eval.figures.align` needs it."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `nn.Module.parameters`."""
        ...

    def eval(self) -> object:
        """As `nn.Module.eval`."""
        ...

    def train(self, mode: bool = True) -> object:
        """As `nn.Module.train`."""
        ...


class ClipEmbedding(NamedTuple):
    """Embedding of one clip, from all its windows, on the CPU: global vector `pooled [D]` of unit length, valid
    `frames [L_a, D]` in order, and `times [L_a]`, the center of each frame in seconds from the start of the clip."""

    pooled: Tensor
    frames: Tensor
    times: Tensor


class CaptionEmbedding(NamedTuple):
    """Embedding of one caption, on the CPU: global vector `pooled [D]` of unit length, the `tokens [L_t, D]` without
    special tokens, and the characters of the caption that each of them stands for, `words` and `offsets [L_t, 2]`."""

    pooled: Tensor
    tokens: Tensor
    words: list[str]
    offsets: Tensor


class _AllNames(Container[str]):
    """Contains every name."""

    def __contains__(self, _: object) -> bool:
        return True


ALL_FILES = _AllNames()


@contextmanager
def evaluating(model: EmbeddingModel | nn.Module) -> Generator[None, None, None]:
    """Context manager that puts `model` in evaluation mode and restores its previous mode on exit."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def device_of(model: EmbeddingModel | nn.Module) -> torch.device:
    """The device of the model's parameters, or the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def embed_clips(
    model: EmbeddingModel,
    loader: Loader,
    skipped: list[tuple[str, str]],
    frames: Container[str] = (),
    progress: str | None = None,
) -> Iterator[tuple[Clip, ClipEmbedding]]:
    """Embed the clips of an evaluation loader, in order.

    The global vector of a clip is the mean over its windows, weighted by their lengths and scaled back to unit length.

    Args:
        model: in evaluation mode.
        loader: output of `atk.data.eval_loader`.
        skipped: receives (file name, reason) of each clip with a window that cannot be decoded. Such clips are not
            yielded.
        frames: file names of the clips to keep frames of, or `ALL_FILES`; the embeddings of other clips have no frames.
        progress: label of a progress bar; None = no bar.

    Yields:
        Each clip and its embedding.

    Raises:
        AudioError: a clip cannot be decoded and the loader has `on_error="raise"`.
    """
    dataset = loader.loader.dataset
    assert isinstance(dataset, EvalDataset), "the loader must come from eval_loader"
    device = device_of(model)
    bad: set[str] = set()
    windows: list[_Window] = []  # of the current clip
    current = -1

    def finish_clip() -> Iterator[tuple[Clip, ClipEmbedding]]:
        if windows and windows[0].file not in bad:
            starts = [dataset.start(current, window) for window in range(len(windows))]
            yield dataset.clips[current], _join(windows, model.frame_seconds, starts)

    for batch in progress_bar(loader, progress, unit="batch"):
        skipped += [(name, reason) for name, reason in dict(batch.skipped).items() if name not in bad]
        bad |= {name for name, _ in batch.skipped}
        if not len(batch):
            continue
        for clip, window in zip(batch.clips.tolist(), _embed(model, batch.to(device), frames), strict=True):
            if clip != current:  # the windows of a clip are adjacent
                yield from finish_clip()
                windows = []
                current = clip
            windows.append(window)
    yield from finish_clip()


def embed_all(
    model: EmbeddingModel,
    folder: str | Path,
    skipped: list[tuple[str, str]],
    *,
    frames: Container[str] = (),
    progress: str | None = None,
    on_error: OnError = "skip",
    **options: Any,
) -> Iterator[tuple[Clip, ClipEmbedding]]:
    """Embed all audio of a folder or of a data set in another layout.

    Args:
        model, skipped, frames, progress: as in `embed_clips`.
        folder, on_error: as in `atk.data.sets.read_all`.
        options: `clip_seconds`, `batch_size`, and `workers` of `atk.data.eval_loader`.

    Yields:
        Each clip and its embedding.

    Raises:
        FileNotFoundError: `folder` does not exist.
        ValueError: no file in the folder can be read.
        AudioError: a file cannot be read and `on_error="raise"`.
    """
    files = read_all(folder, on_error)
    loader = eval_loader(files.clips, sample_rate=model.sample_rate, on_error=on_error, **options)
    skipped += files.skipped
    count = 0
    with evaluating(model):
        for embedded in embed_clips(model, loader, skipped, frames, progress):
            yield embedded
            count += 1
    if not count:
        raise ValueError(f"{folder}: none of its {len(skipped)} audio files can be decoded")


class _Window(NamedTuple):
    file: str
    samples: int
    pooled: Tensor  # [D]
    frames: Tensor  # [L, D], only the valid frames
    indices: Tensor  # [L], indices of the valid frames in the window


@torch.no_grad()
def _embed(model: EmbeddingModel, batch: Batch, frames: Container[str]) -> list[_Window]:
    audio = model.embed_audio(batch.audio, batch.lengths)
    pooled = audio.pooled.float().cpu()
    mask = audio.mask.cpu()
    windows = []
    for n, file in enumerate(batch.files):
        valid = mask[n] if file in frames else torch.zeros_like(mask[n])
        vectors = audio.frames[n][valid.to(audio.frames.device)].float().cpu()
        windows.append(_Window(file, int(batch.lengths[n]), pooled[n], vectors, valid.nonzero()[:, 0]))
    return windows


def _join(windows: Sequence[_Window], frame_seconds: float, starts: Sequence[float]) -> ClipEmbedding:
    """Combine the windows of a clip; `starts` are in seconds."""
    weight = torch.tensor([window.samples for window in windows], dtype=torch.float32)
    pooled = F.normalize(weight @ torch.stack([window.pooled for window in windows]), dim=0)
    times = [start + (window.indices + 0.5) * frame_seconds for start, window in zip(starts, windows, strict=True)]
    return ClipEmbedding(pooled, torch.cat([window.frames for window in windows]), torch.cat(times))


@torch.no_grad()
def embed_captions(model: EmbeddingModel, captions: Sequence[str], batch_size: int = 64) -> Tensor:
    """Global vectors of captions, `[N_t, D]` float32 of unit length, on the CPU.

    Args:
        model: in evaluation mode.
        captions: N_t captions, at least one.
        batch_size: captions to embed at a time.

    Raises:
        TypeError: `captions` is not a list of strings.
        ValueError: there is no caption.
    """
    strings("captions", captions)
    at_least("the number of captions", len(captions), 1)
    batches = [list(captions[first : first + batch_size]) for first in range(0, len(captions), batch_size)]
    return torch.cat([model.embed_text(batch).pooled.float().cpu() for batch in batches])


@torch.no_grad()
def embed_tokens(model: EmbeddingModel, captions: Sequence[str], batch_size: int = 64) -> list[CaptionEmbedding]:
    """Embed captions with their tokens. Arguments and errors are those of `embed_captions`."""
    strings("captions", captions)
    at_least("the number of captions", len(captions), 1)
    embedded = []
    for first in range(0, len(captions), batch_size):
        batch = list(captions[first : first + batch_size])
        text = model.embed_text(batch)
        pooled, tokens = text.pooled.float().cpu(), text.tokens.cpu()
        mask, offsets = text.mask.cpu(), text.offsets.cpu()
        for row, caption in enumerate(batch):
            spans = offsets[row][mask[row]]
            words = [caption[start:end] for start, end in spans.tolist()]
            embedded.append(CaptionEmbedding(pooled[row], tokens[row][mask[row]].float(), words, spans))
    return embedded
