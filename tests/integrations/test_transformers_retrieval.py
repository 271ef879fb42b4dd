"""transformers: `score_retrieval` of three processors, for lists of unequal length and padded tensors."""

import pytest
import torch
from support.integrations import assert_all_close, gradients, library, our_ops_run

from atk.integrations import transformers_retrieval as adapter

pytestmark = pytest.mark.slow  # the library takes seconds to import


@pytest.fixture(scope="module", params=adapter.PROCESSORS)
def processor(request):
    """A processor without the image processor and tokenizer, which the scores do not need."""
    name = request.param
    cls = getattr(library(f"transformers.models.{name}.processing_{name}"), adapter.PROCESSORS[name])
    return cls.__new__(cls)


def items(lengths, dtype):
    return [(torch.randn(length, 16, dtype=torch.float64) - 0.3).to(dtype).requires_grad_() for length in lengths]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [2, 128])
def test_scores_and_gradients(processor, dtype, batch_size):
    queries, passages = items((3, 1, 5), dtype), items((7, 2, 4, 9, 1), dtype)
    original = type(processor).score_retrieval

    def score():
        return processor.score_retrieval(queries, passages, batch_size=batch_size)

    with our_ops_run(expected=False):
        theirs = gradients(score, [*queries, *passages])
    with adapter.install(), our_ops_run():
        ours = gradients(score, [*queries, *passages])
    assert ours[0].dtype == dtype and ours[0].shape == (3, 5)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert_all_close(ours, theirs, atol=tolerance, rtol=tolerance)
    assert type(processor).score_retrieval is original


def test_tensors_output_dtypes_and_errors(processor):
    queries, passages = torch.randn(2, 3, 16), torch.randn(4, 5, 16)
    expected = processor.score_retrieval(queries, passages, output_dtype=torch.float64)
    with adapter.install():
        actual = processor.score_retrieval(queries, passages, output_dtype=torch.float64)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="passage_embeddings must hold at least one item, got none"):
            processor.score_retrieval(queries, [])
        with pytest.raises(ValueError, match=r"got torch.float32 on cpu and torch.float16 on cpu"):
            processor.score_retrieval(queries, passages.half())
