"""colbert-ai: scores of passages and the loss with in-batch negatives, without the scores of all token pairs.

`install()` rebinds them for training and for search, except for `interaction="flipr"`, which keeps the library's code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atk.integrations.maxsim import maxsim, maxsim_pairs
from atk.integrations.rebinding import Rebinding, Replacements, import_library
from atk.ops.max_mean import max_mean_similarity_varlen

__all__ = ["install", "uninstall"]

VERSIONS = ("0.2.22",)
EMPTY_TOKEN = -9999.0  # the library's best similarity of a query token in a document without a valid token


def _filled(scores: Tensor, mask: Tensor, query_tokens: int) -> Tensor:
    """Scores `[..., N]` with the library's value for documents without a valid token."""
    return scores.masked_fill(~mask.any(1), EMPTY_TOKEN * query_tokens)


def _replacements() -> Replacements:
    modeling = import_library("colbert.modeling.colbert")
    storage = import_library("colbert.search.index_storage")
    padded, packed, in_batch = modeling.colbert_score, modeling.colbert_score_packed, modeling.ColBERT.compute_ib_loss

    def colbert_score(Q: Tensor, D_padded: Tensor, D_mask: Tensor, config: Any = None) -> Tensor:
        config = modeling.ColBERTConfig() if config is None else config
        if config.interaction != "colbert":
            return padded(Q, D_padded, D_mask, config)
        if config.total_visible_gpus > 0:
            Q, D_padded, D_mask = Q.cuda(), D_padded.cuda(), D_mask.cuda()
        Q, mask = Q.to(D_padded.dtype), D_mask.reshape(D_padded.shape[:2]).bool()
        scores = maxsim(Q, D_padded, None, mask)[0] if len(Q) == 1 else maxsim_pairs(Q, D_padded, None, mask)
        return _filled(scores, mask, Q.shape[1]).to(D_padded.dtype)

    def colbert_score_packed(Q: Tensor, D_packed: Tensor, D_lengths: Tensor, config: Any = None) -> Tensor:
        config = modeling.ColBERTConfig() if config is None else config
        if config.interaction != "colbert":
            return packed(Q, D_packed, D_lengths, config)
        on_gpu = config.total_visible_gpus > 0
        if on_gpu:
            Q, D_packed, D_lengths = Q.cuda(), D_packed.cuda(), D_lengths.cuda()
        query, lengths = Q.reshape(-1, Q.shape[-1]).to(D_packed.dtype), D_lengths.to(D_packed.device)
        empty = lengths == 0
        if not on_gpu:  # the library's C++ code starts each maximum at 0
            D_packed, lengths = _with_zero_rows(D_packed, lengths)
        starts = F.pad(lengths.cumsum(0), (1, 0)).int()
        whole = torch.tensor([0, len(query)], dtype=torch.int32, device=query.device)
        scores = max_mean_similarity_varlen(query, D_packed, whole, starts)[0] * len(query)
        return (scores if not on_gpu else scores.masked_fill(empty, EMPTY_TOKEN * len(query))).to(D_packed.dtype)

    def compute_ib_loss(self: Any, Q: Tensor, D: Tensor, D_mask: Tensor) -> Tensor:
        if self.colbert_config.interaction != "colbert":
            return in_batch(self, Q, D, D_mask)
        mask = D_mask.reshape(D.shape[:2]).bool()
        scores = _filled(maxsim(Q.to(D.dtype), D, None, mask), mask, Q.shape[1])
        return F.cross_entropy(*_positives_and_others(scores, self.colbert_config.nway))

    return [
        (modeling, "colbert_score", colbert_score),
        (modeling.ColBERT, "compute_ib_loss", compute_ib_loss),
        (storage, "colbert_score", colbert_score),
        (storage, "colbert_score_packed", colbert_score_packed),
    ]


def _with_zero_rows(rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Packed documents `[T, D]` with a row of zeros at the end of each, and their lengths."""
    ends = (lengths + 1).cumsum(0) - 1
    keep = torch.ones(len(rows) + len(lengths), dtype=torch.bool, device=rows.device)
    keep[ends] = False
    padded = rows.new_zeros(len(keep), rows.shape[1])
    padded[keep] = rows
    return padded, lengths + 1


def _positives_and_others(scores: Tensor, nway: int) -> tuple[Tensor, Tensor]:
    """Scores `[N, N * nway]` without each query's own negatives, and the column of its positive."""
    queries = torch.arange(len(scores), device=scores.device)
    own_group = torch.arange(scores.shape[1], device=scores.device) // nway == queries[:, None]
    positive = torch.arange(scores.shape[1], device=scores.device) == queries[:, None] * nway
    return scores[positive | ~own_group].view(len(scores), -1), queries * nway


_rebinding = Rebinding("colbert-ai", VERSIONS, _replacements)
install = _rebinding.install
uninstall = _rebinding.uninstall
