"""What the published protocols compute from an embedded split."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from atk.data.published import imported_set
from atk.data.side_files import read_folds, vocabulary_names
from atk.eval.embed import EmbeddingModel
from atk.eval.metrics import accuracy, label_ranking, tag_metrics
from atk.eval.prompts import PROMPTS, Prompts, published_for
from atk.eval.ranks import CONVENTIONS, CaptionRanks, Convention, caption_ranks
from atk.eval.retrieval import SplitEmbedding, caption_similarity, text_similarity
from atk.eval.tags import TagScores, tag_scores


@dataclass(frozen=True)
class Evaluation:
    """What the protocols are computed from.

    Args:
        model: embeds the texts.
        split: the embedded clips.
        prompts: prompts of zero-shot classification; none = all that are published for the set.
    """

    model: EmbeddingModel
    split: SplitEmbedding
    prompts: Sequence[Prompts]

    @property
    def dataset(self) -> str | None:
        """Name of the published set; None if it is not one."""
        return imported_set(self.split.folder)

    def tag_scores(self, prompt: Callable[[str], str], vocabulary: str | None = None) -> TagScores:
        """Similarity of the clips and one prompt per tag."""
        split = self.split
        similarity = partial(text_similarity, self.model, split, score="global")
        return tag_scores(split.folder, split.files, similarity, prompt, vocabulary)

    def caption_ranks(self) -> CaptionRanks:
        """Ranks of the clips and captions."""
        similarity, _ = caption_similarity(self.model, self.split)
        return caption_ranks(similarity, self.split.clip_of_caption)

    @property
    def clips(self) -> int:
        """Number of clips of the split."""
        return len(self.split.files)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of files that cannot be used."""
        return self.split.skipped

    def not_scored(self, scored: TagScores) -> list[tuple[str, str]]:
        """The files that cannot be used, and those without tags."""
        listed = set(scored.files)
        return self.split.skipped + [(name, "not in tags.csv") for name in self.split.files if name not in listed]


def retrieval(given: Evaluation) -> dict[str, Any]:
    """Numbers of captions, and retrieval metrics by three conventions."""
    return _captions_of(given.split) | _by_convention(given, ("laion", "wavcaps", "dcase"))


def multi_query(given: Evaluation) -> dict[str, Any]:
    """Numbers of captions, and retrieval metrics of one caption per clip by TTMR's convention."""
    several = [
        name for name, captions in zip(given.split.files, given.split.captions, strict=True) if len(captions) > 1
    ]
    if several:
        raise ValueError(f"protocol multi-query needs one caption per clip, got several for {several[0]}")
    return _captions_of(given.split) | _by_convention(given, ("ttmr",))


def _by_convention(given: Evaluation, names: Sequence[Convention]) -> dict[str, Any]:
    ranks = given.caption_ranks()
    return {"conventions": {name: CONVENTIONS[name](ranks) for name in names}}


def _captions_of(split: SplitEmbedding) -> dict[str, Any]:
    """Numbers of captions, of clips by their number of captions, and of captions that an earlier clip has, too."""
    captions = list(chain.from_iterable(split.captions))
    counts = Counter(map(len, split.captions))
    return {
        "captions": len(captions),
        "captions_per_clip": {str(count): counts[count] for count in sorted(counts)},
        "repeated_captions": len(captions) - len(set(captions)),
    }


def zero_shot(given: Evaluation) -> dict[str, Any]:
    """Metrics of zero-shot classification for each set of prompts."""
    dataset = given.dataset
    result: dict[str, Any] = {"set": dataset, "prompts": {}}
    for name in given.prompts or published_for(dataset):
        published = PROMPTS[name]
        scored = given.tag_scores(partial(published.prompt, dataset=dataset))
        result |= {"clips": len(scored.files), "tags": len(scored.tags), "skipped": given.not_scored(scored)}
        result["prompts"][name] = {
            "example": published.prompt(scored.tags[0], dataset),
            "source": published.url,
            "published_metric": published.metrics.get(dataset or ""),
            "differs": published.differs.get(dataset or ""),
        } | _classify(scored, given.split.folder)
    return result


def _classify(scored: TagScores, folder: Path) -> dict[str, Any]:
    """Accuracy if every clip has exactly one tag, else multi-label metrics."""
    scores, labels = scored.scores, scored.labels
    if not bool((labels.sum(1) == 1).all()):
        metrics = tag_metrics(scores, labels)
        return {
            "mAP": metrics["PR-AUC"],
            "lrap": label_ranking(scores, labels),
            "ROC-AUC": metrics["ROC-AUC"],
            "left_out": metrics["left_out"],
        }
    truth = labels.int().argmax(1)
    rank = (scores >= scores.gather(1, truth[:, None])).sum(1)
    result: dict[str, Any] = {
        "accuracy": accuracy(scores, truth),
        "top5": 100 * (rank <= 5).double().mean().item(),
        "chance": 100 / scores.shape[1],
    }
    if (folder / "folds.csv").is_file():
        result |= _by_fold(scored, truth, folder / "folds.csv")
    return result


def _by_fold(scored: TagScores, truth: torch.Tensor, path: Path) -> dict[str, Any]:
    fold_of = read_folds(path)
    if missing := [name for name in scored.files if name not in fold_of]:
        raise ValueError(f"{path} lacks {len(missing)} of {len(scored.files)} clips, the first is {missing[0]}")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(scored.files):
        rows.setdefault(fold_of[name], []).append(row)
    folds = {fold: accuracy(scored.scores[rows[fold]], truth[rows[fold]]) for fold in sorted(rows, key=_as_number)}
    return {"mean_of_folds": sum(folds.values()) / len(folds), "folds": folds}


def _as_number(fold: str) -> tuple[int, str]:
    return (int(fold) if fold.isdecimal() else 0, fold)


def tagging(given: Evaluation) -> dict[str, Any]:
    """Metrics of tags as queries for each vocabulary."""
    result: dict[str, Any] = {"vocabularies": {}}
    for name in vocabulary_names(given.split.folder / "tags.csv"):
        scored = given.tag_scores(str, name)
        result |= {"clips": len(scored.files), "skipped": given.not_scored(scored)}
        result["vocabularies"][name or "tags"] = tag_metrics(scored.scores, scored.labels)
    return result
