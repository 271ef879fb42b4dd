"""Evaluate a model on a data folder: retrieval both ways, twins, alignment, tags, and zero-shot classification."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from atk.data import eval_loader, open_data
from atk.data.captions import OnError
from atk.data.sets import Data
from atk.data.side_files import Event, read_events, read_if_ours, read_twins
from atk.eval.alignment import alignment_score
from atk.eval.embed import ClipEmbedding, EmbeddingModel, caption_similarity, embed_clips, evaluating
from atk.eval.metrics import accuracy, chance_metrics, retrieval_metrics, tag_metrics
from atk.eval.tags import TagScores, prompts_from, tag_scores
from atk.ops.max_mean import max_mean_similarity

TEMPLATE = "the sound of {tag}"


@dataclass(frozen=True)
class SplitEmbedding:
    """Embedding of a split of a data folder, on the CPU.

    Args:
        folder: data folder.
        files: file names of the N_a clips, as in the split's CSV.
        captions: captions of each clip.
        pooled: global vectors of the clips `[N_a, D]`.
        clips: embeddings with frames of the clips in twins.csv or events.csv, by file name.
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
        with_frames = {name for pair in self.twins for name in pair} | {event.file_name for event in self.events}
        skipped = list(self.skipped)
        with evaluating(model):
            embedded = list(embed_clips(model, self.loader, skipped, with_frames, progress))
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
    )
    return files.embed(model, progress)


def evaluate_retrieval(model: EmbeddingModel, split: SplitEmbedding) -> dict[str, Any]:
    """Text-to-audio and audio-to-text retrieval by global cosine, and the scores of twins and alignment.

    Every caption of every clip is a query (text to audio) and a candidate (audio to text). If clips share a caption,
    word for word, all of them are relevant for it. The metrics are defined in `atk.eval.metrics.retrieval_metrics`.

    Args:
        model: embeds the captions.
        split: output of `embed_split` or `EvalSplit.embed` for the same model.

    Returns:
        `"text_to_audio"`, `"audio_to_text"`: metrics; `"chance"`: both for a random order; `"clips"`, `"captions"`:
        their numbers; `"skipped"`: (name, reason) of files and rows that were skipped; `"twins"`: see `score_twins`, if
        twins.csv lists two clips of the split; `"alignment"`: see `atk.eval.alignment.alignment_score`, if events.csv
        lists phrases of the captions.

    Raises:
        ValueError: an embedding is NaN.
    """
    similarity, index = caption_similarity(model, split.pooled, split.captions)
    has_caption = torch.zeros(len(split.files), int(index.max()) + 1, dtype=torch.bool)
    has_caption[split.clip_of_caption, index] = True
    relevant = has_caption[:, index]  # [N_a, N_t]
    result: dict[str, Any] = {
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


@torch.no_grad()
def score_twins(
    model: EmbeddingModel,
    clips: Mapping[str, ClipEmbedding],
    captions: Mapping[str, Sequence[str]],
    pairs: Iterable[tuple[str, str]],
) -> dict[str, float]:
    """How often a caption scores its own clip above the clip's twin; ties count as errors.

    Args:
        model: embeds the captions.
        clips: embedded clips by file name.
        captions: captions of each clip, by file name. A caption that both twins share is not scored.
        pairs: file names of each pair of twins.

    Returns:
        `"global"`: percentage of captions that are right by global cosine; `"max_mean"`: by frame-token similarity
        (3.6); both are NaN without captions; `"pairs"`: number of pairs; `"captions"`: number of captions scored.
    """
    right = {"global": 0, "max_mean": 0}
    caption_count = 0
    pair_count = 0
    with evaluating(model):
        for pair in pairs:
            first, second = (dict.fromkeys(captions[name]) for name in pair)
            first_only = [text for text in first if text not in second]
            second_only = [text for text in second if text not in first]
            pair_count += 1
            if not first_only and not second_only:
                continue
            clip = torch.tensor([0] * len(first_only) + [1] * len(second_only))[None]  # of each caption
            caption_count += clip.shape[1]
            scores = _score_pair(model, [clips[name] for name in pair], [*first_only, *second_only])
            for name, score in scores.items():  # [2, captions]
                right[name] += int((score.gather(0, clip) > score.gather(0, 1 - clip)).sum())
    percent = {name: 100 * count / caption_count if caption_count else float("nan") for name, count in right.items()}
    return percent | {"pairs": pair_count, "captions": caption_count}


def _score_pair(model: EmbeddingModel, clips: list[ClipEmbedding], captions: list[str]) -> dict[str, Tensor]:
    """Scores `[2, captions]` of two clips by global cosine and by max-mean similarity."""
    text = model.embed_text(captions)
    frames = pad_sequence([clip.frames for clip in clips], batch_first=True)
    mask = torch.arange(frames.shape[1]) < torch.tensor([[len(clip.frames)] for clip in clips])
    pooled = torch.stack([clip.pooled for clip in clips])
    return {
        "global": pooled @ text.pooled.float().cpu().T,
        "max_mean": max_mean_similarity(frames, text.tokens.float().cpu(), mask, text.mask.cpu()),
    }


def evaluate_tags(model: EmbeddingModel, split: SplitEmbedding, template: str = TEMPLATE) -> dict[str, float]:
    """Tag-level retrieval: macro ROC-AUC and PR-AUC of the cosine of clips and one prompt per tag.

    Args:
        model: embeds the prompts.
        split: embedded split of a folder with a tags.csv: `file_name`, then a column of 0 and 1 for each tag.
        template: prompt, in which `{tag}` is replaced by the tag with spaces for underscores.

    Returns:
        The metrics of `atk.eval.metrics.tag_metrics`, and `"clips"`, the number of clips of the split in tags.csv.

    Raises:
        ValueError: tags.csv is missing or malformed or lists no clip of the split, or a score is NaN.
    """
    _, _, scores, labels = _tag_scores(model, split, template)
    return tag_metrics(scores, labels) | {"clips": len(labels)}


def zero_shot(model: EmbeddingModel, split: SplitEmbedding, template: str = TEMPLATE) -> dict[str, float]:
    """Zero-shot classification of clips with exactly one tag: the predicted class is the tag with the nearest prompt.

    Arguments and errors are those of `evaluate_tags`. It is also an error if no clip has exactly one tag.

    Returns:
        `"accuracy"` and `"chance"` in percent, and the number of `"classes"` and `"clips"`.
    """
    _, _, scores, labels = _tag_scores(model, split, template)
    single = labels.sum(1) == 1
    if not single.any():
        raise ValueError(f"{split.folder / 'tags.csv'}: no clip of the split has exactly one tag")
    percent = accuracy(scores[single], labels[single].int().argmax(1))
    classes = scores.shape[1]
    return {"accuracy": percent, "chance": 100 / classes, "classes": classes, "clips": int(single.sum())}


def _tag_scores(model: EmbeddingModel, split: SplitEmbedding, template: str) -> TagScores:
    return tag_scores(model, split.folder, split.files, split.pooled, prompts_from(template))
