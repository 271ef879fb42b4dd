"""sentence-transformers: MaxSim of multi-vector models without the scores of all token pairs.

`install()` covers every entry point: losses, evaluators, and `model.similarity`. Without it, hand the functions below
to losses (`similarity_fct=colbert_scores`) and evaluators (`score_functions={"maxsim": maxsim}`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from atk.integrations.maxsim import boolean
from atk.integrations.maxsim import maxsim as all_pairs
from atk.integrations.maxsim import maxsim_pairs as matching_pairs
from atk.integrations.rebinding import Rebinding, Replacements, import_library

__all__ = [
    "VERSIONS",
    "colbert_kd_scores",
    "colbert_scores",
    "colbert_scores_pairwise",
    "install",
    "maxsim",
    "maxsim_pairwise",
    "uninstall",
]

VERSIONS = ("6.0.0", "6.0.1", "6.1.0", "6.2.0")
EMPTY_DOCUMENT = -1e9  # the library's score of a document without a valid token
Items = Sequence[Tensor | np.ndarray] | np.ndarray | Tensor


def _replacements() -> Replacements:
    library = import_library("sentence_transformers.util.similarity")
    by_documents, by_pairs = library._maxsim_score_documents, library._maxsim_score_pairs

    def score_documents(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> Tensor:
        if b.shape[1] == 0:
            return by_documents(a, b, a_mask, b_mask)
        scores = _scores(all_pairs, a, b, a_mask, b_mask)
        return scores if b_mask is None else library._fill_empty_document_scores(scores, ~b_mask.bool().any(-1))

    def score_pairs(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> Tensor:
        if b.shape[1] == 0:
            return by_pairs(a, b, a_mask, b_mask)
        scores = _scores(matching_pairs, a, b, a_mask, b_mask)
        return scores if b_mask is None else library._fill_empty_document_scores(scores, ~b_mask.bool().any(-1))

    return [
        (library, "_maxsim_score_documents", score_documents),
        (library, "_maxsim_score_pairs", score_pairs),
    ]


_rebinding = Rebinding("sentence-transformers", VERSIONS, _replacements)
install = _rebinding.install
uninstall = _rebinding.uninstall


def maxsim(a: Items, b: Items, a_mask: Any = None, b_mask: Any = None, length_normalize: bool = False) -> Tensor:
    """The library's `maxsim`: every query against every document.

    Args:
        a: queries `[N_q, L_q, D]`, or a sequence of `[L, D]`, or a single `[L, D]`. Integers are converted to float32.
        b: documents, likewise. The scores are computed on their device.
        a_mask, b_mask: `[N_q, L_q]` and `[N_d, L_d]`, 0 or 1. None: rows of zeros are padding.
        length_normalize: whether to divide by the number of valid query tokens.

    Returns:
        `[N_q, N_d]`, float32; -1e9 for a document without a valid token.

    Raises:
        ValueError, TypeError: as in `atk.max_mean_similarity`, or a mask has other values than 0 and 1.
    """
    documents, document_mask = _padded("b", b, b_mask)
    queries, query_mask = (side.to(documents.device) for side in _padded("a", a, a_mask))
    scores = _scores(all_pairs, queries, documents, query_mask, document_mask)
    scores = scores.masked_fill(~document_mask.any(1), EMPTY_DOCUMENT)
    return scores / query_mask.sum(1, keepdim=True).clamp(min=1) if length_normalize else scores


def maxsim_pairwise(
    a: Items, b: Items, a_mask: Any = None, b_mask: Any = None, length_normalize: bool = False
) -> Tensor:
    """The library's `maxsim_pairwise`: query i against document i, `[N]`; arguments and errors as in `maxsim`."""
    documents, document_mask = _padded("b", b, b_mask)
    queries, query_mask = (side.to(documents.device) for side in _padded("a", a, a_mask))
    scores = _scores(matching_pairs, queries, documents, query_mask, document_mask)
    scores = scores.masked_fill(~document_mask.any(1), EMPTY_DOCUMENT)
    return scores / query_mask.sum(1).clamp(min=1) if length_normalize else scores


def colbert_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    length_normalize: bool = False,
) -> Tensor:
    """`similarity_fct` of the library's contrastive losses, cached or not: documents in groups of N.

    Args:
        queries_embeddings: `[Q, L_q, D]`.
        documents_embeddings: `[G, N, L_d, D]`.
        queries_mask, documents_mask: `[Q, L_q]` and `[G, N, L_d]`, as in `maxsim`.
        length_normalize: as in `maxsim`.

    Returns, raises: `[Q, G * N]`, float32; as in `maxsim`.
    """
    documents = documents_embeddings.flatten(0, 1)
    mask = None if documents_mask is None else documents_mask.flatten(0, 1)
    return maxsim(queries_embeddings, documents, queries_mask, mask, length_normalize)


def colbert_kd_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    length_normalize: bool = False,
) -> Tensor:
    """`similarity_fct` of `MultiVectorDistillKLDivLoss`: documents `[Q, N, L_d, D]` are each query's candidates.

    Returns, raises: `[Q, N]`, float32; as in `maxsim`.
    """
    candidates = documents_embeddings.unbind(1)
    masks = [None] * len(candidates) if documents_mask is None else documents_mask.unbind(1)
    columns = [
        maxsim_pairwise(queries_embeddings, documents, queries_mask, mask, length_normalize)
        for documents, mask in zip(candidates, masks, strict=True)
    ]
    return torch.stack(columns, 1)


def colbert_scores_pairwise(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    length_normalize: bool = False,
) -> Tensor:
    """`similarity_fct` of `MultiVectorMarginMSELoss`: query i against document i, `[N]`, as in `maxsim_pairwise`."""
    return maxsim_pairwise(queries_embeddings, documents_embeddings, queries_mask, documents_mask, length_normalize)


def _scores(score: Callable, a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> Tensor:
    """Scores in the dtype of the library's: float32, unless the mask of the queries is float64."""
    dtype = torch.float32 if a_mask is None else torch.promote_types(torch.float32, a_mask.dtype)
    return score(a, b, boolean("a_mask", a_mask), None if b_mask is None else b_mask.bool()).to(dtype)


def _padded(name: str, items: Items, mask: Any) -> tuple[Tensor, Tensor]:
    """Embeddings `[N, L, D]` and their boolean mask `[N, L]`."""
    if not isinstance(items, Tensor | np.ndarray):
        rows = [torch.as_tensor(item) for item in items]
        if mask is None:
            mask = [row.new_ones(len(row), dtype=torch.bool) for row in rows]
        items = pad_sequence(rows, batch_first=True)
    embeddings = torch.as_tensor(items)
    if not embeddings.is_floating_point():
        embeddings = embeddings.float()
    if not (mask is None or isinstance(mask, Tensor | np.ndarray)):
        mask = pad_sequence([torch.as_tensor(row) for row in mask], batch_first=True)
    mask = embeddings.any(-1) if mask is None else torch.as_tensor(mask, device=embeddings.device)
    if embeddings.dim() == 2:
        embeddings, mask = embeddings[None], mask.reshape(1, -1)
    valid = boolean(f"{name}_mask", mask)
    assert valid is not None
    return embeddings, valid
