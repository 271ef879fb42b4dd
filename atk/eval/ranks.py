"""Retrieval metrics by the conventions of published code, from the ranks of clips and their captions."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Convention = Literal["laion", "wavcaps", "dcase", "ttmr"]
_AP_AT = 10
_CAPTIONS = 1024  # captions to rank at a time, which bounds the memory


class CaptionRanks(NamedTuple):
    """Ranks of clips and captions, 1 = first.

    Attributes:
        text_to_audio: rank of the clip of each caption among all clips, int64 `[N_t]`.
        audio_to_text: for each clip, the ranks of its captions among all captions, in the order of the captions.
    """

    text_to_audio: np.ndarray
    audio_to_text: list[np.ndarray]


def caption_ranks(similarity: Tensor, clip: Tensor) -> CaptionRanks:
    """Rank clips for captions and captions for clips, where each caption belongs to one clip only.

    Ties count against the model: a wrong candidate with the same score ranks ahead. Captions of a clip with the same
    score keep their order.

    Args:
        similarity: scores of clips and captions `[N_a, N_t]`, higher = better.
        clip: the clip of each caption, int64 `[N_t]`, with every clip at least once.

    Raises:
        ValueError: the shapes differ, a clip has no caption, or a score is NaN.
    """
    clips, captions = similarity.shape
    if clip.shape != (captions,) or not captions or torch.bincount(clip, minlength=clips).min() == 0:
        raise ValueError(
            f"clip must name the clip of each caption of similarity {list(similarity.shape)}, and every clip at least "
            f"once, got {list(clip.shape)}"
        )
    if similarity.isnan().any():
        raise ValueError(f"similarity is NaN in {int(similarity.isnan().sum())} of {similarity.numel()} scores")
    positions = torch.arange(captions)
    to_clips = []
    to_captions = []
    for part in positions.split(_CAPTIONS):
        truth = similarity[clip[part], part]
        to_clips.append((similarity[:, part] >= truth).sum(0))
        rows = similarity[clip[part]]
        later = (clip == clip[part][:, None]) & (positions > part[:, None])
        to_captions.append(((rows >= truth[:, None]) & ~(later & (rows == truth[:, None]))).sum(1))
    ranks = torch.cat(to_captions).numpy()
    order = clip.argsort(stable=True)
    parts = torch.bincount(clip).cumsum(0)[:-1]
    return CaptionRanks(torch.cat(to_clips).numpy(), np.split(ranks[order.numpy()], parts.numpy()))


def laion_metrics(ranks: CaptionRanks) -> dict[str, dict[str, float]]:
    """The metrics of LAION's CLAP (`evaluate_clotho_audiocaps` in its `training/train.py`), in percent.

    Text to audio: R@k, and mAP@10 = 1 / rank within the first 10. Audio to text: R@k of the best caption, and mAP@10 =
    `sum_i i / rank_i / captions` over the captions within the first 10, in the order of the captions, as in that code.
    As `i` does not follow the ranks, mAP@10 depends on the order of the captions and can exceed 100.
    """
    best = np.array([of_clip.min() for of_clip in ranks.audio_to_text])
    return {
        "text_to_audio": _first_hit(ranks.text_to_audio, (1, 5, 10)),
        "audio_to_text": _first_hit(best, (1, 5, 10))
        | {"mAP@10": 100 * _mean(caption_precision(of_clip, ordered=False) for of_clip in ranks.audio_to_text)},
    }


def wavcaps_metrics(ranks: CaptionRanks) -> dict[str, dict[str, float]]:
    """The metrics of WavCaps (`retrieval/tools/utils.py`), in percent: those of LAION, R@50, and sorted ranks.

    With sorted ranks, mAP@10 of audio to text is the average precision over all captions of the clip.
    """
    best = np.array([of_clip.min() for of_clip in ranks.audio_to_text])
    return {
        "text_to_audio": _first_hit(ranks.text_to_audio, (1, 5, 10, 50)),
        "audio_to_text": _first_hit(best, (1, 5, 10, 50))
        | {"mAP@10": 100 * _mean(caption_precision(of_clip, ordered=True) for of_clip in ranks.audio_to_text)},
    }


def dcase_metrics(ranks: CaptionRanks) -> dict[str, dict[str, float]]:
    """The metrics of DCASE 2023 and 2024 (`measure` of the baseline), in percent.

    R@k is the share of the relevant candidates within the first k, and AP@10 is divided by the number of all relevant
    candidates. The task is text to audio, where the only relevant candidate is the clip of the caption.
    """
    return {
        "text_to_audio": _relevant([np.array([rank]) for rank in ranks.text_to_audio]),
        "audio_to_text": _relevant(ranks.audio_to_text),
    }


def ttmr_metrics(ranks: CaptionRanks) -> dict[str, dict[str, float]]:
    """The metrics of TTMR's multi-query retrieval (`rank_eval`): R@k and mAP@10 in percent, medRank from 0.

    The only relevant clip of a caption is its own, so that mAP@10 is 1 / rank within the first 10.
    """
    metrics = _first_hit(ranks.text_to_audio, (1, 5, 10))
    del metrics["MedR"]
    return {"text_to_audio": metrics | {"medRank": float(np.median(ranks.text_to_audio - 1))}}


CONVENTIONS: dict[Convention, Callable[[CaptionRanks], dict[str, dict[str, float]]]] = {
    "laion": laion_metrics,
    "wavcaps": wavcaps_metrics,
    "dcase": dcase_metrics,
    "ttmr": ttmr_metrics,
}


def caption_precision(ranks: np.ndarray, *, ordered: bool) -> float:
    """`sum_i i / rank_i / captions` over the ranks within the first 10, sorted first if `ordered`.

    Args:
        ranks: ranks of the captions of one clip, int64 `[captions]`, 1 = first.
        ordered: whether rank i is the i-th best, as in average precision, or that of the i-th caption.
    """
    hits = ranks[ranks <= _AP_AT]
    if ordered:
        hits = np.sort(hits)
    return float((np.arange(1, len(hits) + 1) / hits).sum() / len(ranks))


def _first_hit(ranks: np.ndarray, recall_at: Iterable[int]) -> dict[str, float]:
    """R@k in percent, 1 / rank within the first 10, and the median rank, rounded down."""
    metrics = {f"R@{k}": 100 * float((ranks <= k).mean()) for k in recall_at}
    metrics["mAP@10"] = 100 * float(np.where(ranks <= _AP_AT, 1 / ranks, 0).mean())
    return metrics | {"MedR": float(np.floor(np.median(ranks)))}


def _relevant(ranks: list[np.ndarray]) -> dict[str, float]:
    metrics = {f"R@{k}": 100 * _mean((of_clip <= k).mean() for of_clip in ranks) for k in (1, 5, 10)}
    return metrics | {"mAP@10": 100 * _mean(caption_precision(of_clip, ordered=True) for of_clip in ranks)}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
