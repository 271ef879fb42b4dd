"""PyLate: every entry of its scores, its losses on a stand-in for a model, and reranking."""

import pytest
import torch
from support.integrations import assert_all_close, embeddings, gradients, library, our_ops_run, ragged

from atk.integrations import pylate as adapter

pytestmark = pytest.mark.slow  # the library takes seconds to import


@pytest.fixture(scope="module")
def scores():
    return library("pylate.scores")


def compare(score, leaves, ours=None):
    with our_ops_run(expected=False):
        expected = gradients(score, leaves)
    with adapter.install(), our_ops_run():
        assert_all_close(gradients(score, leaves), expected)
    if ours is not None:
        with our_ops_run():
            assert_all_close(gradients(ours, leaves), expected)


def masked(queries, documents):
    """Embeddings and keyword arguments with their masks; padding has a similarity of 0."""
    return {"queries_mask": ragged(*queries).double(), "documents_mask": ragged(*documents)}


@pytest.mark.parametrize("with_masks", [False, True])
def test_scores_and_gradients(scores, with_masks):
    queries, documents, groups = embeddings(3, 6, 16), embeddings(5, 9, 16), embeddings(3, 2, 9, 16)
    masks = masked((3, 6), (5, 9)) if with_masks else {}
    compare(lambda: scores.colbert_scores(queries, documents, **masks), [queries, documents])
    masks = masked((3, 6), (3, 2, 9)) if with_masks else {}
    compare(
        lambda: scores.colbert_kd_scores(queries, groups, **masks),
        [queries, groups],
        lambda: adapter.colbert_kd_scores(queries, groups, **masks),
    )
    compare(
        lambda: scores.ColBERTScores()(queries, groups, **masks),
        [queries, groups],
        lambda: adapter.colbert_scores(queries, groups, **masks),
    )
    compare(lambda: scores.colbert_scores_pairwise(queries, documents[:3]), [queries, documents])


def test_lists_of_pairs_keep_the_code_of_the_library(scores):
    queries, documents = [torch.randn(3, 16), torch.randn(5, 16)], [torch.randn(7, 16), torch.randn(2, 16)]
    expected = scores.colbert_scores_pairwise(queries, documents)
    with adapter.install():
        torch.testing.assert_close(scores.colbert_scores_pairwise(queries, documents), expected)


def test_the_backend_can_still_be_chosen(scores):
    queries, documents = torch.randn(2, 3, 16), torch.randn(4, 5, 16)
    with adapter.install(), our_ops_run():
        scores.colbert_scores(queries, documents, backend="lik")
    with adapter.install(), our_ops_run(expected=False):
        scores.colbert_scores(queries, documents, backend="torch")
    with pytest.raises(RuntimeError, match="requires CUDA or MPS tensors"):
        scores.colbert_scores(queries, documents, backend="lik")


def test_tokens_cannot_be_weighted(scores):
    queries, documents = torch.randn(2, 3, 16), torch.randn(4, 5, 16)
    with adapter.install(), pytest.raises(ValueError, match="documents_mask must be 0 or 1 everywhere"):
        scores.colbert_scores(queries, documents, documents_mask=torch.full((4, 5), 0.5))


class Model(torch.nn.Module):
    """What the losses use of a ColBERT model: token embeddings, a skip list, and the choice of query positions."""

    def __init__(self, do_query_expansion):
        super().__init__()
        self.words = torch.nn.Embedding(50, 16, dtype=torch.float64)
        self.skiplist, self.do_query_expansion = [3, 4], do_query_expansion
        self.device = torch.device("cpu")

    def forward(self, features):
        return {"token_embeddings": self.words(features["input_ids"])}


@pytest.mark.parametrize("expansion", [False, True])
@pytest.mark.parametrize("name", ["Contrastive", "CachedContrastive", "Distillation"])
def test_losses_gradients_and_steps(scores, name, expansion):
    losses = library("pylate.losses")
    model = Model(expansion)
    sizes = [(4, 6), (12, 9)] if name == "Distillation" else [(4, 6), (4, 9), (4, 9)]
    features = [{"input_ids": torch.randint(50, size), "attention_mask": torch.rand(size) < 0.8} for size in sizes]
    labels = torch.rand(4, 3, dtype=torch.float64) if name == "Distillation" else None
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def step(**options):
        model.load_state_dict(before)
        model.zero_grad()
        loss = getattr(losses, name)(model, **options)(features, labels)
        loss.backward()
        gradient = model.words.weight.grad.clone()
        torch.optim.SGD(model.parameters(), 0.1).step()
        return loss.detach(), gradient, model.words.weight.detach().clone()

    with our_ops_run(expected=False):
        expected = step()
    with adapter.install(), our_ops_run():
        assert_all_close(step(), expected)
    metric = adapter.colbert_kd_scores if name == "Distillation" else adapter.colbert_scores
    with our_ops_run():
        assert_all_close(step(score_metric=metric), expected)


def test_reranking(scores):
    rank = library("pylate.rank")
    queries = [torch.randn(6, 16) for _ in range(2)]
    documents = [[torch.randn(length, 16) for length in (4, 9, 2)] for _ in range(2)]
    arguments = {"documents_ids": [["a", "b", "c"]] * 2, "queries_embeddings": queries}

    def ranked():
        return rank.rerank(**arguments, documents_embeddings=documents)

    expected = ranked()
    with adapter.install(), our_ops_run():
        ours = ranked()
    for one, other in zip(ours, expected, strict=True):
        assert [entry["id"] for entry in one] == [entry["id"] for entry in other]
        assert [entry["score"] for entry in one] == pytest.approx([entry["score"] for entry in other], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_at_least_as_close_to_float64(scores, dtype):
    queries, documents = torch.randn(3, 40, 64).to(dtype), torch.randn(4, 50, 64).to(dtype)
    exact = scores.colbert_scores(queries.double(), documents.double())
    theirs = scores.colbert_scores(queries, documents)
    with adapter.install(), our_ops_run():
        ours = scores.colbert_scores(queries, documents)
    assert ours.dtype == theirs.dtype == dtype
    assert (ours - exact).abs().max() <= (theirs - exact).abs().max()


def test_empty_documents_and_padding_score_zero(scores):
    """Where all similarities are negative, padding wins with 0, as in the library."""
    queries, documents = torch.rand(2, 3, 8), -torch.rand(3, 4, 8)
    mask = torch.tensor([[True] * 4, [True, False, True, True], [False] * 4])
    expected = scores.colbert_scores(queries, documents, documents_mask=mask)
    assert (expected[:, 0] < 0).all() and (expected[:, 1:] == 0).all()
    with adapter.install(), our_ops_run():
        torch.testing.assert_close(scores.colbert_scores(queries, documents, documents_mask=mask), expected)
