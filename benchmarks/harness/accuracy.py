"""Decides whether a provider's result is correct."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Largest deviations from the float64 reference that still count as correct.

    A case returns its value (scores, output, or loss) first, then its gradients. `value` and `gradient` bound the
    largest difference of an entry, relative to the largest true entry. `cosine` and `norm` bound each gradient as a
    whole: a gradient that lacks 5 % of its rows is 2.5 % too short, and one that is scaled by 1.05 is 5 % too long.
    """

    value: float = 1e-4
    gradient: float = 1e-4
    cosine: float = 0.999  # smallest cosine between a gradient and the true one
    norm: float = 0.01  # largest relative difference between their norms


def rounded_inputs(dtype: torch.dtype, gradient: float) -> Tolerance:
    """Tolerance of a computation that reads and writes `dtype`; always 1e-4 in float32.

    In a half type the value may be off by two units in the last place of its largest entry. `gradient` is 1e-2 if all
    intermediate results are float32, and 5e-2 if some of them have the half type. The cosine and the norm of a gradient
    do not depend on that: rounding errors are random and average out. The deviations measured for correct providers
    are below 2e-5 (cosine) and 0.2 % (norm).
    """
    if dtype == torch.float32:
        return Tolerance()
    return Tolerance(value=2 * torch.finfo(dtype).eps, gradient=gradient)


def rounded_scores(dtype: torch.dtype) -> Tolerance:
    """Tolerance of a max-mean similarity that holds its frame-token scores in `dtype`; always 1e-4 in float32.

    Rounding makes scores tie, and a frame may then pass its gradient to a different token than in float64. Some
    entries of the gradient are then entirely different, so the largest difference says nothing. But few frames are
    affected. At the benchmarked shapes 1 - cosine of eager PyTorch is up to 5e-3 in bfloat16 and 6e-4 in float16.
    """
    if dtype == torch.float32:
        return Tolerance()
    eps = torch.finfo(dtype).eps
    return Tolerance(value=2 * eps, gradient=math.inf, cosine=1 - 2.5 * eps, norm=0.02)


def largest_error(result: Tensor, truth: Tensor) -> float:
    """Largest difference of an entry, relative to the largest true entry.

    Raises:
        ValueError: the shapes differ.
    """
    if result.shape != truth.shape:
        raise ValueError(f"result has shape {list(result.shape)}, expected {list(truth.shape)}")
    return ((result.double() - truth).abs().max() / truth.abs().max()).item()


def mistake(results: Sequence[Tensor], truths: Sequence[Tensor], tolerance: Tolerance) -> str:
    """Describes the first deviation beyond the tolerance; empty if there is none. NaN is beyond every tolerance."""
    value, *gradients = results
    true_value, *true_gradients = truths
    if message := _above("error", largest_error(value, true_value), tolerance.value):
        return message
    for index, (gradient, truth) in enumerate(zip(gradients, true_gradients, strict=True), 1):
        message = _above(f"error of gradient {index}", largest_error(gradient, truth), tolerance.gradient)
        message = message or _direction_or_length(index, gradient.double(), truth.double(), true_value, tolerance)
        if message:
            return message
    return ""


def _direction_or_length(index: int, gradient: Tensor, truth: Tensor, true_value: Tensor, tolerance: Tolerance) -> str:
    length = truth.norm()
    if truth.ndim == 0:
        # The gradient of a logit scale is a sum that can cancel to nearly zero; this bound is relative to the loss.
        length = torch.maximum(length, true_value.abs().max())
        return _above(f"error of gradient {index}", ((gradient - truth).abs() / length).item(), tolerance.norm)
    difference = ((gradient.norm() - length).abs() / length).item()
    if message := _above(f"error of the norm of gradient {index}", difference, tolerance.norm):
        return message
    cosine = (gradient.flatten() @ truth.flatten() / (gradient.norm() * length)).item()
    if not cosine >= tolerance.cosine:  # also if it is NaN
        return f"cosine of gradient {index} is {cosine:.4f}, below {tolerance.cosine:.4g}"
    return ""


def _above(name: str, deviation: float, limit: float) -> str:
    return "" if deviation <= limit else f"{name} is {deviation:.2g}, above {limit:g}"
