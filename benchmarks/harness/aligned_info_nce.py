"""InfoNCE over the max-mean similarity, forward and backward: a plain loss on each similarity, and the fused op.

The operations counted are the forward's products over valid tokens, as in `max_mean_similarity`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import atk
from atk.bench import max_mean_similarity as max_mean
from atk.bench.info_nce import gradients
from atk.bench.measure import Case, Provider
from atk.bench.peers import cross_entropies
from atk.bench.sizes import Pairs
from atk.ops import reference

MODES = {name: text for name, text in max_mean.MODES.items() if name.endswith("step")}


def case(shape: Pairs, mode: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The benchmark case of one mode and shape; the shape has as many clips as captions."""
    ragged = mode.startswith("ragged")
    audio, text, mask = max_mean.embeddings(shape, dtype, device)
    scale = torch.tensor(shape.channels**-0.5, device=device)  # keeps the logits in the same range at every width
    inputs = (audio, text, scale, mask) if ragged else (audio, text, scale)
    lengths = mask.sum(1) if ragged else torch.full([shape.captions], shape.tokens)
    sample = max_mean.sampled(shape)
    providers = [
        Provider(
            similarity.name,
            gradients(_loss(similarity)),
            max_mean.tolerance(similarity, dtype),
            max_mean.score_bytes(similarity, shape, dtype),
            similarity.missing,
        )
        for similarity in max_mean.similarities(dtype, device, ragged, backward=True)
        if "," not in similarity.name or similarity.name.endswith("masks")  # one variant of each op
    ]

    def select(results: Sequence[Tensor]) -> Sequence[Tensor]:
        loss, d_audio, d_text, d_scale = results
        if sample is not None:
            d_audio, d_text = d_audio[sample[0]], d_text[sample[1]]
        return loss, d_audio, d_text, d_scale

    return Case(
        title=max_mean.title("aligned_info_nce", MODES[mode], shape, lengths, dtype),
        inputs=inputs,
        truth=lambda: _true_step(audio, text, scale, mask if ragged else None, sample),
        providers=providers,
        flops=2.0 * shape.clips * shape.frames * int(lengths.sum()) * shape.channels,
        nbytes=2.0 * (audio.nbytes + text.nbytes),
        dtype=dtype,
        select=select,
    )


def _loss(similarity: max_mean.Similarity) -> Callable[..., Tensor]:
    if similarity.name.startswith("atk"):
        backend = similarity.name.removeprefix("atk ").partition(",")[0]
        return lambda audio, text, scale, mask=None: atk.aligned_info_nce(
            audio, text, scale, None, mask, backend=backend
        )
    return lambda audio, text, scale, mask=None: cross_entropies(scale * similarity.call(audio, text, mask))


def _true_step(
    audio: Tensor, text: Tensor, scale: Tensor, mask: Tensor | None, sample: tuple[Tensor, Tensor] | None
) -> Sequence[Tensor]:
    """Loss, dL/daudio and dL/dtext of the sample, and dL/dscale, in float64."""
    with torch.no_grad():
        columns = [
            reference.max_mean_similarity(
                audio.double(), text[j : j + 1].double(), None, None if mask is None else mask[j : j + 1]
            )
            for j in range(len(text))
        ]
    sim = torch.cat(columns, 1).requires_grad_()
    scale = scale.double().requires_grad_()
    loss = cross_entropies(scale * sim)
    d_sim, d_scale = torch.autograd.grad(loss, (sim, scale))
    _, d_audio, d_text = max_mean.true_step(audio, text, d_sim, mask, sample)
    return loss.detach(), d_audio, d_text, d_scale
