"""Evaluate a model on a data folder: retrieval both ways, twins, alignment, tags, and zero-shot classification."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atk.data import eval_loader, open_data
from atk.data.captions import OnError
from atk.data.sets import Data
from atk.data.side_files import Event, read_events, read_if_ours, read_twins
from atk.eval.alignment import alignment_score
from atk.eval.embed import (
    ALL_FILES,
    ClipEmbedding,
    EmbeddingModel,
    embed_captions,
    embed_clips,
    embed_tokens,
    evaluating,
)
from atk.eval.frames import on_disk
from atk.eval.metrics import accuracy, chance_metrics, retrieval_metrics, tag_metrics
from atk.eval.scores import SCORES, Score, similarities
from atk.eval.tags import TagScores, prompts_from, tag_scores
from atk.eval.twins import score_twins
from atk.ops.checks import one_of

TEMPLATE = "the sound of {tag}"
_TEXTS = 1024  # whose tokens are kept at a time


@dataclass(frozen=True)
class SplitEmbedding:
    """Embedding of a split of a data folder, on the CPU; that of `EvalSplit` is in a temporary file.

    Args:
        folder: data folder.
        files: file names of the N_a clips, as in the split's CSV.
        captions: captions of each clip.
        pooled: global vectors of the clips `[N_a, D]`.
        clips: embeddings with frames of the clips in twins.csv or events.csv, or of all clips, by file name.
        twins: pairs of embedded clips in twins.csv.
        events: events of embedded clips in events.csv.
        skipped: (name, reason) of each file or row that could not be used.
        split: name of the split.
    """

    folder: Path
    files: list[str]
    captions: list[tuple[str, ...]]
    pooled: Tensor
    clips: dict[str, ClipEmbedding]
    twins: list[tuple[str, str]]
    events: list[Event]
    skipped: list[tuple[str, str]]
    split: str = ""

    @property
    def clip_of_caption(self) -> Tensor:
        """The clip of each caption, int64 `[N_t]`."""
        return torch.arange(len(self.files)).repeat_interleave(torch.tensor(list(map(len, self.captions))))


class EvalSplit:
    """A split of a data folder that can be embedded repeatedly, as validation does.

    Args:
        data: data set, or several, of which the first that has the split is used (see `atk.data.open_data`).
        split: "train", "val", "test", or another split of the data set.
        sample_rate: sample rate of the model, in Hz.
        clip_seconds: clips are embedded in windows of this length, which are averaged; None = whole clips.
        batch_size: windows to embed at a time.
        workers: number of processes that read audio; 0 = read in this process.
        on_error: "skip" skips and lists bad files and rows; "raise" stops at the first one.
        side_files: read twins.csv and events.csv (see `read_if_ours`), and keep the frames of the clips they name.
        chunks: average this many overlapping windows instead (see `atk.data.eval_loader`).
        frames: keep the frames of all clips, which scores other than "global" need.

    Raises:
        FileNotFoundError, ValueError: as for `atk.data.read_data`, `read_twins`, and `read_events`.
    """

    def __init__(
        self,
        data: Data,
        split: str = "test",
        *,
        sample_rate: int,
        clip_seconds: float | None = 9.91,
        batch_size: int = 32,
        workers: int = 0,
        on_error: OnError = "skip",
        side_files: bool = True,
        chunks: int | None = None,
        frames: bool = False,
    ):
        data_set = open_data(data).first_with(split)
        self.folder = data_set.folder
        self.split = split
        files = data_set.read(split, on_error)
        self.clips = files.clips
        self.skipped = files.skipped
        self.loader = eval_loader(
            self.clips,
            sample_rate=sample_rate,
            clip_seconds=clip_seconds,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            chunks=chunks,
        )
        self.frames = frames
        self.twins = read_if_ours(self.folder / "twins.csv", read_twins) if side_files else []
        self.events = read_if_ours(self.folder / "events.csv", read_events) if side_files else []

    def embed(self, model: EmbeddingModel, progress: str | None = None) -> SplitEmbedding:
        """Embed all clips.

        Args:
            model: embeds the clips.
            progress: label of a progress bar; None = no bar.

        Raises:
            ValueError: no clip can be decoded.
            AudioError: a clip cannot be decoded and `on_error="raise"`.
        """
        named = {name for pair in self.twins for name in pair} | {event.file_name for event in self.events}
        with_frames = ALL_FILES if self.frames else named
        skipped = list(self.skipped)
        with evaluating(model):
            embedded = on_disk(embed_clips(model, self.loader, skipped, with_frames, progress))
        if not embedded:
            raise ValueError(f"{self.folder}: none of the {len(self.clips)} clips of the split can be decoded")
        clips = {clip.file_name: embedding for clip, embedding in embedded if clip.file_name in with_frames}
        return SplitEmbedding(
            folder=self.folder,
            files=[clip.file_name for clip, _ in embedded],
            captions=[clip.captions for clip, _ in embedded],
            pooled=torch.stack([embedding.pooled for _, embedding in embedded]),
            clips=clips,
            twins=[pair for pair in self.twins if all(name in clips for name in pair)],
            events=[event for event in self.events if event.file_name in clips],
            skipped=skipped,
            split=self.split,
        )


def embed_split(
    model: EmbeddingModel,
    data: Data,
    split: str = "test",
    *,
    progress: str | None = None,
    clip_seconds: float | None = 9.91,
    batch_size: int = 32,
    workers: int = 0,
    on_error: OnError = "skip",
    side_files: bool = True,
    chunks: int | None = None,
    frames: bool = False,
) -> SplitEmbedding:
    """Embed a split once: `EvalSplit(data, split, ...).embed(model, progress)`.

    Arguments and errors are those of `EvalSplit` and `EvalSplit.embed`.
    """
    files = EvalSplit(
        data,
        split,
        sample_rate=model.sample_rate,
        clip_seconds=clip_seconds,
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        side_files=side_files,
        chunks=chunks,
        frames=frames,
    )
    return files.embed(model, progress)


def evaluate_retrieval(model: EmbeddingModel, split: SplitEmbedding, score: Score = "global") -> dict[str, Any]:
    """Text-to-audio and audio-to-text retrieval, and the scores of twins and alignment.

    Every caption of every clip is a query (text to audio) and a candidate (audio to text). If clips share a caption,
    word for word, all of them are relevant for it. The metrics are defined in `atk.eval.metrics.retrieval_metrics`.

    Args:
        model: embeds the captions.
        split: output of `embed_split` or `EvalSplit.embed` for the same model.
        score: what ranks: see `atk.eval.scores.similarities`. Other than "global" needs a split with all frames.

    Returns:
        `"score"`; `"text_to_audio"`, `"audio_to_text"`: metrics; `"chance"`: both for a random order; `"clips"`,
        `"captions"`: their numbers; `"skipped"`: (name, reason) of files and rows that were skipped; `"twins"`: see
        `score_twins`, if twins.csv lists two clips of the split; `"alignment"`: see
        `atk.eval.alignment.alignment_score`, if events.csv lists phrases of the captions.

    Raises:
        ValueError: an embedding is NaN, `score` is unknown, or the split lacks frames.
    """
    similarity, index = caption_similarity(model, split, score)
    has_caption = torch.zeros(len(split.files), int(index.max()) + 1, dtype=torch.bool)
    has_caption[split.clip_of_caption, index] = True
    relevant = has_caption[:, index]  # [N_a, N_t]
    result: dict[str, Any] = {
        "score": score,
        "text_to_audio": retrieval_metrics(similarity.T, relevant.T),
        "audio_to_text": retrieval_metrics(similarity, relevant),
        "chance": {"text_to_audio": chance_metrics(relevant.T), "audio_to_text": chance_metrics(relevant)},
        "clips": len(split.files),
        "captions": len(index),
        "skipped": split.skipped,
    }
    by_file = dict(zip(split.files, split.captions, strict=True))
    twins = score_twins(model, split.clips, by_file, split.twins)
    if twins["captions"]:
        result["twins"] = twins
    alignment = alignment_score(model, split.clips, by_file, split.events)
    if alignment["phrases"]:
        result["alignment"] = alignment
    return result


def caption_similarity(model: EmbeddingModel, split: SplitEmbedding, score: Score = "global") -> tuple[Tensor, Tensor]:
    """Similarity of clips and captions. Equal captions are embedded once, so that their scores are the same.

    Returns:
        The similarity `[N_a, N_t]` of the clips and of their captions in order, and the number of each caption among
        the distinct ones, int64 `[N_t]`.
    """
    texts = [caption for captions in split.captions for caption in captions]
    distinct = {caption: position for position, caption in enumerate(dict.fromkeys(texts))}
    index = torch.tensor([distinct[caption] for caption in texts])
    return text_similarity(model, split, list(distinct), score)[:, index], index


def text_similarity(model: EmbeddingModel, split: SplitEmbedding, texts: list[str], score: Score) -> Tensor:
    """Similarity `[N_a, N_t]` of the clips of a split and of texts."""
    one_of("score", score, SCORES)
    with evaluating(model):
        if score == "global":
            return split.pooled @ embed_captions(model, texts).T
        clips = [split.clips[name] for name in split.files if name in split.clips]
        if len(clips) < len(split.files):
            raise ValueError(f"score: {score!r} needs a split embedded with frames=True")
        parts = [texts[first : first + _TEXTS] for first in range(0, len(texts), _TEXTS)]
        return torch.cat([similarities(clips, embed_tokens(model, part), score) for part in parts], 1)


def evaluate_tags(
    model: EmbeddingModel, split: SplitEmbedding, template: str = TEMPLATE, score: Score = "global"
) -> dict[str, float]:
    """Tag-level retrieval: macro ROC-AUC and PR-AUC of the similarity of clips and one prompt per tag.

    Args:
        model: embeds the prompts.
        split: embedded split of a folder with a tags.csv: `file_name`, then a column of 0 and 1 for each tag.
        template: prompt, in which `{tag}` is replaced by the tag with spaces for underscores.
        score: as in `evaluate_retrieval`.

    Returns:
        The metrics of `atk.eval.metrics.tag_metrics`, and `"clips"`, the number of clips of the split in tags.csv.

    Raises:
        ValueError: tags.csv is missing or malformed or lists no clip of the split, or a score is NaN.
    """
    _, _, scores, labels = _tag_scores(model, split, template, score)
    return tag_metrics(scores, labels) | {"clips": len(labels)}


def zero_shot(
    model: EmbeddingModel, split: SplitEmbedding, template: str = TEMPLATE, score: Score = "global"
) -> dict[str, float]:
    """Zero-shot classification of clips with exactly one tag: the predicted class is the tag with the nearest prompt.

    Arguments and errors are those of `evaluate_tags`. It is also an error if no clip has exactly one tag.

    Returns:
        `"accuracy"` and `"chance"` in percent, and the number of `"classes"` and `"clips"`.
    """
    _, _, scores, labels = _tag_scores(model, split, template, score)
    single = labels.sum(1) == 1
    if not single.any():
        raise ValueError(f"{split.folder / 'tags.csv'}: no clip of the split has exactly one tag")
    percent = accuracy(scores[single], labels[single].int().argmax(1))
    classes = scores.shape[1]
    return {"accuracy": percent, "chance": 100 / classes, "classes": classes, "clips": int(single.sum())}


def _tag_scores(model: EmbeddingModel, split: SplitEmbedding, template: str, score: Score) -> TagScores:
    prompt = prompts_from(template)
    return tag_scores(split.folder, split.files, lambda texts: text_similarity(model, split, texts, score), prompt)
