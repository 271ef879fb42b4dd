"""Fused kernels and lean trainers for audio-text learning."""

from atk import nn
from atk.backend import BackendError, backends
from atk.cross_attention import cross_attention_difference
from atk.info_nce import aligned_info_nce, info_nce, pairwise_logsumexp
from atk.max_mean import max_mean_similarity, max_mean_similarity_pairs, max_mean_similarity_varlen

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "aligned_info_nce",
    "backends",
    "cross_attention_difference",
    "info_nce",
    "max_mean_similarity",
    "max_mean_similarity_pairs",
    "max_mean_similarity_varlen",
    "nn",
    "pairwise_logsumexp",
]
