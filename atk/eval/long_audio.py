"""Recordings of any length as frames on one time axis, from overlapping windows that are read a few at a time."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atk.data import Clip, eval_loader
from atk.data.dataset import EvalDataset
from atk.eval.embed import EmbeddingModel, device_of, evaluating, progress_bar

_CONTEXT = 0.25  # of a window, on each side


class Frames(NamedTuple):
    """`frames [T, D]` of unit length, float32, and `times [T]`, the center of each in seconds, float64; on the CPU."""

    frames: Tensor
    times: Tensor


class FrameStream:
    """The frames of clips, part by part, in the order of time within each clip.

    A clip that is longer than a window is cut into windows of `clip_seconds` that overlap. Frames near the end of a
    window know only one side of their surroundings, so each frame is taken from the window in which it is farther
    from the nearer end: seams lie in the middle of the overlaps. Memory depends on the batch, not on the recordings.

    Args:
        model: embeds the windows; used in evaluation mode.
        clips: what to embed.
        clip_seconds: length of a window.
        context_seconds: audio that every frame sees on both sides at least, except at the ends of a clip, rounded to
            whole frames; windows overlap by twice as much. None = a quarter of a window.
        options: `batch_size`, `workers`, and `on_error` of `atk.data.eval_loader`.

    Attributes:
        skipped: (file name, reason) of each clip with a window that cannot be decoded, known once its turn is over.
            Parts of such a clip may have been yielded before.

    Raises:
        ValueError: the context leaves no frame of a window.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        clips: Sequence[Clip],
        clip_seconds: float,
        context_seconds: float | None = None,
        **options: Any,
    ):
        frame = model.frame_seconds
        window = int(clip_seconds / frame + 1e-6)
        context = _CONTEXT * clip_seconds if context_seconds is None else context_seconds
        self.context = int(context / frame + 1e-6)  # in frames
        if context < 0 or 2 * self.context >= max(window, 1):
            raise ValueError(
                f"context_seconds must be at least 0 and less than half of clip_seconds ({clip_seconds:g}) by a frame "
                f"({frame:g} s), got {context:g}"
            )
        self.model = model
        self.skipped: list[tuple[str, str]] = []
        stride = min((window - 2 * self.context) * frame, clip_seconds)
        self.loader = eval_loader(
            clips, sample_rate=model.sample_rate, clip_seconds=clip_seconds, stride=stride, **options
        )

    def parts(self, progress: str | None = None) -> Iterator[tuple[Clip, Frames]]:
        """Embed the clips.

        Args:
            progress: label of a progress bar; None = no bar.

        Yields:
            Each clip, with the frames of its next window that belong to no other window.

        Raises:
            AudioError: a clip cannot be decoded and the stream has `on_error="raise"`.
        """
        dataset = self.loader.loader.dataset
        assert isinstance(dataset, EvalDataset)
        device = device_of(self.model)
        bad: set[str] = set()
        clip, window = -1, 0
        with evaluating(self.model):
            for batch in progress_bar(self.loader, progress):
                self.skipped += [(name, reason) for name, reason in dict(batch.skipped).items() if name not in bad]
                bad |= {name for name, _ in batch.skipped}
                if not len(batch):
                    continue
                embedded = self._embed(batch.audio.to(device), batch.lengths.to(device))
                for index, (frames, mask) in zip(batch.clips.tolist(), embedded, strict=True):
                    clip, window = index, window + 1 if index == clip else 0
                    if dataset.clips[index].file_name not in bad:
                        yield dataset.clips[index], self._own(dataset, index, window, frames, mask)

    def clips(
        self, keep: Callable[[Tensor], Tensor] | None = None, progress: str | None = None
    ) -> Iterator[tuple[Clip, Frames]]:
        """The clips that can be decoded to their end, each as a whole.

        Args:
            keep: what to keep of the frames of a part, `[n, D]` to `[n, ...]`; None = the frames themselves.
            progress, errors: as in `parts`.
        """
        for _, group in itertools.groupby(self.parts(progress), lambda part: id(part[0])):
            clip, parts = None, []
            for clip, part in group:  # noqa: B007 (all are the same)
                parts.append(part if keep is None else part._replace(frames=keep(part.frames)))
            # The next clip has begun, so that every window of this one has been tried.
            if clip is not None and clip.file_name not in {name for name, _ in self.skipped}:
                yield clip, joined(parts)

    @torch.no_grad()
    def _embed(self, audio: Tensor, lengths: Tensor) -> list[tuple[Tensor, Tensor]]:
        embedding = self.model.embed_audio(audio, lengths)
        return list(zip(embedding.frames.float().cpu(), embedding.mask.cpu(), strict=True))

    def _own(self, dataset: EvalDataset, clip: int, window: int, frames: Tensor, mask: Tensor) -> Frames:
        """The valid frames of a window between its seams."""
        first = self.context if window else 0
        indices = mask.nonzero()[:, 0]
        start = dataset.start(clip, window)
        if window + 1 < dataset.windows(clip):
            seam = (dataset.start(clip, window + 1) - start) / self.model.frame_seconds + self.context
            indices = indices[indices < round(seam)]
        indices = indices[indices >= first]
        return Frames(frames[indices], start + (indices.double() + 0.5) * self.model.frame_seconds)


def joined(parts: Sequence[Frames]) -> Frames:
    """Frames that follow each other, as one."""
    return Frames(torch.cat([part.frames for part in parts]), torch.cat([part.times for part in parts]))
