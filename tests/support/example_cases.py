"""Loading an example, and naive implementations of its losses."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    """Import `examples/NAME.py` as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def naive_similarity(frames, tokens, frame_mask=None, token_mask=None):
    """Equation (3.6) as an einsum over unit vectors; every clip and caption has a valid position."""
    scores = torch.einsum("iad,jtd->ijat", F.normalize(frames, dim=-1), F.normalize(tokens, dim=-1))
    if token_mask is not None:
        scores = scores.masked_fill(~token_mask[None, :, None], -math.inf)
    best = scores.amax(-1)
    weight = torch.ones(frames.shape[:2]) if frame_mask is None else frame_mask.float()
    return (best * weight[:, None]).sum(-1) / weight.sum(1)[:, None]


def naive_info_nce(sim, logit_scale):
    pairs = torch.arange(len(sim))
    return F.cross_entropy(logit_scale * sim, pairs) + F.cross_entropy(logit_scale * sim.T, pairs)


def naive_total(embeddings, logit_scale):
    """`L_total` of equation (3.7) for the inputs of `AlignedContrastiveLoss`."""
    local = dict(embeddings)
    cosine = F.normalize(local.pop("audio"), dim=-1) @ F.normalize(local.pop("text"), dim=-1).T
    return naive_info_nce(cosine, logit_scale) + naive_info_nce(naive_similarity(**local), logit_scale)
