"""Max-mean similarity of clips and captions: the einsum a user would write, other libraries, and the fused op.

In forward-only rows, the einsum runs without autograd and saves nothing, while atk still saves the winner indices that
its backward needs. The operations counted are only the forward's products over valid tokens: a step at 0.33 of the
limit takes as long as three ideal forwards.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import atk
from atk.bench import peers
from atk.bench.accuracy import Tolerance, rounded_inputs, rounded_scores
from atk.bench.measure import Case, Provider
from atk.bench.sizes import Pairs
from atk.ops import reference
from atk.ops.backend import BACKENDS, unavailable

MODES = {
    "forward": "forward, winner indices kept for the backward",
    "step": "forward and backward",
    "ragged_forward": "forward, winner indices kept, captions of {shortest} to {tokens} tokens (mean {mean})",
    "ragged_step": "forward and backward, captions of {shortest} to {tokens} tokens (mean {mean})",
}
MAX_COMPARED = 128  # up to this many clips and captions, all results are compared
SAMPLE_SIZE = 32  # beyond that, only the results of this many
CHUNK = 64 << 20  # bytes of scores that the chunked einsum holds at once


class Similarity(NamedTuple):
    """A function of (audio, text, mask) that returns the similarity, and its properties."""

    name: str
    call: Callable[..., Tensor]
    eager: bool = False  # plain PyTorch, which would keep every score for a backward
    rounds_scores: bool = False  # holds the scores in the dtype of the inputs
    score_copies: float = 0.0  # lower bound of the values held per score, each as wide as an input value
    missing: str | None = None


def case(shape: Pairs, mode: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The benchmark case of one shape and mode."""
    ragged = mode.startswith("ragged")
    forward = mode.endswith("forward")
    audio, text, mask = embeddings(shape, dtype, device)
    grad = torch.randn(shape.clips, shape.captions, device=device)
    inputs = (audio, text, grad, mask) if ragged else (audio, text, grad)
    providers = []
    for similarity in similarities(dtype, device, ragged, backward=not forward):
        # With autograd on, the einsum would keep every score, so its forward is timed without it.
        call = _forward(similarity.call, keep_winners=not similarity.eager) if forward else _step(similarity.call)
        providers.append(
            Provider(
                similarity.name,
                call,
                tolerance(similarity, dtype),
                score_bytes(similarity, shape, dtype),
                similarity.missing,
            )
        )
    lengths = mask.sum(1) if ragged else torch.full([shape.captions], shape.tokens)
    sample = sampled(shape)

    def truth() -> Sequence[Tensor]:
        results = true_step(audio, text, grad, mask if ragged else None, sample)
        return results[:1] if forward else results

    return Case(
        title=title("max_mean_similarity", MODES[mode], shape, lengths, dtype),
        inputs=inputs,
        truth=truth,
        providers=providers,
        flops=2.0 * shape.clips * shape.frames * int(lengths.sum()) * shape.channels,
        nbytes=(1 if forward else 2) * (audio.nbytes + text.nbytes) + 4.0 * shape.clips * shape.captions,
        dtype=dtype,
        select=lambda results: select_sample(results, sample),
    )


def title(op: str, description: str, shape: Pairs, lengths: Tensor, dtype: torch.dtype) -> str:
    """Title of the table: op, mode, shape, dtype, and whether only a sample is compared."""
    mean = round(lengths.double().mean().item(), 1)
    description = description.format(shortest=int(lengths.min()), tokens=shape.tokens, mean=mean)
    counts = f"{shape.clips} clips x {shape.captions} captions, {shape.frames} frames, {shape.tokens} tokens"
    compared = (
        "" if max(shape.clips, shape.captions) <= MAX_COMPARED else f", error of {SAMPLE_SIZE} clips and captions"
    )
    return f"{op}, {description}: {counts}, {shape.channels} channels, {str(dtype).removeprefix('torch.')}{compared}"


def similarities(dtype: torch.dtype, device: torch.device, ragged: bool, backward: bool) -> list[Similarity]:
    """All implementations of the similarity, the einsum first."""
    copies = 2.0 if backward or ragged else 1.0
    compiled = torch.compile(naive, fullgraph=True, dynamic=False)
    implementations = [
        Similarity("naive einsum", naive, eager=True, rounds_scores=True, score_copies=copies),
        Similarity("chunked einsum", chunked, eager=True, rounds_scores=True),
        Similarity("torch.compile of the einsum", compiled, eager=True, rounds_scores=True, score_copies=1.0),
    ]
    implementations += [
        Similarity(name, call, missing=missing)
        for name, call, missing in peers.similarities(device, dtype, ragged, backward)
    ]
    implementations.append(Similarity("atk auto", _atk("auto")))  # has its own path for captions of one token
    for backend in BACKENDS["max_mean_similarity"]:
        missing = unavailable(backend, device, dtype)
        if backend == "reference":
            call = _atk(backend)
            implementations.append(Similarity("atk reference", call, eager=True, score_copies=copies, missing=missing))
            continue
        variants: dict[str, Callable[..., Tensor]] = {"": _atk(backend)}
        if ragged:
            variants = {", masks": _atk(backend), ", packed": _atk_packed(backend)}
        elif backward:
            variants[", winners computed again"] = _atk(backend, save_index=False)
        elif backend == "cpp" and dtype != torch.bfloat16:  # bfloat16 is never screened
            variants = {", int8 screening off": _unscreened} | variants
        implementations += [
            Similarity(f"atk {backend}{variant}", call, missing=missing) for variant, call in variants.items()
        ]
    return implementations


def tolerance(similarity: Similarity, dtype: torch.dtype) -> Tolerance:
    """Tolerance of a similarity and its gradients."""
    return rounded_scores(dtype) if similarity.rounds_scores else rounded_inputs(dtype, gradient=1e-2)


def score_bytes(similarity: Similarity, shape: Pairs, dtype: torch.dtype) -> int:
    """Lower bound of the bytes that the provider holds."""
    scores = shape.clips * shape.captions * shape.frames * shape.tokens
    return int(similarity.score_copies * scores * dtype.itemsize)


def naive(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = torch.einsum("atd,bld->abtl", audio, text)
    if mask is not None:
        scores = scores.masked_fill(~mask[None, :, None], float("-inf"))
    return scores.max(-1).values.mean(-1)


def chunked(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    """The einsum over a few captions at a time, recomputed in the backward."""
    caption_bytes = audio.shape[0] * audio.shape[1] * text.shape[1] * audio.element_size()
    size = max(1, CHUNK // max(1, caption_bytes))
    masks = [None] * -(-len(text) // size) if mask is None else mask.split(size)

    def columns(captions: Tensor, valid: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            return checkpoint(naive, audio, captions, valid, use_reentrant=False)
        return naive(audio, captions, valid)

    return torch.cat([columns(captions, valid) for captions, valid in zip(text.split(size), masks, strict=True)], 1)


def embeddings(shape: Pairs, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Frames, tokens, and a mask for captions of different lengths.

    The values are normally distributed on a grid of 1/64. Products and sums are then exact in float32, so every
    provider that keeps its scores in float32 sees the same winners.
    """

    def draw(count: int, length: int) -> Tensor:
        values = torch.randn(count, length, shape.channels, device=device)
        return (values * 64).round().clamp(-255, 255).div(64).to(dtype)

    audio = draw(shape.clips, shape.frames)
    text = draw(shape.captions, shape.tokens)
    lengths = _ragged_lengths(shape.captions, shape.tokens).to(device)
    return audio, text, torch.arange(shape.tokens, device=device) < lengths[:, None]


def true_step(
    audio: Tensor, text: Tensor, grad: Tensor, mask: Tensor | None, sample: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """sim, dL/daudio, and dL/dtext in float64, a few captions at a time to fit in memory where the einsum does not.

    `sample`: clips whose rows of sim and dL/daudio are returned, and captions whose rows of dL/dtext are returned; None
    means all.
    """
    if sample is None:
        return _true_pass(audio, text, grad, mask)
    clips, captions = sample
    sim, d_audio, _ = _true_pass(audio[clips], text, grad[clips], mask)
    caption_mask = None if mask is None else mask[captions]
    return sim, d_audio, _true_pass(audio, text[captions], grad[:, captions], caption_mask)[2]


def select_sample(results: Sequence[Tensor], sample: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
    """The rows of sim, dL/daudio and dL/dtext (or of sim alone) that `true_step` returns."""
    if sample is None:
        return tuple(results)
    return tuple(value[rows] for value, rows in zip(results, (sample[0], *sample), strict=False))


def _true_pass(audio: Tensor, text: Tensor, grad: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    audio = audio.double().requires_grad_()
    size = max(1, CHUNK // max(1, 8 * audio.shape[0] * audio.shape[1] * text.shape[1]))
    masks = itertools.repeat(None) if mask is None else mask.split(size)
    sim, d_text = [], []
    for part, weights, valid in zip(text.split(size), grad.split(size, 1), masks, strict=False):
        captions = part.double().requires_grad_()
        columns = reference.max_mean_similarity(audio, captions, None, valid)
        columns.backward(weights.double())
        assert captions.grad is not None
        sim.append(columns.detach())
        d_text.append(captions.grad)
    assert audio.grad is not None
    return torch.cat(sim, 1), audio.grad, torch.cat(d_text)


def sampled(shape: Pairs) -> tuple[Tensor, Tensor] | None:
    """Indices of the clips and captions whose results are compared; None means all."""
    if max(shape.clips, shape.captions) <= MAX_COMPARED:
        return None
    clips, captions = (torch.linspace(0, n - 1, min(n, SAMPLE_SIZE)).long() for n in (shape.clips, shape.captions))
    return clips, captions


def _ragged_lengths(n: int, longest: int) -> Tensor:
    """[n] caption lengths from 6/32 of the longest upward, with a mean of 12/32: many short, few long."""
    shortest = -(-longest * 6 // 32)
    lengths = (shortest + (longest - shortest) * torch.linspace(0, 1, n, device="cpu") ** (10 / 3)).round().long()
    return lengths[torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu")]


def _forward(similarity: Callable[..., Tensor], keep_winners: bool) -> Callable[..., Sequence[Tensor]]:
    def call(audio: Tensor, text: Tensor, grad: Tensor, *mask: Tensor) -> tuple[Tensor]:
        with torch.set_grad_enabled(keep_winners):
            return (similarity(audio.detach().requires_grad_(), text.detach().requires_grad_(), *mask).detach(),)

    return call


def _step(similarity: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    def call(audio: Tensor, text: Tensor, grad: Tensor, *mask: Tensor) -> tuple[Tensor, ...]:
        audio, text = audio.detach().requires_grad_(), text.detach().requires_grad_()
        sim = similarity(audio, text, *mask)
        sim.backward(grad.to(sim.dtype))
        assert audio.grad is not None and text.grad is not None
        return sim.detach(), audio.grad, text.grad

    return call


def _atk(backend: str, save_index: bool | None = None) -> Callable[..., Tensor]:
    def call(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        return atk.max_mean_similarity(audio, text, None, mask, backend=backend, save_index=save_index)

    return call


def _atk_packed(backend: str) -> Callable[..., Tensor]:
    def call(audio: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        n, frames, _ = audio.shape
        cu_audio = torch.arange(0, (n + 1) * frames, frames, dtype=torch.int32, device=audio.device)
        cu_text = F.pad(mask.sum(1).cumsum(0), (1, 0)).int()
        packed = audio.flatten(0, 1), text[mask], cu_audio, cu_text
        return atk.max_mean_similarity_varlen(
            *packed, max_seqlen_audio=frames, max_seqlen_text=text.shape[1], backend=backend
        )

    return call


def _unscreened(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    from atk import _C

    _C.set_screening("never")
    try:
        return _atk("cpp")(audio, text, mask)
    finally:
        _C.set_screening("auto")
