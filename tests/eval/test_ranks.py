"""Retrieval by published conventions: known values, brute force, torchmetrics, and mteb."""

import numpy as np
import pytest
import torch

from atk.eval.ranks import caption_precision, caption_ranks, dcase_metrics, laion_metrics, ttmr_metrics, wavcaps_metrics

COUNTS = (5, 5, 1, 3, 5, 2, 5, 4)


def problem(levels=None):
    """Scores of 8 clips and their 30 captions, and the clip of each caption."""
    clip = torch.tensor(COUNTS).cumsum(0)
    clip = torch.bucketize(torch.arange(int(clip[-1])), clip, right=True)
    scores = torch.rand(len(COUNTS), len(clip)) + 0.3 * (clip == torch.arange(len(COUNTS))[:, None])
    return (scores * levels).floor() if levels else scores, clip


def brute_force(scores, clip):
    """The ranks of each caption's clip, and of the captions of each clip, one at a time."""
    to_clip = [
        sorted(range(len(scores)), key=lambda a, t=t: (-scores[a, t], a == clip[t])).index(clip[t]) + 1
        for t in range(len(clip))
    ]
    to_captions = []
    for a, row in enumerate(scores):
        order = sorted(range(len(clip)), key=lambda t, row=row, a=a: (-row[t], clip[t] == a, t))
        to_captions.append([order.index(t) + 1 for t in range(len(clip)) if clip[t] == a])
    return to_clip, to_captions


@pytest.mark.parametrize("levels", [None, 6, 1])
def test_ranks_agree_with_brute_force(levels, monkeypatch):
    monkeypatch.setattr("atk.eval.ranks._CAPTIONS", 7)  # several parts
    scores, clip = problem(levels)
    shuffled = torch.randperm(len(clip))  # the captions of a clip need not be next to each other
    scores, clip = scores[:, shuffled], clip[shuffled]
    ranks = caption_ranks(scores, clip)
    to_clip, to_captions = brute_force(scores.numpy(), clip.numpy())
    assert ranks.text_to_audio.tolist() == to_clip
    assert [of_clip.tolist() for of_clip in ranks.audio_to_text] == to_captions


def test_published_values_of_average_precision():
    ranks = np.array([8, 1, 31, 4, 100])
    assert caption_precision(ranks, ordered=False) == pytest.approx(0.575)  # LAION
    assert caption_precision(ranks, ordered=True) == pytest.approx(0.375)  # WavCaps
    published = torch.tensor([8, 1, 31, 4, 100])
    others = torch.tensor(sorted(set(range(1, 101)) - set(published.tolist())))
    scores = torch.zeros(20, 100)
    scores[0] = -torch.cat([published, others]).float()  # clip 0 has the first five captions
    clip = torch.cat([torch.zeros(5), torch.arange(95) % 19 + 1]).long()
    ranks = caption_ranks(scores, clip)
    assert ranks.audio_to_text[0].tolist() == published.tolist()
    first = ranks._replace(audio_to_text=ranks.audio_to_text[:1])
    assert laion_metrics(first)["audio_to_text"]["mAP@10"] == pytest.approx(57.5)
    assert wavcaps_metrics(first)["audio_to_text"]["mAP@10"] == pytest.approx(37.5)
    assert dcase_metrics(first)["audio_to_text"] == pytest.approx({"R@1": 20, "R@5": 40, "R@10": 60, "mAP@10": 37.5})
    assert laion_metrics(first)["audio_to_text"]["R@1"] == 100  # the first hit has rank 1


def test_laion_precision_can_exceed_100():
    ranks = caption_ranks(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), torch.zeros(5, dtype=torch.long))
    assert ranks.audio_to_text[0].tolist() == [5, 4, 3, 2, 1]
    assert laion_metrics(ranks)["audio_to_text"]["mAP@10"] == pytest.approx(
        100 * (1 / 5 + 2 / 4 + 3 / 3 + 4 / 2 + 5) / 5
    )
    assert wavcaps_metrics(ranks)["audio_to_text"]["mAP@10"] == pytest.approx(100)


def test_median_ranks_start_at_0_or_1_and_are_rounded_as_published():
    ranks = caption_ranks(torch.tensor([[3.0, 0.0], [1.0, -1.0]]), torch.tensor([0, 1]))
    assert ranks.text_to_audio.tolist() == [1, 2]
    assert laion_metrics(ranks)["text_to_audio"]["MedR"] == 1
    assert ttmr_metrics(ranks)["text_to_audio"] == pytest.approx(
        {"R@1": 50, "R@5": 100, "R@10": 100, "mAP@10": 75, "medRank": 0.5}
    )


@pytest.mark.slow
def test_agrees_with_torchmetrics():
    from torchmetrics import retrieval  # takes seconds to import

    scores, clip = problem()
    metrics = dcase_metrics(caption_ranks(scores, clip))
    relevant = clip == torch.arange(len(COUNTS))[:, None]
    for direction, similarity, truth in (("text_to_audio", scores.T, relevant.T), ("audio_to_text", scores, relevant)):
        indices = torch.arange(len(similarity))[:, None].expand_as(similarity)
        for k in (1, 5, 10):
            metric = retrieval.RetrievalRecall(top_k=k)
            metric.update(similarity.flatten(), truth.flatten(), indices.flatten())
            assert metrics[direction][f"R@{k}"] == pytest.approx(100 * metric.compute().item())
    metric = retrieval.RetrievalMRR(top_k=10)
    indices = torch.arange(len(clip))[:, None].expand(-1, len(COUNTS))
    metric.update(scores.T.flatten(), relevant.T.flatten(), indices.flatten())
    assert metrics["text_to_audio"]["mAP@10"] == pytest.approx(100 * metric.compute().item())


@pytest.mark.slow
def test_agrees_with_mteb():
    mteb = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    scores, clip = problem()
    ranks = caption_ranks(scores, clip)
    relevant = {f"a{a}": {f"t{t}": 1 for t in range(len(clip)) if clip[t] == a} for a in range(len(COUNTS))}
    scores_by_name = {f"a{a}": {f"t{t}": float(score) for t, score in enumerate(row)} for a, row in enumerate(scores)}
    result = mteb.calculate_retrieval_scores(scores_by_name, relevant, [1, 5, 10])
    for k in (1, 5, 10):
        assert laion_metrics(ranks)["audio_to_text"][f"R@{k}"] == pytest.approx(
            100 * result.hit_rate[f"HitRate@{k}"], abs=1e-3
        )
        assert dcase_metrics(ranks)["audio_to_text"][f"R@{k}"] == pytest.approx(
            100 * result.recall[f"Recall@{k}"], abs=1e-3
        )
    assert wavcaps_metrics(ranks)["audio_to_text"]["mAP@10"] == pytest.approx(100 * result.map["MAP@10"], abs=1e-3)


def test_errors():
    with pytest.raises(ValueError, match="every clip at least once"):
        caption_ranks(torch.rand(3, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="NaN in 1 of 4"):
        caption_ranks(torch.tensor([[1.0, float("nan")], [0.0, 0.0]]), torch.tensor([0, 1]))
