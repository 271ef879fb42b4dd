"""Evaluation by published protocols: retrieval, zero-shot classification, tagging, and multi-query retrieval."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from atk.data.published import imported_set
from atk.data.side_files import read_folds, vocabulary_names
from atk.eval.embed import EmbeddingModel
from atk.eval.metrics import accuracy, label_ranking, tag_metrics
from atk.eval.prompts import PROMPT_NAMES, PROMPTS, Prompts, published_for
from atk.eval.ranks import CONVENTIONS, CaptionRanks, Convention, caption_ranks
from atk.eval.retrieval import SplitEmbedding, caption_similarity, embed_split, text_similarity
from atk.eval.tags import TagScores, tag_scores
from atk.ops.checks import one_of

ProtocolName = Literal["retrieval", "zero-shot", "tagging", "multi-query"]
PROTOCOL_NAMES = get_args(ProtocolName)
_CHUNKS = 3  # windows of a clip in TTMR's evaluation
_TIES = "ties count against the model"
_WINDOWS = f"{_TIES}; vectors of windows have unit length before they are averaged"


class Protocol(NamedTuple):
    """What a protocol computes.

    Attributes:
        computes: the metrics.
        after: whose evaluation it follows.
        differs: how it differs from that.
        chunks: number of overlapping windows of each clip; None = consecutive windows.
        needs: files of the data folder that it reads besides the split.
        run: computes the metrics.
    """

    computes: str
    after: str
    differs: str
    chunks: int | None
    needs: tuple[str, ...]
    run: "Callable[[_Evaluation], dict[str, Any]]"


@dataclass(frozen=True)
class _Evaluation:
    """The model, an embedded split, and the prompts to use."""

    model: EmbeddingModel
    split: SplitEmbedding
    prompts: Sequence[Prompts]

    @property
    def dataset(self) -> str | None:
        return imported_set(self.split.folder)

    def tag_scores(self, prompt: Callable[[str], str], vocabulary: str | None = None) -> TagScores:
        split = self.split
        similarity = partial(text_similarity, self.model, split, score="global")
        return tag_scores(split.folder, split.files, similarity, prompt, vocabulary)

    def caption_ranks(self) -> CaptionRanks:
        similarity, _ = caption_similarity(self.model, self.split)
        return caption_ranks(similarity, self.split.clip_of_caption)

    def skipped(self, scored: TagScores) -> list[tuple[str, str]]:
        listed = set(scored.files)
        return self.split.skipped + [(name, "not in tags.csv") for name in self.split.files if name not in listed]


def _retrieval(given: _Evaluation) -> dict[str, Any]:
    return _captions_of(given.split) | _by_convention(given, ("laion", "wavcaps", "dcase"))


def _multi_query(given: _Evaluation) -> dict[str, Any]:
    several = [
        name for name, captions in zip(given.split.files, given.split.captions, strict=True) if len(captions) > 1
    ]
    if several:
        raise ValueError(f"protocol multi-query needs one caption per clip, got several for {several[0]}")
    return _captions_of(given.split) | _by_convention(given, ("ttmr",))


def _by_convention(given: _Evaluation, names: Sequence[Convention]) -> dict[str, Any]:
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


def _zero_shot(given: _Evaluation) -> dict[str, Any]:
    dataset = given.dataset
    result: dict[str, Any] = {"set": dataset, "prompts": {}}
    for name in given.prompts or published_for(dataset):
        published = PROMPTS[name]
        scored = given.tag_scores(partial(published.prompt, dataset=dataset))
        result |= {"clips": len(scored.files), "tags": len(scored.tags), "skipped": given.skipped(scored)}
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


def _tagging(given: _Evaluation) -> dict[str, Any]:
    result: dict[str, Any] = {"vocabularies": {}}
    for name in vocabulary_names(given.split.folder / "tags.csv"):
        scored = given.tag_scores(str, name)
        result |= {"clips": len(scored.files), "skipped": given.skipped(scored)}
        result["vocabularies"][name or "tags"] = tag_metrics(scored.scores, scored.labels)
    return result


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "retrieval": Protocol(
        "each caption is a query and a candidate: R@k, mAP@10, and median rank both ways, by three conventions",
        "laion: LAION-AI/CLAP; wavcaps: XinhaoMei/WavCaps; dcase: baseline of DCASE 2023 and 2024",
        f"{_TIES}; captions repeated within a clip count once; sums are divided by the captions of a clip, not by 5",
        None,
        (),
        _retrieval,
    ),
    "zero-shot": Protocol(
        "one prompt per tag: accuracy, top 5, and the mean over folds; mAP and lrap if clips have several tags",
        "the publications of the prompts",
        f"{_TIES}; tags without a positive clip are left out of mAP and counted",
        None,
        ("tags.csv",),
        _zero_shot,
    ),
    "tagging": Protocol(
        "the tag itself is the query: macro ROC-AUC and PR-AUC for each vocabulary",
        "single-query evaluation of seungheondoh/music-text-representation",
        f"{_WINDOWS}; tags without a positive clip are left out and counted; its transfer to other sets uses 8 windows",
        _CHUNKS,
        ("tags.csv",),
        _tagging,
    ),
    "multi-query": Protocol(
        "all tags of a clip are the query: R@k, mAP@10, and median rank from 0",
        "multi-query evaluation of seungheondoh/music-text-representation",
        f"{_WINDOWS}; the median is not corrected by the jackknife, which changes it if the number of clips is odd",
        _CHUNKS,
        (),
        _multi_query,
    ),
}


def protocol_split(name: ProtocolName, folder: str | Path) -> str:
    """The split that a protocol is defined on: "all" for zero-shot if the folder has folds, "multiquery", or "test"."""
    one_of("protocol", name, PROTOCOL_NAMES)
    if name == "multi-query":
        return "multiquery"
    has_folds = all((Path(folder) / table).is_file() for table in ("all.csv", "folds.csv"))
    return "all" if name == "zero-shot" and has_folds else "test"


def check_protocols(
    names: Sequence[ProtocolName],
    folder: str | Path,
    *,
    split: str | None = None,
    prompts: Sequence[Prompts] = (),
    clip_seconds: float | None = 9.91,
) -> None:
    """Check, before anything is embedded, that a data folder and the length of windows are what protocols need.

    Raises:
        ValueError: there is no such protocol or prompt, a file is missing, or there is no length of windows.
    """
    if names and not Path(folder).is_dir():
        raise ValueError(f"protocols need a data folder, got {folder}")
    for name in names:
        one_of("protocol", name, PROTOCOL_NAMES)
        if PROTOCOLS[name].chunks and clip_seconds is None:
            raise ValueError(f"protocol {name} needs clip_seconds (9.91 in the published evaluation), got null")
        for table in (*PROTOCOLS[name].needs, f"{split or protocol_split(name, folder)}.csv"):
            if not (Path(folder) / table).is_file():
                raise ValueError(f"protocol {name} needs {Path(folder) / table}, which is missing")
    for prompt in prompts:
        one_of("prompts", prompt, PROMPT_NAMES)
    if prompts and "zero-shot" not in names:
        raise ValueError("prompts are for the protocol zero-shot, which is not among the protocols given")
    folds = Path(folder) / "folds.csv"
    if "zero-shot" in names and imported_set(folder) in ("esc50", "urbansound8k") and not folds.is_file():
        raise ValueError(f"protocol zero-shot needs {folds}, which is missing; import the set again")


def evaluate_protocols(
    model: EmbeddingModel,
    folder: str | Path,
    names: Sequence[ProtocolName],
    *,
    split: str | None = None,
    prompts: Sequence[Prompts] = (),
    embedded: SplitEmbedding | None = None,
    **reading: Any,
) -> dict[str, dict[str, Any]]:
    """Evaluate a model by published protocols (see `PROTOCOLS`).

    Args:
        model: embeds clips and texts.
        folder: data folder.
        names: protocols.
        split: split to use; None = the one that each protocol is defined on (see `protocol_split`).
        prompts: prompts of the protocol zero-shot; none = all that are published for the set.
        embedded: embedding of a split with consecutive windows, which is then not embedded again.
        reading: further arguments of `embed_split`.

    Returns:
        For each protocol, `"split"`, `"chunks"`, the attributes `"computes"`, `"after"`, and `"differs"` of the
        protocol, the number of `"clips"`, the `"skipped"` files as (name, reason), and its metrics by `"conventions"`,
        `"prompts"`, or `"vocabularies"`, in percent except for ranks and counts.

    Raises:
        ValueError: as `check_protocols`, `embed_split`, and the metrics.
    """
    check_protocols(names, folder, split=split, prompts=prompts, clip_seconds=reading.get("clip_seconds", 9.91))
    embeddings: dict[tuple[str, int | None], SplitEmbedding] = {}
    if embedded is not None:
        embeddings[embedded.split, None] = embedded
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        protocol = PROTOCOLS[name]
        key = (split or protocol_split(name, folder), protocol.chunks)
        if key not in embeddings:
            embeddings[key] = embed_split(model, folder, key[0], side_files=False, chunks=protocol.chunks, **reading)
        given = _Evaluation(model, embeddings[key], prompts)
        results[name] = {
            "split": key[0],
            "chunks": protocol.chunks,
            "computes": protocol.computes,
            "after": protocol.after,
            "differs": protocol.differs,
            "clips": len(given.split.files),
            "skipped": given.split.skipped,
        } | protocol.run(given)
    return results
