"""PyLate: ColBERT scores in training, reranking, and evaluation, without the scores of all token pairs.

`install()` takes the place of its optional backend `late-interaction-kernels`, also on the CPU. Padding competes with a
similarity of 0, as in its PyTorch backend, which `PYLATE_SCORES_BACKEND=torch` still gives. Without `install()`, hand
the functions below to the losses (`score_metric=colbert_scores`).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from atk.integrations.maxsim import boolean, maxsim, maxsim_candidates, maxsim_pairs, zeroed
from atk.integrations.rebinding import Rebinding, Replacements, import_library
from atk.ops.checks import DTYPES

__all__ = ["colbert_kd_scores", "colbert_scores", "install", "uninstall"]

VERSIONS = ("1.6.0",)


def _replacements() -> Replacements:
    scores = import_library("pylate.scores.colbert")
    backend = import_library("pylate.scores._lik_backend")

    def check(queries: Any, documents: Any) -> None:
        if not (isinstance(queries, Tensor) and isinstance(documents, Tensor)):
            raise backend.LIKUnsupported("queries and documents must be tensors")
        if (queries.dtype, queries.device) != (documents.dtype, documents.device) or queries.dtype not in DTYPES:
            raise backend.LIKUnsupported("queries and documents must have the same floating-point dtype and device")

    def colbert_scores_lik(
        queries_embeddings: Tensor,
        documents_embeddings: Tensor,
        queries_mask: Tensor | None = None,
        documents_mask: Tensor | None = None,
    ) -> Tensor:
        check(queries_embeddings, documents_embeddings)
        return _scores(maxsim, queries_embeddings, documents_embeddings, queries_mask, documents_mask)

    def colbert_kd_scores_lik(
        queries_embeddings: Tensor,
        documents_embeddings: Tensor,
        queries_mask: Tensor | None = None,
        documents_mask: Tensor | None = None,
    ) -> Tensor:
        check(queries_embeddings, documents_embeddings)
        return _scores(maxsim_candidates, queries_embeddings, documents_embeddings, queries_mask, documents_mask)

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


def _scores(
    score: Callable[[Tensor, Tensor], Tensor],
    queries: Tensor,
    documents: Tensor,
    queries_mask: Tensor | None,
    documents_mask: Tensor | None,
) -> Tensor:
    query_mask, document_mask = boolean("queries_mask", queries_mask), boolean("documents_mask", documents_mask)
    return score(zeroed(queries, query_mask), zeroed(documents, document_mask)).to(queries.dtype)


def colbert_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
) -> Tensor:
    """`score_metric` of `Contrastive` and `CachedContrastive`: documents in groups of N.

    Args:
        queries_embeddings: `[Q, L_q, D]`.
        documents_embeddings: `[G, N, L_d, D]`, same dtype and device.
        queries_mask, documents_mask: `[Q, L_q]` and `[G, N, L_d]`, 0 or 1; None: all valid. Padding counts with a
            similarity of 0.

    Returns:
        `[Q, G * N]` in the dtype of the embeddings.

    Raises:
        ValueError, TypeError: as in `atk.max_mean_similarity`, or a mask has other values than 0 and 1.
    """
    documents = documents_embeddings.flatten(0, 1)
    mask = None if documents_mask is None else documents_mask.flatten(0, 1)
    return _scores(maxsim, queries_embeddings, documents, queries_mask, mask)


def colbert_kd_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
) -> Tensor:
    """`score_metric` of `Distillation`: documents `[Q, N, L_d, D]` are each query's candidates; scores `[Q, N]`.

    Arguments, errors: as in `colbert_scores`.
    """
    return _scores(maxsim_candidates, queries_embeddings, documents_embeddings, queries_mask, documents_mask)


_rebinding = Rebinding("pylate", VERSIONS, _replacements)
install = _rebinding.install
uninstall = _rebinding.uninstall
