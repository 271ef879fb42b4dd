"""colbert-ai: scores of padded and packed passages, and the training step with in-batch negatives."""

import types

import pytest
import torch
import torch.nn.functional as F
from support.integrations import assert_all_close, embeddings, gradients, library, our_ops_run, ragged

from atk.integrations import colbert as adapter

pytestmark = pytest.mark.slow  # the library takes seconds to import


@pytest.fixture(scope="module")
def colbert():
    """The module with the scores; the C++ maxima are repeated in Python, since compiling them takes a minute."""
    modeling = library("colbert.modeling.colbert")
    modeling.ColBERT.segmented_maxsim = staticmethod(segmented_maxsim)
    return modeling


def segmented_maxsim(scores, lengths):
    parts = scores.split(lengths.tolist())
    return torch.stack([F.pad(part, (0, 0, 0, 1)).amax(0).sum() for part in parts])


@pytest.mark.parametrize("queries", [1, 5], ids=["against all", "aligned"])
@pytest.mark.parametrize("module", ["modeling.colbert", "search.index_storage"])
def test_scores_and_gradients(colbert, module, queries):
    place = library(f"colbert.{module}")
    query, documents, mask = embeddings(queries, 6, 16), embeddings(5, 9, 16), ragged(5, 9)

    def score(mask=mask):
        return place.colbert_score(query, documents, mask, config=colbert.ColBERTConfig())

    for shape in (mask, mask[..., None]):
        with our_ops_run(expected=False):
            expected = gradients(lambda shape=shape: score(shape), [query, documents])
        with adapter.install(), our_ops_run():
            assert_all_close(gradients(lambda shape=shape: score(shape), [query, documents]), expected)
    assert expected[0][-1] == -9999 * 6


def test_packed_scores(colbert):
    storage = library("colbert.search.index_storage")
    lengths = torch.tensor([3, 1, 0, 5])
    query, documents = torch.randn(1, 6, 16), torch.randn(9, 16) - 0.2
    config = colbert.ColBERTConfig()
    expected = storage.colbert_score_packed(query, documents, lengths, config)
    assert expected[2] == 0
    with adapter.install(), our_ops_run():
        torch.testing.assert_close(storage.colbert_score_packed(query, documents, lengths, config), expected)


def test_other_interactions_keep_the_code_of_the_library(colbert, monkeypatch):
    config = colbert.ColBERTConfig(interaction="flipr", query_maxlen=64)
    arguments = torch.randn(1, 64, 8), torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool), config
    expected = colbert.colbert_score(*arguments)
    with adapter.install(), our_ops_run(expected=False):
        torch.testing.assert_close(colbert.colbert_score(*arguments), expected)
    storage, given = library("colbert.search.index_storage"), object()
    for owner, name in ((colbert, "colbert_score_packed"), (colbert.ColBERT, "compute_ib_loss")):
        monkeypatch.setattr(owner, name, lambda *arguments: arguments)
    model = types.SimpleNamespace(colbert_config=config)
    with adapter.install():
        assert storage.colbert_score_packed(given, given, given, config) == (given, given, given, config)
        assert colbert.ColBERT.compute_ib_loss(model, given, given, given) == (model, given, given, given)


@pytest.mark.parametrize("nway", [1, 3])
def test_a_training_step(colbert, nway):
    class Model(colbert.ColBERT):
        """Embeddings in place of BERT, which the library cannot load here."""

        def __init__(self):
            torch.nn.Module.__init__(self)
            self.colbert_config = types.SimpleNamespace(
                nway=nway, use_ib_negatives=True, interaction="colbert", similarity="cosine", total_visible_gpus=0
            )
            self.words = torch.nn.Embedding(50, 16, dtype=torch.float64)

        def query(self, ids):
            return F.normalize(self.words(ids), dim=-1)

        def doc(self, ids, keep_dims):
            mask = (ids > 10)[..., None]
            return F.normalize(self.words(ids) * mask, dim=-1), mask

    torch.manual_seed(0)
    model = Model()
    queries, documents = torch.randint(50, (4, 5)), torch.randint(50, (4 * nway, 9))
    documents[:, 0] = 20
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def step():
        model.load_state_dict(before)
        model.zero_grad()
        scores, loss = model((queries,), (documents,))
        (loss + F.cross_entropy(scores.view(4, nway), torch.zeros(4, dtype=torch.long))).backward()
        gradient = model.words.weight.grad.clone()
        torch.optim.SGD(model.parameters(), 0.1).step()
        return scores.detach(), loss.detach(), gradient, model.words.weight.detach().clone()

    with our_ops_run(expected=False):
        expected = step()
    with adapter.install(), our_ops_run():
        assert_all_close(step(), expected)
