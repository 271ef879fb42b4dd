"""Max-mean similarity of clips against captions: the einsum that a user writes, other libraries, the fused op.

In a forward the einsum keeps nothing for a backward, atk its winners. Operations are those of the forward's products
over valid tokens alone: a step at 0.3 of the limit takes as long as three ideal forwards.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import atk
from atk.bench import peers
from atk.bench.measure import Case, Provider
from atk.bench.sizes import Pairs
from atk.ops import reference
from atk.ops.backend import OPS, unavailable

KINDS = {
    "forward": "forward, winners kept for the backward",
    "step": "forward and backward",
    "ragged_forward": "forward, winners kept, captions of {shortest} to {tokens} tokens, {mean} in the mean",
    "ragged_step": "forward and backward, captions of {shortest} to {tokens} tokens, {mean} in the mean",
}
ALL, SAMPLE = 128, 32  # clips and captions whose results are compared: all up to ALL, else so many
CHUNK = 64 << 20  # bytes of scores that the chunked einsum holds


class Similarity(NamedTuple):
    """A function of (audio, text, mask) that returns the similarity, and what is known of it."""

    name: str
    call: Callable[..., Tensor]
    rounds_scores: bool = False  # holds scores in the input's dtype
    held: float = 0.0  # numbers of the input's width held for each score, at least
    missing: str | None = None


def case(shape: Pairs, kind: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The table of one shape and kind."""
    ragged, forward = kind.startswith("ragged"), kind.endswith("forward")
    audio, text, mask = embeddings(shape, dtype, device)
    with torch.device(device):
        inputs = (audio, text, torch.randn(shape.clips, shape.captions)) + ((mask,) if ragged else ())
    providers = []
    for each in similarities(dtype, device, ragged, backward=not forward):
        # Ready for a backward the einsum would keep all scores, which nobody times as a forward.
        call = _forward(each.call, winners=not each.rounds_scores) if forward else _step(each.call)
        providers.append(Provider(each.name, call, tolerance(each, dtype), held(each, shape, dtype), each.missing))
    lengths = mask.sum(1) if ragged else torch.full([shape.captions], shape.tokens)
    sample = sampled(shape)

    def true() -> Sequence[Tensor]:
        found = true_step(*inputs[:3], inputs[3] if ragged else None, sample)
        return found[:1] if forward else found

    return Case(
        title=title("max_mean_similarity", KINDS[kind], shape, lengths, dtype),
        inputs=inputs,
        truth=true,
        providers=providers,
        flops=2.0 * shape.clips * shape.frames * int(lengths.sum()) * shape.channels,
        nbytes=(1 if forward else 2) * (audio.nbytes + text.nbytes) + 4.0 * shape.clips * shape.captions,
        dtype=dtype,
        part=lambda result: part(result, sample),
    )


def title(op: str, kind: str, shape: Pairs, lengths: Tensor, dtype: torch.dtype) -> str:
    """What the table is of."""
    mean = round(lengths.double().mean().item(), 1)
    kind = kind.format(shortest=int(lengths.min()), tokens=shape.tokens, mean=mean)
    counts = f"{shape.clips} clips x {shape.captions} captions, {shape.frames} frames, {shape.tokens} tokens"
    compared = "" if max(shape.clips, shape.captions) <= ALL else f", errors of {SAMPLE} clips and captions"
    return f"{op}, {kind}: {counts}, {shape.channels} channels, {str(dtype).removeprefix('torch.')}{compared}"


def similarities(dtype: torch.dtype, device: torch.device, ragged: bool, backward: bool) -> list[Similarity]:
    """Who computes the similarity, the einsum first."""
    held = 2.0 if backward or ragged else 1.0
    found = [
        Similarity("naive einsum", naive, True, held),
        Similarity("chunked einsum", chunked, True),
        Similarity("torch.compile of the einsum", torch.compile(naive, fullgraph=True, dynamic=False), True, 1.0),
    ]
    found += [
        Similarity(name, call, missing=missing)
        for name, call, missing in peers.similarities(device, dtype, ragged, backward)
    ]
    for backend in OPS["max_mean_similarity"]:
        missing = unavailable(backend, device, dtype)
        whole = {"rounds_scores": True, "held": held} if backend == "reference" else {}
        forms = {"": _atk(backend)}
        if ragged and backend != "reference":
            forms = {", masks": _atk(backend), ", packed": _atk_packed(backend)}
        elif backward and backend != "reference":
            forms[", winners computed again"] = _atk(backend, save_index=False)
        elif backend == "cpp" and dtype != torch.bfloat16:  # which is never screened
            forms = {", int8 screening off": _unscreened} | forms
        found += [Similarity(f"atk {backend}{form}", call, missing=missing, **whole) for form, call in forms.items()]
    return found


def tolerance(similarity: Similarity, dtype: torch.dtype) -> float:
    """In a half type, rounded scores move winners and with them gradients."""
    if dtype == torch.float32:
        return 1e-4
    return 0.6 if similarity.rounds_scores else 1e-2


def held(similarity: Similarity, shape: Pairs, dtype: torch.dtype) -> int:
    """Bytes that the provider holds, at least."""
    scores = shape.clips * shape.captions * shape.frames * shape.tokens
    return int(similarity.held * scores * dtype.itemsize)


def naive(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = torch.einsum("atd,bld->abtl", audio, text)
    if mask is not None:
        scores = scores.masked_fill(~mask[None, :, None], float("-inf"))
    return scores.max(-1).values.mean(-1)


def chunked(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    """The einsum over a few captions at a time, computed again in the backward."""
    each = audio.shape[0] * audio.shape[1] * text.shape[1] * audio.element_size()
    size = max(1, CHUNK // max(1, each))
    masks = [None] * -(-len(text) // size) if mask is None else mask.split(size)

    def columns(part: Tensor, valid: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            return checkpoint(naive, audio, part, valid, use_reentrant=False)
        return naive(audio, part, valid)

    return torch.cat([columns(*each) for each in zip(text.split(size), masks, strict=True)], 1)


def embeddings(shape: Pairs, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Frames, tokens and a mask of uneven captions. Values lie on a grid of 1/64, normal: products and sums are exact,
    so every provider sees the same winners."""
    with torch.device(device):
        sides = [
            (torch.randn(count, length, shape.channels) * 64).round().clamp(-255, 255).div(64).to(dtype)
            for count, length in ((shape.clips, shape.frames), (shape.captions, shape.tokens))
        ]
        return *sides, torch.arange(shape.tokens) < _ragged_lengths(shape.captions, shape.tokens).to(device)[:, None]


def true_step(
    audio: Tensor, text: Tensor, grad: Tensor, mask: Tensor | None, sample: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """sim, dL/daudio and dL/dtext in float64, one caption at a time so that it fits where the einsum does not.

    `sample`: clips and captions whose rows of the three are wanted; None: all.
    """
    if sample is None:
        return _true_pass(audio, text, grad, mask)
    clips, captions = sample
    sim, d_audio, _ = _true_pass(audio[clips], text, grad[clips], mask)
    columns = None if mask is None else mask[captions]
    return sim, d_audio, _true_pass(audio, text[captions], grad[:, captions], columns)[2]


def part(result: Sequence[Tensor], sample: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
    """Of sim, dL/daudio and dL/dtext (or of sim alone) the rows that `true_step` gives."""
    if sample is None:
        return tuple(result)
    return tuple(value[rows] for value, rows in zip(result, (sample[0], *sample), strict=False))


def _true_pass(audio: Tensor, text: Tensor, grad: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    audio, text = audio.double().requires_grad_(), text.double().requires_grad_()
    sim = torch.empty(grad.shape, dtype=torch.float64, device=grad.device)
    for j in range(len(text)):
        column = reference.max_mean_similarity(audio, text[j : j + 1], None, None if mask is None else mask[j : j + 1])
        column.backward(grad[:, j : j + 1].double())
        sim[:, j : j + 1] = column.detach()
    return sim, audio.grad, text.grad


def sampled(shape: Pairs) -> tuple[Tensor, Tensor] | None:
    """Clips and captions whose results are compared; None: all."""
    if max(shape.clips, shape.captions) <= ALL:
        return None
    return tuple(torch.linspace(0, n - 1, min(n, SAMPLE)).long() for n in (shape.clips, shape.captions))


def _ragged_lengths(n: int, longest: int) -> Tensor:
    """[n] caption lengths from 6/32 of the longest up, 12/32 of it in the mean: many short, few long."""
    shortest = -(-longest * 6 // 32)
    lengths = (shortest + (longest - shortest) * torch.linspace(0, 1, n, device="cpu") ** (10 / 3)).round().long()
    return lengths[torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu")]


def _forward(similarity: Callable[..., Tensor], winners: bool) -> Callable[..., Iterable[Tensor]]:
    def call(audio, text, grad, *mask):
        with torch.set_grad_enabled(winners):
            return (similarity(audio.detach().requires_grad_(), text.detach().requires_grad_(), *mask).detach(),)

    return call


def _step(similarity: Callable[..., Tensor]) -> Callable[..., Iterable[Tensor]]:
    def call(audio, text, grad, *mask):
        audio, text = audio.detach().requires_grad_(), text.detach().requires_grad_()
        sim = similarity(audio, text, *mask)
        sim.backward(grad.to(sim.dtype))
        return sim.detach(), audio.grad, text.grad

    return call


def _atk(backend: str, **options) -> Callable[..., Tensor]:
    def call(audio, text, mask=None):
        return atk.max_mean_similarity(audio, text, None, mask, backend=backend, **options)

    return call


def _atk_packed(backend: str) -> Callable[..., Tensor]:
    def call(audio, text, mask):
        n, frames, _ = audio.shape
        cu_audio = torch.arange(0, (n + 1) * frames, frames, dtype=torch.int32, device=audio.device)
        cu_text = F.pad(mask.sum(1).cumsum(0), (1, 0)).int()
        packed = audio.flatten(0, 1), text[mask], cu_audio, cu_text
        longest = {"max_seqlen_audio": frames, "max_seqlen_text": text.shape[1]}
        return atk.max_mean_similarity_varlen(*packed, backend=backend, **longest)

    return call


def _unscreened(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    from atk import _C

    _C.set_screening("never")
    try:
        return _atk("cpp")(audio, text, mask)
    finally:
        _C.set_screening("auto")
