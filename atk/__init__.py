"""Fused kernels and lean trainers for audio-text learning."""

from atk import nn
from atk.ops.backend import BackendError, backends
from atk.ops.cross_attention import cross_attention_difference
from atk.ops.info_nce import aligned_info_nce, info_nce, pairwise_logsumexp
from atk.ops.max_mean import max_mean_similarity, max_mean_similarity_pairs, max_mean_similarity_varlen
from atk.ops.sigmoid import aligned_sigmoid_loss, sigmoid_loss

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "aligned_info_nce",
    "aligned_sigmoid_loss",
    "backends",
    "cross_attention_difference",
    "info_nce",
    "max_mean_similarity",
    "max_mean_similarity_pairs",
    "max_mean_similarity_varlen",
    "nn",
    "pairwise_logsumexp",
    "sigmoid_loss",
]
