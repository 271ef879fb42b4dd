"""MaxSim, ColBERT's late interaction, from the max-mean ops: queries are passed as clips, documents as captions."""

import torch
from torch import Tensor

from atk.ops.max_mean import max_mean_similarity, max_mean_similarity_pairs

__all__ = ["boolean", "maxsim", "maxsim_candidates", "maxsim_pairs", "zeroed"]


def maxsim(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None = None, document_mask: Tensor | None = None
) -> Tensor:
    """`sum_s max_t <query[i, s], document[j, t]>` over valid s and t, for every query and document.

    Args:
        queries: `[N_q, L_q, D]`, float32, bfloat16, float16, or float64.
        documents: `[N_d, L_d, D]`, same dtype and device.
        query_mask, document_mask: boolean `[N_q, L_q]` and `[N_d, L_d]`, True = valid; None = all valid.

    Returns:
        `[N_q, N_d]` in float32 (float64 for float64 input); 0 for queries and documents without a valid token.

    Raises:
        ValueError, TypeError: as in `atk.max_mean_similarity`.
    """
    means = max_mean_similarity(queries, documents, query_mask, document_mask)
    return means * (queries.shape[1] if query_mask is None else query_mask.sum(1, keepdim=True))


def maxsim_pairs(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None = None, document_mask: Tensor | None = None
) -> Tensor:
    """`maxsim` of query i and document i only: `[N]`."""
    means = max_mean_similarity_pairs(queries, documents, query_mask, document_mask)
    return means * (queries.shape[1] if query_mask is None else query_mask.sum(1))


def maxsim_candidates(
    queries: Tensor, documents: Tensor, query_mask: Tensor | None = None, document_mask: Tensor | None = None
) -> Tensor:
    """`maxsim` of every query and its own K candidates: documents `[N, K, L_d, D]`, their mask, and scores `[N, K]`."""
    masks = [None] * documents.shape[1] if document_mask is None else document_mask.unbind(1)
    pairs = zip(documents.unbind(1), masks, strict=True)
    return torch.stack([maxsim_pairs(queries, candidates, query_mask, mask) for candidates, mask in pairs], 1)


def zeroed(embeddings: Tensor, mask: Tensor | None) -> Tensor:
    """Embeddings with 0 in place of padding, for libraries where padding competes with a similarity of 0."""
    return embeddings if mask is None else embeddings * mask[..., None].to(embeddings.dtype)


def boolean(name: str, mask: Tensor | None) -> Tensor | None:
    """A mask of any dtype as booleans.

    Raises:
        ValueError: it has other values than 0 and 1, by which some libraries weigh tokens.
    """
    if mask is None or mask.dtype == torch.bool:
        return mask
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{name} must be 0 or 1 everywhere: tokens cannot be weighted")
    return mask.bool()
