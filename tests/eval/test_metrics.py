"""Metrics against torchmetrics, scikit-learn, and brute force."""

import itertools

import numpy as np
import pytest
import torch

from atk.eval.metrics import accuracy, chance_metrics, retrieval_metrics, tag_metrics


def random_problem(seed, queries=37, candidates=50, max_relevant=1, levels=None):
    """Scores, and 1 to `max_relevant` relevant candidates per query. `levels` rounds the scores so that they tie."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.rand(queries, candidates, generator=generator)
    relevant = torch.zeros(queries, candidates, dtype=torch.bool)
    for row in range(queries):
        count = int(torch.randint(1, max_relevant + 1, (), generator=generator))
        relevant[row, torch.randperm(candidates, generator=generator)[:count]] = True
    similarity += relevant * 0.2  # better than chance
    return (similarity * levels).floor() if levels else similarity, relevant


def brute_force(similarity, relevant):
    """The formulas in the docstring of `retrieval_metrics`, one query and one rank at a time."""
    recall, precision, ranks = {1: [], 5: [], 10: []}, [], []
    for scores, truth in zip(similarity.tolist(), relevant.tolist(), strict=True):
        order = sorted(range(len(scores)), key=lambda c: (-scores[c], truth[c]))
        hits = [truth[c] for c in order]
        ranks.append(hits.index(True) + 1)
        for k, values in recall.items():
            values.append(any(hits[:k]))
        gains = [sum(hits[: k + 1]) / (k + 1) for k in range(min(10, len(hits))) if hits[k]]
        precision.append(sum(gains) / min(sum(truth), 10))
    result = {f"R@{k}": 100 * np.mean(values) for k, values in recall.items()}
    return result | {"mAP@10": 100 * np.mean(precision), "MedR": np.median(ranks)}


def torchmetrics_value(metric, similarity, relevant, top_k=10):
    from torchmetrics import retrieval  # takes seconds to import

    metric = getattr(retrieval, metric)(top_k=top_k)
    queries = torch.arange(len(similarity))[:, None].expand_as(similarity)
    return 100 * metric(similarity.flatten(), relevant.flatten(), indexes=queries.flatten()).item()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("max_relevant", "levels"), [(1, None), (1, 6), (5, None), (5, 6), (20, 6)])
def test_retrieval_agrees_with_brute_force(seed, max_relevant, levels):
    similarity, relevant = random_problem(seed, max_relevant=max_relevant, levels=levels)
    assert retrieval_metrics(similarity, relevant) == pytest.approx(brute_force(similarity, relevant))


@pytest.mark.parametrize("queries", [1, 2500])
def test_retrieval_of_one_query_and_of_several_blocks(queries):
    similarity, relevant = random_problem(0, queries=queries, candidates=13, max_relevant=3)
    assert retrieval_metrics(similarity, relevant) == pytest.approx(brute_force(similarity, relevant))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_retrieval_agrees_with_torchmetrics(seed):
    similarity, relevant = random_problem(seed)
    metrics = retrieval_metrics(similarity, relevant)
    assert metrics["mAP@10"] == pytest.approx(torchmetrics_value("RetrievalMAP", similarity, relevant))
    for k in (1, 5, 10):
        expected = torchmetrics_value("RetrievalHitRate", similarity, relevant, top_k=k)
        assert metrics[f"R@{k}"] == pytest.approx(expected)


@pytest.mark.slow
def test_average_precision_matches_torchmetrics_if_all_relevant_candidates_are_in_the_top_10():
    similarity, relevant = random_problem(0, queries=40, candidates=10, max_relevant=5)  # the whole list is the top 10
    expected = torchmetrics_value("RetrievalMAP", similarity, relevant)
    assert retrieval_metrics(similarity, relevant)["mAP@10"] == pytest.approx(expected)


@pytest.mark.slow
def test_average_precision_counts_relevant_candidates_below_the_top_10():
    similarity = torch.arange(30.0).flip(0)[None]
    relevant = torch.zeros(1, 30, dtype=torch.bool)
    relevant[0, [0, 20, 21, 22, 23]] = True
    assert retrieval_metrics(similarity, relevant)["mAP@10"] == pytest.approx(20)
    assert torchmetrics_value("RetrievalMAP", similarity, relevant) == pytest.approx(100)


def test_constant_scores_give_zero():
    relevant = torch.eye(20, dtype=torch.bool)
    metrics = retrieval_metrics(torch.ones(20, 20), relevant)
    assert metrics == {"R@1": 0, "R@5": 0, "R@10": 0, "mAP@10": 0, "MedR": 20}


def test_perfect_scores_in_double_and_half_types():
    relevant = torch.eye(12, dtype=torch.bool)
    for dtype in (torch.float64, torch.bfloat16):
        metrics = retrieval_metrics(relevant.to(dtype), relevant)
        assert metrics == {"R@1": 100, "R@5": 100, "R@10": 100, "mAP@10": 100, "MedR": 1}


def test_median_rank_of_an_even_number_of_queries():
    similarity = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0]])
    relevant = torch.tensor([[True, False, False, False], [False, False, False, True]])
    assert retrieval_metrics(similarity, relevant)["MedR"] == 2.5


@pytest.mark.parametrize(
    ("similarity", "relevant", "error", "message"),
    [
        (torch.tensor([[float("nan"), 1]]), torch.tensor([[True, False]]), ValueError, "NaN in 1 of 2"),
        (torch.ones(2, 2), torch.tensor([[True, False], [False, False]]), ValueError, "row 1"),
        (torch.ones(2, 3), torch.ones(2, 2, dtype=torch.bool), ValueError, r"\[2, 3\] and \[2, 2\]"),
        (torch.ones(2, 2), torch.ones(2, 2), TypeError, "boolean"),
        (torch.ones(0, 2), torch.ones(0, 2, dtype=torch.bool), ValueError, "Q, C >= 1"),
    ],
)
def test_retrieval_metrics_reject_bad_input(similarity, relevant, error, message):
    with pytest.raises(error, match=message):
        retrieval_metrics(similarity, relevant)


@pytest.mark.parametrize("relevant_counts", [[1], [2], [3, 1], [6]])
def test_chance_is_the_mean_over_all_rankings(relevant_counts):
    candidates = 6
    relevant = torch.arange(candidates) < torch.tensor(relevant_counts)[:, None]
    rankings = torch.tensor(list(itertools.permutations(range(candidates))), dtype=torch.float32)
    per_query = [retrieval_metrics(rankings, row.expand_as(rankings)) for row in relevant]
    chance = chance_metrics(relevant)
    for name in ("R@1", "R@5", "R@10", "mAP@10"):
        assert chance[name] == pytest.approx(np.mean([metrics[name] for metrics in per_query]))
    pooled = retrieval_metrics(rankings.repeat(len(relevant_counts), 1), relevant.repeat_interleave(len(rankings), 0))
    assert chance["MedR"] == pooled["MedR"]


def test_chance_of_a_thousand_captions():
    chance = chance_metrics(torch.eye(1000, dtype=torch.bool))
    assert chance["R@1"] == pytest.approx(0.1)
    assert chance["R@10"] == pytest.approx(1.0)
    assert chance["MedR"] == 500.5


def test_tag_metrics_agree_with_scikit_learn_averaged_over_tags():
    from sklearn.metrics import average_precision_score, roc_auc_score

    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(60, 7, generator=generator) < 0.2
    scores = torch.rand(60, 7, generator=generator) + 0.3 * labels
    labels[:, 2] = False
    labels[:, 5] = True
    kept = [0, 1, 3, 4, 6]
    metrics = tag_metrics(scores, labels)
    roc_auc = [roc_auc_score(labels[:, t], scores[:, t]) for t in kept]
    pr_auc = [average_precision_score(labels[:, t], scores[:, t]) for t in kept]
    assert metrics == pytest.approx(
        {"ROC-AUC": 100 * np.mean(roc_auc), "PR-AUC": 100 * np.mean(pr_auc), "tags": 5, "left_out": 2}
    )


def test_tag_metrics_of_constant_scores_are_at_chance():
    labels = torch.tensor([[True], [False], [False], [False]])
    assert tag_metrics(torch.zeros(4, 1), labels) == {"ROC-AUC": 50, "PR-AUC": 25, "tags": 1, "left_out": 0}


@pytest.mark.parametrize(
    ("scores", "labels", "error", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool), ValueError, "none of 2 tags"),
        (torch.full((2, 1), float("nan")), torch.tensor([[True], [False]]), ValueError, "NaN in 2 of 2"),
        (torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.bool), ValueError, r"\[3, 2\] and \[3, 1\]"),
        (torch.zeros(3, 2), torch.zeros(3, 2), TypeError, "boolean"),
    ],
)
def test_tag_metrics_reject_bad_input(scores, labels, error, message):
    with pytest.raises(error, match=message):
        tag_metrics(scores, labels)


def test_accuracy_counts_ties_as_wrong():
    scores = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 2], [5, 1, 2]])
    assert accuracy(scores, torch.tensor([0, 1, 2, 2])) == 50
    assert accuracy(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == 0


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "0..2, got 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([0]), r"\[2, 3\] and \[1\]"),
        (torch.full((1, 2), float("nan")), torch.tensor([0]), "NaN"),
    ],
)
def test_accuracy_rejects_bad_input(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        accuracy(scores, labels)
