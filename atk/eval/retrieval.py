"""Evaluation of a model on a data folder: retrieval both ways, twins, alignment, tags, zero-shot classification."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from atk.data import eval_loader, read_split
from atk.data.side_files import Event, read_events, read_tags, read_twins
from atk.eval.alignment import alignment_score
from atk.eval.embed import ClipEmbedding, embed_captions, embed_clips, evaluating
from atk.eval.metrics import accuracy, chance_metrics, retrieval_metrics, tag_metrics
from atk.ops.max_mean import max_mean_similarity

TEMPLATE = "the sound of {tag}"


@dataclass(frozen=True)
class SplitEmbedding:
    """A split of a data folder in the shared space, on the CPU.

    Args:
        folder: data folder.
        files: file names of the clips, as in the split's csv.
        captions: captions of each clip.
        pooled: global vectors of the clips `[N_a, D]`.
        clips: with frames, those of the clips that twins.csv or events.csv names, by file name.
        twins: pairs of embedded clips in twins.csv.
        events: events of embedded clips in events.csv.
        skipped: (name, reason) of the files and rows that could not be used.
    """

    folder: Path
    files: list[str]
    captions: list[tuple[str, ...]]
    pooled: Tensor
    clips: dict[str, ClipEmbedding]
    twins: list[tuple[str, str]]
    events: list[Event]
    skipped: list[tuple[str, str]]


class EvalSplit:
    """A split of a data folder, ready to be embedded again and again, as validation does.

    Args:
        folder: data folder.
        split: "train", "val" or "test".
        sample_rate: the model's, in Hz.
        clip_seconds: clips are embedded in windows of this length, which are averaged; None takes them whole.
        batch_size: windows embedded at a time.
        workers: processes that read audio; 0 = in this one.
        on_error: "skip" names bad files and rows and goes on, "raise" stops at the first.
        side_files: read twins.csv and events.csv, and keep the frames of the clips they name.

    Raises:
        FileNotFoundError, ValueError: as `atk.data.read_split`, `read_twins` and `read_events`.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "test",
        *,
        sample_rate: int,
        clip_seconds: float | None = 9.91,
        batch_size: int = 32,
        workers: int = 0,
        on_error: str = "skip",
        side_files: bool = True,
    ):
        self.folder = Path(folder)
        found = read_split(folder, split, on_error)
        self.clips, self.skipped = found.clips, found.skipped
        options = {"clip_seconds": clip_seconds, "batch_size": batch_size, "workers": workers, "on_error": on_error}
        self.loader = eval_loader(self.clips, sample_rate=sample_rate, **options)
        twins, events = self.folder / "twins.csv", self.folder / "events.csv"
        self.twins = read_twins(twins) if side_files and twins.is_file() else []
        self.events = read_events(events) if side_files and events.is_file() else []

    def embed(self, model: nn.Module, progress: str | None = None) -> SplitEmbedding:
        """All clips through `model`; `progress` labels a progress bar.

        Raises:
            ValueError: no clip can be decoded; with `on_error="raise"`, a clip cannot (AudioError).
        """
        wanted = {name for pair in self.twins for name in pair} | {event.file_name for event in self.events}
        skipped = list(self.skipped)
        with evaluating(model):
            embedded = list(embed_clips(model, self.loader, skipped, wanted, progress))
        if not embedded:
            raise ValueError(f"{self.folder}: none of the {len(self.clips)} clips of the split can be decoded")
        kept = {clip.file_name: embedding for clip, embedding in embedded if clip.file_name in wanted}
        return SplitEmbedding(
            folder=self.folder,
            files=[clip.file_name for clip, _ in embedded],
            captions=[clip.captions for clip, _ in embedded],
            pooled=torch.stack([embedding.pooled for _, embedding in embedded]),
            clips=kept,
            twins=[pair for pair in self.twins if all(name in kept for name in pair)],
            events=[event for event in self.events if event.file_name in kept],
            skipped=skipped,
        )


def embed_split(
    model: nn.Module, folder: str | Path, split: str = "test", *, progress: str | None = None, **options
) -> SplitEmbedding:
    """Embed a split once: `EvalSplit(folder, split, ...).embed(model)`, whose `options`, errors and result it has."""
    return EvalSplit(folder, split, sample_rate=model.sample_rate, **options).embed(model, progress)


def evaluate_retrieval(model: nn.Module, split: SplitEmbedding) -> dict:
    """Text-to-audio and audio-to-text retrieval by global cosine; twins and alignment where the folder tells.

    Every caption of every clip is a query (text to audio) and a candidate (audio to text). Where clips share a caption,
    word for word, all of them are right for it. `atk.eval.metrics.retrieval_metrics` says how the metrics are defined.

    Returns:
        `"text_to_audio"`, `"audio_to_text"`: metrics; `"chance"`: the same two for a random order; `"clips"`,
        `"captions"`: their numbers; `"skipped"`: files and rows left out, with the reason; `"twins"`: see
        `score_twins`, if twins.csv names two clips of the split; `"alignment"`: see
        `atk.eval.alignment.alignment_score`, if
        events.csv names phrases of its captions.

    Raises:
        ValueError: an embedding is NaN.
    """
    captions = [caption for own in split.captions for caption in own]
    distinct = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    number = torch.tensor([distinct[caption] for caption in captions])
    holds = torch.zeros(len(split.files), len(distinct), dtype=torch.bool)
    for clip, own in enumerate(split.captions):
        holds[clip, [distinct[caption] for caption in own]] = True
    relevant = holds[:, number]  # [N_a, N_t]
    with evaluating(model):
        text = embed_captions(model, list(distinct))
    similarity = (split.pooled @ text.T)[:, number]
    result = {
        "text_to_audio": retrieval_metrics(similarity.T, relevant.T),
        "audio_to_text": retrieval_metrics(similarity, relevant),
        "chance": {"text_to_audio": chance_metrics(relevant.T), "audio_to_text": chance_metrics(relevant)},
        "clips": len(split.files),
        "captions": len(captions),
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
    model: nn.Module,
    clips: dict[str, ClipEmbedding],
    captions: dict[str, Sequence[str]],
    pairs: Iterable[tuple[str, str]],
) -> dict[str, float]:
    """Which of two twins fits: a caption is right if its own clip scores above the twin's (a tie is wrong).

    Args:
        model: gives `embed_text`.
        clips: embedded clips by file name.
        captions: the captions of each; those that both twins have are left out.
        pairs: file names of two twins each.

    Returns:
        `"global"`: percent of captions right by global cosine; `"max_mean"`: by frame-token similarity (3.6);
        `"pairs"` and `"captions"`: their numbers. 0 of 0 captions is NaN.
    """
    right, total, count = {"global": 0, "max_mean": 0}, 0, 0
    with evaluating(model):
        for pair in pairs:
            first, second = (dict.fromkeys(captions[name]) for name in pair)
            texts = [text for text in first if text not in second], [text for text in second if text not in first]
            count += 1
            if not any(texts):
                continue
            own = torch.tensor([0] * len(texts[0]) + [1] * len(texts[1]))
            total += len(own)
            scores = _score_pair(model, [clips[name] for name in pair], [*texts[0], *texts[1]])
            for name, score in scores.items():  # [2, captions]
                right[name] += int((score.gather(0, own[None]) > score.gather(0, 1 - own[None])).sum())
    percent = {name: 100 * value / total if total else float("nan") for name, value in right.items()}
    return percent | {"pairs": count, "captions": total}


def _score_pair(model: nn.Module, clips: list[ClipEmbedding], captions: list[str]) -> dict[str, Tensor]:
    """Scores `[2, captions]` of two clips by global cosine and by max-mean similarity."""
    text = model.embed_text(captions)
    frames = torch.nn.utils.rnn.pad_sequence([clip.frames for clip in clips], batch_first=True)
    mask = torch.arange(frames.shape[1]) < torch.tensor([[len(clip.frames)] for clip in clips])
    tokens, token_mask = text.tokens.float().cpu(), text.mask.cpu()
    pooled = torch.stack([clip.pooled for clip in clips])
    return {
        "global": pooled @ text.pooled.float().cpu().T,
        "max_mean": max_mean_similarity(frames, tokens, mask, token_mask),
    }


def evaluate_tags(model: nn.Module, split: SplitEmbedding, template: str = TEMPLATE) -> dict[str, float]:
    """Tag-level retrieval: macro ROC-AUC and PR-AUC of the cosine of clips with one prompt for each tag.

    Args:
        model: gives `embed_text`.
        split: its folder holds tags.csv: `file_name`, then a column of 0 and 1 for each tag.
        template: prompt, in which `{tag}` stands for the tag, its underscores read as spaces.

    Returns:
        As `atk.eval.metrics.tag_metrics`, and `"clips"`, the number of clips of the split that tags.csv names.

    Raises:
        ValueError: tags.csv is missing, malformed, or names no clip of the split; a score is NaN.
    """
    scores, labels = _tag_scores(model, split, template)
    return tag_metrics(scores, labels) | {"clips": len(labels)}


def zero_shot(model: nn.Module, split: SplitEmbedding, template: str = TEMPLATE) -> dict[str, float]:
    """Zero-shot classification: the class is the tag whose prompt is nearest, for clips that have exactly one tag.

    Arguments and errors are those of `evaluate_tags`; a clip with no tag or several is left out.

    Returns:
        `"accuracy"` and `"chance"` in percent, `"classes"` and `"clips"`.
    """
    scores, labels = _tag_scores(model, split, template)
    single = labels.sum(1) == 1
    if not single.any():
        raise ValueError(f"{split.folder / 'tags.csv'}: no clip of the split has exactly one tag")
    percent = accuracy(scores[single], labels[single].int().argmax(1))
    return {
        "accuracy": percent,
        "chance": 100 / scores.shape[1],
        "classes": scores.shape[1],
        "clips": int(single.sum()),
    }


def _tag_scores(model: nn.Module, split: SplitEmbedding, template: str) -> tuple[Tensor, Tensor]:
    """Cosine `[N, T]` and boolean labels `[N, T]` of the clips that tags.csv names."""
    if "{tag}" not in template:
        raise ValueError(f"template must contain {{tag}}, got {template!r}")
    tags, table = read_tags(split.folder / "tags.csv")
    rows = [row for row, name in enumerate(split.files) if name in table]
    if not rows:
        raise ValueError(f"{split.folder / 'tags.csv'} names none of the {len(split.files)} clips of the split")
    with evaluating(model):
        text = embed_captions(model, [template.replace("{tag}", tag.replace("_", " ")) for tag in tags])
    return split.pooled[rows] @ text.T, torch.tensor([table[split.files[row]] for row in rows])
