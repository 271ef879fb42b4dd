"""Contrastive losses over the pairs of all ranks, and differentiable gathers for writing your own losses."""

from atk.distributed.losses import (
    GATHERS,
    aligned_info_nce,
    ddp_factor,
    gather,
    gather_packed,
    info_nce,
    total,
)

__all__ = ["GATHERS", "aligned_info_nce", "ddp_factor", "gather", "gather_packed", "info_nce", "total"]
