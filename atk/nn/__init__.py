"""Losses, difference blocks, and audio-to-text mappers as `torch.nn` modules."""

from atk.nn.difference import CrossAttentionDifference, SubtractionDifference
from atk.nn.losses import AlignedContrastiveLoss, InfoNCELoss, SigmoidLoss
from atk.nn.mappers import MLPMapper, TransformerMapper
from atk.nn.triplet import TripletLoss

__all__ = [
    "AlignedContrastiveLoss",
    "CrossAttentionDifference",
    "InfoNCELoss",
    "MLPMapper",
    "SigmoidLoss",
    "SubtractionDifference",
    "TransformerMapper",
    "TripletLoss",
]
