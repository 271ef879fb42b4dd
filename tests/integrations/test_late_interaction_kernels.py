"""late-interaction-kernels: its scorer and its retrieval on the CPU."""

import pytest
import torch
from support.integrations import assert_all_close, embeddings, gradients, library, our_ops_run, ragged

from atk.integrations import late_interaction_kernels as adapter


@pytest.fixture(scope="module")
def lik():
    return library("late_interaction_kernels")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_scores_and_gradients(lik, masked, dtype, normalize):
    scorer = lik.MaxSimScorer(normalize=normalize)
    masks = (ragged(3, 6), ragged(5, 9)) if masked else (None, None)
    queries, documents = (embeddings(*shape, 16) for shape in ((3, 6), (5, 9)))

    def score():
        return scorer(queries.to(dtype), documents.to(dtype), *masks)

    with our_ops_run(expected=False):
        expected = gradients(score, [queries, documents])
    with adapter.install(), our_ops_run():
        ours = gradients(score, [queries, documents])
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert_all_close(ours, expected, atol=tolerance, rtol=tolerance)
    if masked:
        assert (ours[0][:, -1] == 0).all() and (ours[0][-1] == 0).all()
    with our_ops_run(expected=False):
        score()


def test_retrieval_and_other_shapes(lik):
    queries, documents = torch.randn(3, 6, 16), torch.randn(20, 9, 16)
    expected = lik.retrieve(queries, documents, 4, chunk=7)
    single = lik.reference.maxsim_reference(queries[0], documents)
    with adapter.install(), our_ops_run():
        ours = lik.retrieve(queries, documents, 4, chunk=7)
        torch.testing.assert_close(lik.reference.maxsim_reference(queries[0], documents), single)
    torch.testing.assert_close(tuple(ours), tuple(expected))
