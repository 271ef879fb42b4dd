"""colpali-engine: scores, all late-interaction losses, and the scores of its processors."""

import pytest
import torch
from support.integrations import assert_all_close, embeddings, gradients, library, our_ops_run, ragged

from atk.integrations import colpali as adapter

pytestmark = pytest.mark.slow  # the library takes seconds to import


@pytest.fixture(scope="module")
def scores():
    return library("colpali_engine.utils.maxsim")


def padded(*shape, dtype=torch.float64):
    """A leaf, and a function that zeroes its padding, as the models do; the last item is empty."""
    leaf, mask = embeddings(*shape, 16, dtype=dtype), ragged(*shape)
    return leaf, lambda: leaf * mask[..., None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["maxsim_inbatch", "maxsim_kd"])
def test_scores_and_gradients(scores, name, dtype):
    query, zeroed_query = padded(3, 6, dtype=torch.float64)
    documents, zeroed_documents = padded(*((5, 9) if name == "maxsim_inbatch" else (3, 4, 9)), dtype=torch.float64)

    def score(dtype=dtype):
        return getattr(scores, name)(zeroed_query().to(dtype), zeroed_documents().to(dtype))

    exact = gradients(lambda: score(torch.float64), [query, documents])
    theirs = gradients(score, [query, documents])
    with adapter.install(), our_ops_run():
        ours = gradients(score, [query, documents])
    assert ours[0].dtype == theirs[0].dtype == dtype
    if dtype == torch.bfloat16:
        errors = [max((a.double() - b).abs().max() for a, b in zip(x, exact, strict=True)) for x in (ours, theirs)]
        assert errors[0] <= 1.1 * errors[1]
    else:
        assert_all_close(ours, theirs, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=1e-5)
    with our_ops_run(expected=False):
        score()


def test_the_backend_can_still_be_chosen(scores, monkeypatch):
    query, documents = torch.randn(2, 3, 16), torch.randn(4, 5, 16)
    unsupported = library("colpali_engine.utils._lik_backend").LIKUnsupportedError
    with adapter.install():
        monkeypatch.setenv("COLPALI_SCORES_BACKEND", "lik")
        with our_ops_run():
            scores.maxsim_inbatch(query, documents)
        with pytest.raises(unsupported, match="must have the same floating-point dtype and device, got"):
            scores.maxsim_inbatch(query.long(), documents.long())
        monkeypatch.setenv("COLPALI_SCORES_BACKEND", "torch")
        with our_ops_run(expected=False):
            scores.maxsim_inbatch(query, documents)
    monkeypatch.setenv("COLPALI_SCORES_BACKEND", "lik")
    with pytest.raises(unsupported):
        scores.maxsim_inbatch(query, documents)


@pytest.mark.parametrize(
    "name",
    [
        "ColbertLoss",
        "ColbertPairwiseCELoss",
        "ColbertSigmoidLoss",
        "ColbertNegativeCELoss",
        "ColbertPairwiseNegativeCELoss",
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_losses_gradients_and_steps(scores, name, normalize):
    losses = library("colpali_engine.loss.late_interaction_losses")
    criterion = getattr(losses, name)(normalize_scores=normalize)
    mask = {shape: torch.rand(*shape) < 0.7 for shape in ((4, 6), (4, 9), (4, 3, 9))}
    for value in mask.values():
        value[..., 0] = True
    before = [embeddings(*shape, 16).detach() for shape in mask]

    def step():
        weights = [row.clone().requires_grad_() for row in before]
        masked = [row * value[..., None] for row, value in zip(weights, mask.values(), strict=True)]
        loss = criterion(*masked) if "Negative" in name else criterion(*masked[:2])
        loss.backward()
        optimizer = torch.optim.Adam(weights, 0.01)
        optimizer.step()
        return [
            loss.detach(),
            *(row.grad for row in weights if row.grad is not None),
            *(row.detach() for row in weights),
        ]

    with our_ops_run(expected=False):
        expected = step()
    with adapter.install(), our_ops_run():
        assert_all_close(step(), expected, atol=1e-8, rtol=1e-6)


def test_scores_of_a_processor(scores):
    processing = library("colpali_engine.utils.processing_utils")
    queries = [torch.randn(length, 16) for length in (3, 1, 5)]
    passages = [torch.randn(length, 16) for length in (7, 2, 4, 9)]

    def score():
        return processing.BaseVisualRetrieverProcessor.score_multi_vector(queries, passages, batch_size=2, device="cpu")

    expected = score()
    with adapter.install(), our_ops_run():
        torch.testing.assert_close(score(), expected)
