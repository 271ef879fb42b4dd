"""SigLIP's sigmoid loss of N clips and their captions, forward and backward: with all logits in memory, and streamed.

The operations counted are three products over all pairs, for the logits and the two gradients. Streaming computes the
logits twice, so it does a third more work.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from atk.bench.info_nce import MODES, loss_case
from atk.bench.measure import Case
from atk.bench.sizes import Vectors

__all__ = ["MODES", "case"]

SCALE, BIAS = 10.0, -10.0  # with which SigLIP starts


def case(shape: Vectors, mode: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The benchmark case of one shape."""
    plain = "F.logsigmoid", _logsigmoid
    return loss_case("sigmoid_loss", (SCALE, BIAS), plain, [], shape, mode, dtype, device)


def _logsigmoid(audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss as in SigLIP's pseudocode."""
    logits = scale * audio @ text.T + bias
    labels = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)
