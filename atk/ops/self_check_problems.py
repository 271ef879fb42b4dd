"""Small problems on which a backend is compared with the reference: values and gradients, masks, length classes.

A problem of each op is a function of the backend. It stays below the public functions, which choose a backend, so that
a check never starts another one. Inputs are the same on every machine, drawn from a generator of their own.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from atk.kernels.sequences import from_padded
from atk.ops import cross_attention_op, info_nce_op, max_mean_op, sigmoid_op

_Tensors: TypeAlias = dict[str, Tensor]
_Function: TypeAlias = Callable[..., _Tensors]  # (inputs, backend) -> values by name

_WIDTH = 64  # channels
_REFERENCE_ERRORS = 4  # as many times the error of the reference in the same dtype are tolerated
_LARGEST_TOLERANCE = 0.1  # whatever the reference does; an entry in the wrong place is off by about 1
_SMALLEST_TOLERANCE = 1e-4  # relative, in float32


class Problem(NamedTuple):
    """A call of an op.

    Attributes:
        function: gets `inputs` by name and `backend`, and returns values by name.
        inputs: tensors, float64 where they are floating-point.
        leaves: the inputs whose gradients are compared.
        wide: the leaves that stay float32 in half precision: scales and biases of logits.
    """

    function: _Function
    inputs: _Tensors
    leaves: tuple[str, ...]
    wide: tuple[str, ...] = ()


class Deviation(NamedTuple):
    """The largest error of a result and the tolerance, both relative to its largest value; `error` can be inf."""

    result: str
    error: float
    tolerance: float

    @property
    def excessive(self) -> bool:
        """Whether the result is wrong."""
        return not self.error <= self.tolerance

    def __str__(self) -> str:
        return f"{self.result} is off by {self.error:.1e} of its largest value, tolerance {self.tolerance:.0e}"


def problems(op: str) -> list[Problem]:
    """The problems of an op, a key of `atk.ops.backend.BACKENDS`."""
    return list(_PROBLEMS[op](torch.Generator().manual_seed(0)))


def run(
    op: str, backend: str, device: torch.device, dtype: torch.dtype, compute: torch.dtype | None = None
) -> _Tensors:
    """Values and gradients of all problems of an op.

    Args:
        op: a key of `atk.ops.backend.BACKENDS`.
        backend: the one that computes them.
        device: where.
        dtype: of the inputs.
        compute: the dtype that the rounded inputs are converted to; None: they stay as they are.

    Returns:
        Results by name, such as "scores 1" and "grad audio 1", on `device`.
    """
    results = {}
    for index, problem in enumerate(problems(op), 1):
        results |= {f"{name} {index}": value for name, value in _run(problem, backend, device, dtype, compute).items()}
    return results


def _run(
    problem: Problem, backend: str, device: torch.device, dtype: torch.dtype, compute: torch.dtype | None
) -> _Tensors:
    inputs = {}
    for name, exact in problem.inputs.items():
        value = exact
        if exact.is_floating_point():
            rounded = exact.to(torch.float32 if name in problem.wide else dtype)
            value = rounded if compute is None else rounded.to(compute)
        inputs[name] = value.to(device).requires_grad_(name in problem.leaves)
    values = problem.function(**inputs, backend=backend)
    generator = torch.Generator().manual_seed(1)
    grads = [
        torch.randn(value.shape, generator=generator, dtype=torch.float64).to(dtype).to(value.device, value.dtype)
        for value in values.values()
    ]
    leaves = [inputs[name] for name in problem.leaves]
    gradients = torch.autograd.grad(list(values.values()), leaves, grads)
    results = {name: value.detach() for name, value in values.items()}
    return results | {f"grad {name}": grad for name, grad in zip(problem.leaves, gradients, strict=True)}


def deviations(results: _Tensors, similar: _Tensors, truth: _Tensors) -> list[Deviation]:
    """How far `results` are from `truth`.

    Args:
        results: of the backend.
        similar: of the reference in the same dtype and on the same device, which rounds alike (TF32 included).
        truth: of the reference in float64.

    Returns:
        One deviation for each result.
    """
    rows = []
    for name, wanted in truth.items():
        floor = max(_SMALLEST_TOLERANCE, 4 * torch.finfo(similar[name].dtype).eps)
        usual = _relative_error(similar[name], wanted)
        tolerance = min(floor + _REFERENCE_ERRORS * usual, _LARGEST_TOLERANCE)
        rows.append(Deviation(name, _relative_error(results[name], wanted), tolerance))
    return rows


def _relative_error(result: Tensor, truth: Tensor) -> float:
    result, truth = result.double().cpu(), truth.double().cpu()
    if result.shape != truth.shape or not result.isfinite().all():
        return float("inf")
    return ((result - truth).abs().max() / truth.abs().max()).item()


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _unit(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(_random(generator, *shape), dim=-1)


def _padded(value: Tensor, mask: Tensor) -> Tensor:
    """`value` `[N, L, D]` with NaN where `mask` `[N, L]` is False: padding may hold anything."""
    return value.masked_fill(~mask[..., None], torch.nan)


def _similarity(
    audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None, *, pairs: bool, backend: str
) -> _Tensors:
    clips, captions = from_padded(audio, audio_mask), from_padded(text, text_mask)
    options = {"pairs": pairs, "sparse": False, "save_index": True, "backend": backend}
    return {"scores": max_mean_op.score(clips, captions, **options)}


def _all_scores(audio: Tensor, text: Tensor, audio_mask: Tensor, text_mask: Tensor, backend: str) -> _Tensors:
    return _similarity(audio, text, audio_mask, text_mask, pairs=False, backend=backend)


def _pair_scores(audio: Tensor, text: Tensor, backend: str) -> _Tensors:
    return _similarity(audio, text, None, None, pairs=True, backend=backend)


def _normalized(rows: Tensor, mask: Tensor, backend: str) -> _Tensors:
    return {"unit rows": max_mean_op.normalize_rows(rows, mask, backend)}


def _max_mean(generator: torch.Generator) -> Iterator[Problem]:
    """Ragged clips and captions in three length classes, one of each empty; pairs with captions cut into chunks."""
    frames = torch.tensor([33, 0, 7, 70])[:, None] > torch.arange(70)
    frames[0, ::5] = False
    tokens = torch.tensor([5, 20, 0, 11, 8])[:, None] > torch.arange(20)
    audio, text = _padded(_random(generator, 4, 70, _WIDTH), frames), _padded(_random(generator, 5, 20, _WIDTH), tokens)
    masks = {"audio_mask": frames, "text_mask": tokens}
    yield Problem(_all_scores, {"audio": audio, "text": text, **masks}, ("audio", "text"))
    pairs = {"audio": _random(generator, 2, 20, _WIDTH), "text": _random(generator, 2, 150, _WIDTH)}
    yield Problem(_pair_scores, pairs, ("audio", "text"))
    yield Problem(_normalized, {"rows": audio.flatten(0, 1), "mask": frames.flatten()}, ("rows",))


def _difference(backend: str, **inputs: Tensor) -> _Tensors:
    return {"output": cross_attention_op.dispatch(**inputs, num_heads=2, backend=backend, finite_padding=False)}


def _cross_attention(generator: torch.Generator) -> Iterator[Problem]:
    """Three clips of 40 frames with references of up to 70 frames; the mask has gaps, and one clip has no reference."""
    mask = torch.tensor([70, 0, 33])[:, None] > torch.arange(70)
    mask[0, 10:20] = False
    source, q = (_random(generator, 3, 40, _WIDTH) for _ in range(2))
    k, v = (_padded(_random(generator, 3, 70, _WIDTH), mask) for _ in range(2))
    weight, bias = _random(generator, _WIDTH, _WIDTH) / _WIDTH**0.5, _random(generator, _WIDTH)
    inputs = {"source": source, "q": q, "k": k, "v": v, "out_weight": weight, "out_bias": bias}
    yield Problem(_difference, inputs | {"key_mask": mask}, tuple(inputs))


def _both_directions(audio: Tensor, text: Tensor, logit_scale: Tensor, positive: Tensor, backend: str) -> _Tensors:
    rows, columns, logits = info_nce_op.dispatch(audio, text, logit_scale, positive, True, backend)
    assert columns is not None and logits is not None
    return {"rows": rows, "columns": columns, "positives": logits}


def _one_direction(audio: Tensor, text: Tensor, logit_scale: Tensor, backend: str) -> _Tensors:
    return {"rows": info_nce_op.dispatch(audio, text, logit_scale, None, False, backend)[0]}


def _logits(generator: torch.Generator, **scalars: float) -> _Tensors:
    """150 clips, 190 captions: more than one tile, and partial ones."""
    vectors = {"audio": _unit(generator, 150, _WIDTH), "text": _unit(generator, 190, _WIDTH)}
    return vectors | {name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()}


def _info_nce(generator: torch.Generator) -> Iterator[Problem]:
    vectors = _logits(generator, logit_scale=14.0)
    leaves, wide = ("audio", "text", "logit_scale"), ("logit_scale",)
    yield Problem(_both_directions, vectors | {"positive": torch.arange(150)}, leaves, wide)
    yield Problem(_one_direction, vectors, leaves, wide)


def _losses(
    audio: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor, positive: Tensor, backend: str
) -> _Tensors:
    return {"losses": sigmoid_op.dispatch(audio, text, logit_scale, logit_bias, positive, backend)}


def _sigmoid(generator: torch.Generator) -> Iterator[Problem]:
    scalars = {"logit_scale": 10.0, "logit_bias": -3.0}
    positive = torch.arange(150)
    positive[::4] = -1  # no caption belongs to these clips
    vectors = _logits(generator, **scalars) | {"positive": positive}
    yield Problem(_losses, vectors, ("audio", "text", *scalars), tuple(scalars))


_PROBLEMS: dict[str, Callable[[torch.Generator], Iterator[Problem]]] = {
    "max_mean_similarity": _max_mean,
    "cross_attention_difference": _cross_attention,
    "info_nce": _info_nce,
    "sigmoid_loss": _sigmoid,
}
