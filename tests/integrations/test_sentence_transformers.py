"""sentence-transformers: every entry of MaxSim, the losses on a real model, and one optimizer step."""

import contextlib

import numpy as np
import pytest
import torch
from support.integrations import assert_all_close, embeddings, gradients, library, our_ops_run, ragged
from support.multi_vector import (
    COLUMNS,
    NEGATIVES,
    POSITIVES,
    QUERIES,
    loss_and_step,
    multi_vector_encoder,
    multi_vector_features,
    save_bert,
)
from support.two_ranks import SENTENCE_TRANSFORMERS, messages

from atk.integrations import sentence_transformers as adapter

pytestmark = pytest.mark.slow  # the library takes seconds to import


@pytest.fixture(scope="module")
def similarity():
    return library("sentence_transformers.util.similarity")


@pytest.fixture(scope="module")
def scoring(similarity):
    return library("sentence_transformers.multi_vector_encoder.scoring.colbert")


@contextlib.contextmanager
def installed():
    with adapter.install(), our_ops_run():
        yield


def compare(score, leaves, ours):
    """Scores and gradients of the library, of the library with our ops, and of our function."""
    with our_ops_run(expected=False):
        expected = gradients(score, leaves)
    with installed():
        assert_all_close(gradients(score, leaves), expected, atol=1e-6, rtol=1e-6)
    with our_ops_run():
        assert_all_close(gradients(ours, leaves), expected, atol=1e-6, rtol=1e-6, check_dtype=False)


def inputs(masks):
    """Queries, documents, and their masks."""
    rows_and_masks = []
    for shape in ((3, 6), (5, 9)):
        mask = None if masks in ("none", "zero rows") else ragged(*shape)
        rows = embeddings(*shape, 12, mask=mask)
        if masks == "zero rows":
            rows = (rows.detach() * ragged(*shape)[..., None]).requires_grad_()
        rows_and_masks += [rows, mask.double() if masks == "float" else mask]
    return rows_and_masks


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("masks", ["none", "boolean", "float", "zero rows"])
def test_maxsim(similarity, masks, normalized):
    queries, query_mask, documents, document_mask = inputs(masks)
    arguments = (queries, documents, query_mask, document_mask)
    compare(
        lambda: similarity.maxsim(*arguments, length_normalize=normalized),
        [queries, documents],
        lambda: adapter.maxsim(*arguments, length_normalize=normalized),
    )
    pairs = (queries, documents[:3], query_mask, None if document_mask is None else document_mask[2:])
    compare(
        lambda: similarity.maxsim_pairwise(*pairs, length_normalize=normalized),
        [queries, documents],
        lambda: adapter.maxsim_pairwise(*pairs, length_normalize=normalized),
    )


@pytest.mark.parametrize("convert", [list, np.asarray], ids=["tensors", "arrays"])
def test_maxsim_of_lists(similarity, convert):
    queries = [torch.randn(length, 8) - 0.2 for length in (3, 1, 6)]
    documents = [torch.randn(length, 8) - 0.2 for length in (4, 7, 1, 0)]
    if convert is np.asarray:
        queries, documents = ([row.numpy() for row in rows] for rows in (queries, documents))
    for chunk in (None, 100):
        expected = similarity.maxsim(queries, documents, chunk_elements=chunk)
        with installed():
            torch.testing.assert_close(similarity.maxsim(queries, documents, chunk_elements=chunk), expected)
    torch.testing.assert_close(adapter.maxsim(queries, documents), expected)
    torch.testing.assert_close(adapter.maxsim(queries[0], documents), expected[:1])
    expected = similarity.maxsim_pairwise(queries, documents[1:])
    with installed():
        torch.testing.assert_close(similarity.maxsim_pairwise(queries, documents[1:]), expected)
    torch.testing.assert_close(adapter.maxsim_pairwise(queries, documents[1:]), expected)


def test_documents_without_tokens_keep_the_score_of_the_library(similarity):
    queries, documents = embeddings(2, 3, 8), embeddings(2, 0, 8)
    with adapter.install():
        assert (similarity.maxsim(queries, documents) == -1e9).all()
        assert (similarity.maxsim_pairwise(queries, documents) == -1e9).all()
    mask = torch.tensor([[True, False], [False, False]])
    scores = adapter.maxsim(queries, embeddings(2, 2, 8), None, mask)
    assert (scores[:, 1] == -1e9).all() and (scores[:, 0] > -10).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_at_least_as_close_to_float64(similarity, dtype):
    queries, documents = torch.randn(3, 40, 64).to(dtype), torch.randn(4, 50, 64).to(dtype)
    exact = similarity.maxsim(queries.double(), documents.double())
    theirs = similarity.maxsim(queries, documents)
    with installed():
        ours = similarity.maxsim(queries, documents)
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours - exact).abs().max() <= (theirs - exact).abs().max()


def test_tokens_cannot_be_weighted(similarity):
    queries, documents = embeddings(2, 3, 8), embeddings(2, 4, 8)
    with adapter.install(), pytest.raises(ValueError, match="a_mask must be 0 or 1 everywhere: tokens cannot be weig"):
        similarity.maxsim(queries, documents, torch.full((2, 3), 0.5))


def test_scores_of_groups(scoring):
    queries, documents = embeddings(2, 6, 12), embeddings(2, 3, 9, 12)
    query_mask, document_mask = ragged(2, 6), ragged(2, 3, 9)
    for name in ("colbert_scores", "colbert_kd_scores"):
        theirs, ours = getattr(scoring, name), getattr(adapter, name)
        for masks in ({}, {"queries_mask": query_mask, "documents_mask": document_mask}):
            compare(
                lambda call=theirs, masks=masks: call(queries, documents, **masks),
                [queries, documents],
                lambda call=ours, masks=masks: call(queries, documents, **masks),
            )
    masks = {"queries_mask": query_mask, "documents_mask": document_mask[:, 0]}
    compare(
        lambda: scoring.colbert_scores_pairwise(queries, documents[:, 0], **masks),
        [queries, documents],
        lambda: adapter.colbert_scores_pairwise(queries, documents[:, 0], **masks),
    )


@pytest.fixture(scope="module")
def model(similarity, tmp_path_factory):
    return multi_vector_encoder(save_bert(tmp_path_factory.mktemp("bert")))


LOSSES = {
    "MultiVectorMultipleNegativesRankingLoss": ("colbert_scores", None),
    "CachedMultiVectorMultipleNegativesRankingLoss": ("colbert_scores", None),
    "MultiVectorDistillKLDivLoss": ("colbert_kd_scores", torch.tensor([[3.0, 1.0], [2.0, 0.5], [1.0, 0.0]])),
    "MultiVectorMarginMSELoss": ("colbert_scores_pairwise", torch.tensor([1.0, 2.0, 0.5])),
}


def step(model, name, **options):
    """What one step with a loss of the library computes."""
    loss = getattr(library("sentence_transformers.multi_vector_encoder.losses"), name)(model, **options)
    return loss_and_step(model, loss, multi_vector_features(model), LOSSES[name][1])


@pytest.mark.parametrize("name", LOSSES)
def test_losses_gradients_and_steps(model, name):
    with our_ops_run(expected=False):
        expected = step(model, name)
    assert expected[0] > 0 and any(value.abs().sum() > 0 for value in expected[1:])
    with installed():
        assert_all_close(step(model, name), expected, atol=2e-5, rtol=1e-4)
    with our_ops_run():
        values = step(model, name, similarity_fct=getattr(adapter, LOSSES[name][0]))
    assert_all_close(values, expected, atol=2e-5, rtol=1e-4)


def test_similarity_of_a_model(model):
    queries, documents = model.encode_query(QUERIES), model.encode_document(POSITIVES)
    expected = model.similarity(queries, documents)
    with installed():
        torch.testing.assert_close(model.similarity(queries, documents), expected)
    torch.testing.assert_close(adapter.maxsim(queries, documents).cpu(), expected.cpu())


def evaluators(evaluation, **functions):
    """All evaluators of multi-vector models, on made-up texts; those that take a function get ours."""
    ids = ("a", "b", "c")
    data = dict(zip(ids, QUERIES, strict=True)), dict(zip(ids, POSITIVES, strict=True)), {key: {key} for key in ids}
    at = {"mrr_at_k": [3], "ndcg_at_k": [3], "accuracy_at_k": [1], "precision_recall_at_k": [1], "map_at_k": [3]}
    samples = [
        {"query": query, "positive": [positive], "negative": [text for text in NEGATIVES if text != positive]}
        for query, positive in zip(QUERIES, POSITIVES, strict=True)
    ]
    teacher, documents = [[3.0, 1.0], [2.0, 0.5], [1.0, 0.0]], list(zip(POSITIVES, NEGATIVES, strict=True))
    one, pairwise = functions.get("maxsim"), functions.get("maxsim_pairwise")
    names = {"score_functions": {"maxsim": one}} if one else {}
    return {
        "retrieval": evaluation.MultiVectorInformationRetrievalEvaluator(*data, **at, **names),
        "reranking": evaluation.MultiVectorRerankingEvaluator(samples, at_k=3, similarity_fct=one),
        "distillation": evaluation.MultiVectorDistillationEvaluator(
            QUERIES, documents, teacher, similarity_fct=pairwise
        ),
        "triplet": evaluation.MultiVectorTripletEvaluator(*COLUMNS),
    }


@pytest.mark.parametrize("name", ["retrieval", "reranking", "distillation", "triplet"])
def test_metrics_of_the_evaluators(model, name):
    evaluation = library("sentence_transformers.multi_vector_encoder.evaluation")
    with our_ops_run(expected=False):
        expected = evaluators(evaluation)[name](model)
    assert len(expected) > 0
    with installed():
        assert evaluators(evaluation)[name](model) == pytest.approx(expected, rel=1e-5)
    if name != "triplet":  # has no such argument
        functions = {"maxsim": adapter.maxsim, "maxsim_pairwise": adapter.maxsim_pairwise}
        with our_ops_run():
            values = evaluators(evaluation, **functions)[name](model).values()
        assert sorted(values) == pytest.approx(sorted(expected.values()), rel=1e-5)


@pytest.mark.parametrize("case", SENTENCE_TRANSFORMERS)
def test_two_ranks(similarity, case):
    errors = messages("SENTENCE_TRANSFORMERS")[case]
    assert not errors, errors
