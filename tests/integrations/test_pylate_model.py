"""PyLate with a real model, in float64: needs the versions of other libraries that PyLate pins."""

from importlib.metadata import version

import pytest
import torch
from support.integrations import assert_all_close, library, our_ops_run
from support.multi_vector import (
    COLUMNS,
    NEGATIVES,
    POSITIVES,
    QUERIES,
    colbert,
    colbert_features,
    loss_and_step,
    save_bert,
)
from support.two_ranks import PYLATE, messages

from atk.integrations import pylate as adapter

pytestmark = pytest.mark.slow  # the library takes seconds to import
LABELS = torch.tensor([[3.0, 1.0], [2.0, 0.5], [1.0, 0.0]], dtype=torch.float64)


@pytest.fixture(scope="module", params=[True, False], ids=["expansion", "no expansion"])
def model(request, tmp_path_factory):
    library("pylate.models")
    if (given := version("sentence-transformers")) != "5.3.0":
        pytest.skip(f"models of PyLate need sentence-transformers 5.3.0, got {given}")
    return colbert(save_bert(tmp_path_factory.mktemp("bert")), do_query_expansion=request.param)


def features_of(model, name):
    """Inputs of a loss, and the labels; `Distillation` takes the candidates of all queries in one batch."""
    if name != "Distillation":
        return colbert_features(model), None
    candidates = [text for pair in zip(POSITIVES, NEGATIVES, strict=True) for text in pair]
    return [model.tokenize(QUERIES), model.tokenize(candidates, is_query=False)], LABELS


@pytest.mark.parametrize("name", ["Contrastive", "CachedContrastive", "Distillation"])
def test_losses_gradients_and_steps(model, name):
    features, labels = features_of(model, name)
    loss = getattr(library("pylate.losses"), name)
    valid = torch.cat([column["attention_mask"].flatten() for column in features]).bool()
    assert valid.any() and not valid.all()
    with our_ops_run(expected=False):
        expected = loss_and_step(model, loss(model), features, labels)
    assert expected[0] > 0 and all(value.dtype == torch.float64 for value in expected)
    assert any(value.abs().sum() > 0 for value in expected[1:])
    with adapter.install(), our_ops_run():
        assert_all_close(loss_and_step(model, loss(model), features, labels), expected, atol=1e-12, rtol=1e-9)
    with our_ops_run(expected=False):  # the library's own code again
        assert_all_close(loss_and_step(model, loss(model), features, labels), expected, atol=0, rtol=0)
    metric = adapter.colbert_kd_scores if name == "Distillation" else adapter.colbert_scores
    with our_ops_run():
        values = loss_and_step(model, loss(model, score_metric=metric), features, labels)
    assert_all_close(values, expected, atol=1e-12, rtol=1e-9)


def evaluators():
    evaluation = library("pylate.evaluation")
    ids = ("a", "b", "c")
    data = dict(zip(ids, QUERIES, strict=True)), dict(zip(ids, POSITIVES, strict=True)), {key: {key} for key in ids}
    at = {"mrr_at_k": [3], "ndcg_at_k": [3], "accuracy_at_k": [1], "precision_recall_at_k": [1], "map_at_k": [3]}
    documents = [list(pair) for pair in zip(POSITIVES, NEGATIVES, strict=True)]
    return {
        "retrieval": evaluation.PyLateInformationRetrievalEvaluator(*data, **at),
        "distillation": evaluation.ColBERTDistillationEvaluator(QUERIES, documents, LABELS.tolist()),
        "triplet": evaluation.ColBERTTripletEvaluator(*COLUMNS),
    }


@pytest.mark.parametrize("name", ["retrieval", "distillation", "triplet"])
def test_metrics_of_the_evaluators(model, name):
    with our_ops_run(expected=False):
        expected = evaluators()[name](model)
    assert len(expected) > 0
    with adapter.install(), our_ops_run(expected=name != "triplet"):  # which scores lists of documents in a loop
        assert evaluators()[name](model) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", PYLATE)
def test_two_ranks(model, case):
    errors = messages("PYLATE")[case]
    assert not errors, errors
