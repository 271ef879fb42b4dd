"""PyLate: ColBERT scores in training, reranking, and evaluation, without the scores of all token pairs.

`install()` takes the place of its optional backend `late-interaction-kernels`, also on the CPU. Padding competes with a
similarity of 0, as in its PyTorch backend, which `PYLATE_SCORES_BACKEND=torch` still gives.
"""

from typing import Any

from torch import Tensor

from atk.integrations.maxsim import boolean, maxsim, maxsim_candidates, maxsim_pairs, zeroed
from atk.integrations.rebinding import Rebinding, Replacements, import_library
from atk.ops.checks import DTYPES

VERSIONS = ("1.6.0",)


def _replacements() -> Replacements:
    scores = import_library("pylate.scores.colbert")
    backend = import_library("pylate.scores._lik_backend")

    def check(queries: Any, documents: Any) -> None:
        if not (isinstance(queries, Tensor) and isinstance(documents, Tensor)):
            raise backend.LIKUnsupported("queries and documents must be tensors")
        if (queries.dtype, queries.device) != (documents.dtype, documents.device) or queries.dtype not in DTYPES:
            raise backend.LIKUnsupported("queries and documents must have the same floating-point dtype and device")

    def prepared(
        queries: Tensor, documents: Tensor, queries_mask: Tensor | None, documents_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        check(queries, documents)
        query_mask, document_mask = boolean("queries_mask", queries_mask), boolean("documents_mask", documents_mask)
        return zeroed(queries, query_mask), zeroed(documents, document_mask)

    def colbert_scores_lik(
        queries_embeddings: Tensor,
        documents_embeddings: Tensor,
        queries_mask: Tensor | None = None,
        documents_mask: Tensor | None = None,
    ) -> Tensor:
        sides = prepared(queries_embeddings, documents_embeddings, queries_mask, documents_mask)
        return maxsim(*sides).to(queries_embeddings.dtype)

    def colbert_kd_scores_lik(
        queries_embeddings: Tensor,
        documents_embeddings: Tensor,
        queries_mask: Tensor | None = None,
        documents_mask: Tensor | None = None,
    ) -> Tensor:
        sides = prepared(queries_embeddings, documents_embeddings, queries_mask, documents_mask)
        return maxsim_candidates(*sides).to(queries_embeddings.dtype)

    def colbert_scores_pairwise_lik(queries_embeddings: Tensor, documents_embeddings: Tensor) -> Tensor:
        check(queries_embeddings, documents_embeddings)
        return maxsim_pairs(queries_embeddings, documents_embeddings).to(queries_embeddings.dtype)

    return [
        (scores, "_try_lik", lambda backend, *tensors: backend in ("auto", "lik")),
        (scores, "_try_flash", lambda backend, *tensors: backend == "flash"),
        (backend, "colbert_scores_lik", colbert_scores_lik),
        (backend, "colbert_kd_scores_lik", colbert_kd_scores_lik),
        (backend, "colbert_scores_pairwise_lik", colbert_scores_pairwise_lik),
    ]


_rebinding = Rebinding("pylate", VERSIONS, _replacements)
install = _rebinding.install
uninstall = _rebinding.uninstall
