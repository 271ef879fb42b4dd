"""A model to use: audio and text of any form embedded and compared."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from atk.data import eval_loader
from atk.device import pick_device
from atk.eval.caption_windows import caption_clip
from atk.eval.embed import (
    ALL_FILES,
    CaptionEmbedding,
    ClipEmbedding,
    embed_captions,
    embed_clips,
    embed_tokens,
    evaluating,
)
from atk.eval.inputs import Audio, Waveform, as_clip, as_list
from atk.eval.long_audio import Frames, FrameStream, joined
from atk.eval.scores import Score, similarities
from atk.eval.sources import LongClips, window_seconds
from atk.models import from_pretrained
from atk.models.caption_model import CaptionModel
from atk.models.clap import CLAP
from atk.ops.checks import at_least


class Embedder:
    """A contrastive model that embeds files, waveforms, and texts; `atk.load` creates it.

    Args:
        model: the model, on its device.
        clip_seconds: longer audio is embedded in windows of this length, which are averaged; None = as a whole.
    """

    def __init__(self, model: CLAP, clip_seconds: float | None):
        self.model = model.eval()
        self.clip_seconds = clip_seconds

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        tokenizer: str | None = None,
        long_clips: LongClips = "windows",
        clip_seconds: float | None = None,
    ) -> "Embedder":
        """Load a model. Arguments and errors are those of `atk.load`."""
        target = pick_device(device)
        model = from_pretrained(source, tokenizer)
        if not isinstance(model, CLAP):
            raise ValueError(f"{source} holds a {type(model).__name__}, which embeds no text; a CLAP is needed")
        seconds = window_seconds(source, model, long_clips, clip_seconds)
        return cls(model.to(target, dtype or torch.float32), seconds)

    @property
    def dim(self) -> int:
        """Width D of the shared space."""
        return self.model.dim

    @property
    def sample_rate(self) -> int:
        """Sample rate of the model, in Hz. Audio with other rates is resampled."""
        return self.model.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Duration of a frame, in seconds."""
        return self.model.frame_seconds

    @overload
    def embed_audio(
        self,
        audio: Audio,
        sample_rate: int | None = None,
        *,
        frames: Literal[False] = False,
        batch_size: int = 32,
        workers: int = 0,
        progress: str | None = None,
    ) -> Tensor: ...

    @overload
    def embed_audio(
        self,
        audio: Audio,
        sample_rate: int | None = None,
        *,
        frames: Literal[True],
        batch_size: int = 32,
        workers: int = 0,
        progress: str | None = None,
    ) -> list[ClipEmbedding]: ...

    def embed_audio(
        self,
        audio: Audio,
        sample_rate: int | None = None,
        *,
        frames: bool = False,
        batch_size: int = 32,
        workers: int = 0,
        progress: str | None = None,
    ) -> Tensor | list[ClipEmbedding]:
        """Embed N clips.

        Args:
            audio: paths of audio files, or waveforms `[S]`, floating point with full scale +-1, or a list that mixes
                them; a single path or waveform; or waveforms of equal length `[N, S]`.
            sample_rate: sample rate of the waveforms, in Hz; None = that of the model. Files have their own.
            frames: also return the frames and their times.
            batch_size: windows to embed at a time.
            workers: number of processes that read audio; 0 = read in this process.
            progress: label of a progress bar; None = no bar.

        Returns:
            Global vectors `[N, D]`, float32 of unit length, on the CPU. With `frames`, a list of embeddings, each with
            `pooled [D]`, `frames [L_a, D]`, and `times [L_a]`, the center of each frame in seconds.

        Raises:
            AudioError: a file or waveform cannot be used.
            TypeError, ValueError: an argument has the wrong type, shape, or range; there is no clip; or frames are
                asked for although the model was loaded with `long_clips` other than "windows".
        """
        if frames:
            self._check_windows()
        embedded = self._embed(audio, sample_rate, frames, batch_size, workers, progress)
        return embedded if frames else torch.stack([clip.pooled for clip in embedded])

    def _embed(
        self, audio: Audio, sample_rate: int | None, frames: bool, batch_size: int, workers: int, progress: str | None
    ) -> list[ClipEmbedding]:
        items = as_list(audio)
        at_least("the number of clips", len(items), 1)
        loader = eval_loader(
            [as_clip(index, item, self._rate(sample_rate)) for index, item in enumerate(items)],
            sample_rate=self.sample_rate,
            clip_seconds=self.clip_seconds,
            batch_size=batch_size,
            workers=workers,
            on_error="raise",
        )
        with evaluating(self.model):
            embedded = embed_clips(self.model, loader, [], ALL_FILES if frames else (), progress)
            return [clip for _, clip in embedded]

    def _rate(self, given: int | None) -> int:
        if given is None:
            return self.sample_rate
        at_least("sample_rate", given, 1)
        return given

    def _check_windows(self) -> None:
        if getattr(self.model.audio_encoder, "long_clips", "start") != "start":
            raise ValueError("frames: they have times only if long clips are embedded in windows; load with long_clips")

    def frames(self, audio: str | Path | Waveform, sample_rate: int | None = None, **options: Any) -> Frames:
        """Embed the frames of a recording of any length: `iter_frames`, joined.

        Returns:
            `frames [T, D]` of unit length, float32, and `times [T]`, their centers in seconds, float64; on the CPU.
        """
        return joined(list(self.iter_frames(audio, sample_rate, **options)))

    def iter_frames(
        self,
        audio: str | Path | Waveform,
        sample_rate: int | None = None,
        *,
        context_seconds: float | None = None,
        batch_size: int = 32,
        workers: int = 0,
        progress: str | None = None,
    ) -> Iterator[Frames]:
        """Embed the frames of a recording of any length, part by part, in memory that does not grow with the length.

        Args:
            audio, sample_rate: one recording, as in `embed_audio`. Files are read window by window.
            context_seconds: as in `atk.eval.long_audio.FrameStream`.
            batch_size, workers, progress: as in `embed_audio`.

        Yields:
            The next frames, as `frames` returns them.

        Raises:
            AudioError, TypeError, ValueError: as for `embed_audio`, or there is too much context for a window.
        """
        self._check_windows()
        clip = as_clip(0, audio, self._rate(sample_rate))
        seconds = self.clip_seconds or clip.seconds
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "on_error": "raise"}
        for _, part in FrameStream(self.model, [clip], seconds, context_seconds, **options).parts(progress):
            yield part

    def caption(
        self, audio: str | Path | Waveform, sample_rate: int | None = None, *, references: Audio = (), **options: Any
    ) -> list[tuple[float, float, str]]:
        """Describe a clip, or what it contains that reference clips do not. Needs a unified model.

        Args:
            audio, sample_rate: one recording, as in `embed_audio`.
            references: clips whose sounds the captions leave out, each as in `embed_audio`.
            options: `beams`, `generation`, `repeated`, and `common` of `atk.eval.captioning.caption_file`.

        Returns:
            (start, end, caption) of each window of the clip; times in seconds.

        Raises:
            AudioError: a file or waveform cannot be used.
            TypeError, ValueError: an argument has the wrong type, shape, or range, or the model cannot caption.
        """
        model = self.model
        if not isinstance(model, CaptionModel):
            raise ValueError("caption: this model has no decoder; a unified model is needed")
        rate = self._rate(sample_rate)
        clip, *given = (as_clip(index, item, rate) for index, item in enumerate([audio, *as_list(references)]))
        return caption_clip(model, clip, given, clip_seconds=self.clip_seconds, **options)

    @overload
    def embed_text(
        self, texts: str | Sequence[str], *, tokens: Literal[False] = False, batch_size: int = 64
    ) -> Tensor: ...

    @overload
    def embed_text(
        self, texts: str | Sequence[str], *, tokens: Literal[True], batch_size: int = 64
    ) -> list[CaptionEmbedding]: ...

    def embed_text(
        self, texts: str | Sequence[str], *, tokens: bool = False, batch_size: int = 64
    ) -> Tensor | list[CaptionEmbedding]:
        """Embed N texts.

        Args:
            texts: the texts, or a single one.
            tokens: also return the tokens and the characters that they stand for.
            batch_size: texts to embed at a time.

        Returns:
            Global vectors `[N, D]`, float32 of unit length, on the CPU. With `tokens`, a list of embeddings, each with
            `pooled [D]`, `tokens [L_t, D]`, `words`, and `offsets [L_t, 2]`.

        Raises:
            TypeError: `texts` are not strings.
            ValueError: there is no text.
        """
        texts = [texts] if isinstance(texts, str) else texts
        with evaluating(self.model):
            return (embed_tokens if tokens else embed_captions)(self.model, texts, batch_size)

    def similarity(
        self,
        audio: Audio | Sequence[ClipEmbedding],
        text: str | Sequence[str] | Sequence[CaptionEmbedding],
        *,
        score: Score = "global",
        sample_rate: int | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Similarity of N_a clips and N_t texts.

        Args:
            audio: clips, as in `embed_audio`, or what it returned with `frames=True`.
            text: texts, as in `embed_text`, or what it returned with `tokens=True`.
            score: "global", the cosine of the global vectors; "max_mean", the frame-token similarity (3.6); or "both",
                the mean of the two.
            sample_rate, batch_size: as in `embed_audio`.

        Returns:
            `[N_a, N_t]`, float32, on the CPU.

        Raises:
            AudioError, TypeError, ValueError: as for `embed_audio` and `embed_text`.
        """
        if _all_of(audio, ClipEmbedding):
            clips = cast("Sequence[ClipEmbedding]", audio)
        else:
            clips = self._embed(cast("Audio", audio), sample_rate, score != "global", batch_size, 0, None)
        if _all_of(text, CaptionEmbedding):
            captions = cast("Sequence[CaptionEmbedding]", text)
        else:
            captions = self.embed_text(cast("Sequence[str]", text), tokens=True)
        return similarities(clips, captions, score)


def _all_of(values: Any, kept: type) -> bool:
    return isinstance(values, Sequence) and len(values) > 0 and all(isinstance(value, kept) for value in values)
