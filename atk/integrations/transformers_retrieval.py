"""transformers: `score_retrieval` of the processors of ColPali, ColQwen2, and ColModernVBert.

`install()` computes it without the scores of all token pairs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from atk.integrations.maxsim import maxsim
from atk.integrations.rebinding import Rebinding, Replacements, import_library

__all__ = ["install", "score_retrieval", "uninstall"]

VERSIONS = ("5.23.0", "5.24.0")
PROCESSORS = {
    "colpali": "ColPaliProcessor",
    "colqwen2": "ColQwen2Processor",
    "colmodernvbert": "ColModernVBertProcessor",
}


def score_retrieval(
    self: Any,
    query_embeddings: Tensor | Sequence[Tensor],
    passage_embeddings: Tensor | Sequence[Tensor],
    batch_size: int = 128,
    output_dtype: torch.dtype | None = None,
    output_device: torch.device | str = "cpu",
) -> Tensor:
    """MaxSim of every query and passage, with the arguments and results of the processors.

    As there, the items of a batch of `batch_size` are padded with zeros to the longest one, and padding competes with a
    similarity of 0.

    Args:
        self: ignored.
        query_embeddings: N_q queries `[L_q, D]`, or one tensor `[N_q, L_q, D]`.
        passage_embeddings: N_p passages `[L_p, D]`, or one tensor `[N_p, L_p, D]`; same dtype and device.
        batch_size: queries and passages that are scored at a time.
        output_dtype: of the scores; None = that of the embeddings.
        output_device: of the scores.

    Returns:
        `[N_q, N_p]`.

    Raises:
        ValueError: there is no query or no passage, or their dtypes or devices differ.
    """
    for name, embeddings in (("query_embeddings", query_embeddings), ("passage_embeddings", passage_embeddings)):
        if len(embeddings) == 0:
            raise ValueError(f"{name} must hold at least one item, got none")
    query, passage = query_embeddings[0], passage_embeddings[0]
    if (query.dtype, query.device) != (passage.dtype, passage.device):
        given = f"{query.dtype} on {query.device} and {passage.dtype} on {passage.device}"
        raise ValueError(f"queries and passages must have the same dtype and device, got {given}")
    passages = _padded_batches(passage_embeddings, batch_size)
    rows = [
        torch.cat([maxsim(queries, batch) for batch in passages], 1)
        for queries in _padded_batches(query_embeddings, batch_size)
    ]
    return torch.cat(rows).to(output_device, output_dtype or query.dtype)


def _padded_batches(embeddings: Tensor | Sequence[Tensor], size: int) -> list[Tensor]:
    starts = range(0, len(embeddings), size)
    return [pad_sequence(list(embeddings[start : start + size]), batch_first=True) for start in starts]


def _replacements() -> Replacements:
    modules = {name: import_library(f"transformers.models.{name}.processing_{name}") for name in PROCESSORS}
    return [
        (getattr(modules[name], processor), "score_retrieval", score_retrieval)
        for name, processor in PROCESSORS.items()
    ]


_rebinding = Rebinding("transformers", VERSIONS, _replacements)
install = _rebinding.install
uninstall = _rebinding.uninstall
