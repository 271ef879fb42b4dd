"""Contrastive losses over the pairs of all ranks, and differentiable gathers for writing your own losses."""

from atk.distributed.exchange import GATHERS
from atk.distributed.losses import aligned_info_nce, ddp_factor, gather, gather_packed, info_nce, total
from atk.distributed.sigmoid import aligned_sigmoid_loss, sigmoid_loss

__all__ = [
    "GATHERS",
    "aligned_info_nce",
    "aligned_sigmoid_loss",
    "ddp_factor",
    "gather",
    "gather_packed",
    "info_nce",
    "sigmoid_loss",
    "total",
]
