"""A step of aligned training: encoders on random waveforms and captions, and the loss, forward and backward.

The atk rows use atk's whole loss, `atk.nn.AlignedContrastiveLoss`. The other rows put a similarity into the loss that a
user would write around it. The model is the small default one without dropout. The optimizer step is the same for all
rows and is not included. The operations counted are those of the encoders, forward and backward, and of the
similarity's forward.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import atk
from atk.bench import max_mean_similarity as max_mean
from atk.bench.accuracy import Tolerance
from atk.bench.measure import Case, Provider
from atk.bench.peers import cross_entropies
from atk.bench.sizes import Batch, Pairs
from atk.models.clap import CLAP, ModelConfig
from atk.ops.reference import normalize

MODES = {"step": "forward and backward of encoders and loss"}
TEMPERATURE = 0.2
SENTENCE = "a dog barks while rain falls on the roof then two bells ring far away"

Criterion = Callable[..., Tensor]  # of (audio, text, frames, tokens, frame_mask, token_mask)


def case(shape: Batch, mode: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The benchmark case of one shape; a half-precision `dtype` means autocast."""
    captions = [_caption(index) for index in range(shape.pairs)]
    model = _model(captions).to(device)
    audio = _waveforms(shape.pairs, int(shape.seconds * model.sample_rate)).to(device)
    lengths = torch.full([shape.pairs], audio.shape[1], device=device)
    tokens = {name: value.to(device) for name, value in model.tokenize(captions).items()}
    pairs, flops = _count(model, audio, lengths, tokens)
    providers = []
    for similarity in max_mean.similarities(dtype, device, ragged=True, backward=True):
        if similarity.name.startswith("torch.compile") or similarity.name.endswith("packed"):
            continue
        call = _step(model, _criterion(similarity), lengths, tokens, dtype)
        needs_bytes = max_mean.score_bytes(similarity, pairs, dtype)
        providers.append(Provider(similarity.name, call, _tolerance(dtype), needs_bytes, similarity.missing))

    def truth() -> tuple[Tensor, ...]:
        criterion = _criterion(max_mean.Similarity("naive", max_mean.naive))
        if dtype.itemsize == 2:
            return _step(model, _in_float64(criterion), lengths, tokens, dtype)(audio)
        precise = copy.deepcopy(model).double()
        precise.audio_encoder.get_submodule("log_mel").float()  # always computes in float32
        return _step(precise, criterion, lengths, tokens, torch.float64)(audio)

    counts = f"{shape.pairs} pairs of {shape.seconds:g} s, {str(dtype).removeprefix('torch.')}"
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return Case(
        title=f"aligned_train_step, {MODES[mode]}: {counts}",
        inputs=(audio,),
        truth=truth,
        providers=providers,
        flops=flops,
        nbytes=float(audio.nbytes + 2 * weights),
        dtype=dtype,
    )


def _tolerance(dtype: torch.dtype) -> Tolerance:
    """Tolerance of a step; under autocast relative to the same encoders with a float64 loss.

    The encoders' own rounding would hide any mistake in the loss, so the reference's encoders run under autocast too.
    What is left is the rounding of the embeddings' gradients, which the encoders' backward amplifies: for the correct
    losses measured, 1 - cosine is up to 8e-4 and the norm is up to 2.1 % off in bfloat16.
    """
    if dtype == torch.float32:
        return Tolerance(value=2e-3, gradient=2e-3)
    return Tolerance(value=2 * torch.finfo(dtype).eps, gradient=math.inf, cosine=0.995, norm=0.03)


def _caption(index: int) -> str:
    """A caption of 4 to 15 words; consecutive ones start at different words of the sentence."""
    words = SENTENCE.split()
    start = 7 * index % len(words)
    return " ".join((words[start:] + words[:start])[: 4 + index % 12])


def _waveforms(pairs: int, samples: int) -> Tensor:
    """Noise `[N, S]`, filtered at random for each clip, so that the clips differ in spectrum."""
    filters = torch.randn(pairs, 1, 31)
    noise = torch.randn(pairs, samples + 30)
    return 0.02 * F.conv1d(noise[None], filters, groups=pairs)[0]


def _model(captions: list[str]) -> CLAP:
    config = ModelConfig()
    config = replace(config, audio=replace(config.audio, dropout=0.0), text=replace(config.text, dropout=0.0))
    return CLAP.create(config, captions)


def _count(model: CLAP, audio: Tensor, lengths: Tensor, tokens: dict[str, Tensor]) -> tuple[Pairs, float]:
    """Shape of the similarity, and operations of the step; also centers the model's global vectors.

    With random weights the vectors of all clips and captions point in nearly the same direction. The gradient of the
    loss would then nearly cancel, and rounding errors would dominate it.
    """
    with FlopCounterMode(display=False) as counter:
        sound, text = model(audio, lengths, tokens)
        (sound.pooled.sum() + text.pooled.sum() + sound.frames.sum() + text.tokens.sum()).backward()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        model.get_parameter("audio_projection.bias").sub_(sound.pooled.mean(0))
        model.get_parameter("text_projection.bias").sub_(text.pooled.mean(0))
    n, frames, channels = sound.frames.shape
    similarity = 2.0 * int(sound.mask.sum()) * int(text.mask.sum()) * channels
    return Pairs(n, n, frames, text.tokens.shape[1], channels), counter.get_total_flops() + similarity


def _criterion(similarity: max_mean.Similarity) -> Criterion:
    """`L_total` (3.7), whose aligned term uses this similarity."""
    if similarity.name.startswith("atk"):
        backend = similarity.name.removeprefix("atk ").partition(",")[0]
        return atk.nn.AlignedContrastiveLoss(TEMPERATURE, backend=backend)

    def loss(
        audio: Tensor, text: Tensor, frames: Tensor, tokens: Tensor, frame_mask: Tensor, token_mask: Tensor
    ) -> Tensor:
        cosines = normalize(audio) @ normalize(text).T
        # Clips have equal lengths, so there is no frame mask. Some libraries take only caption lengths, so the first
        # token, which is special and masked, is cut off.
        aligned = similarity.call(normalize(frames), normalize(tokens[:, 1:]), token_mask[:, 1:])
        return cross_entropies(cosines / TEMPERATURE) + cross_entropies(aligned / TEMPERATURE)

    return loss


def _in_float64(criterion: Criterion) -> Criterion:
    """`criterion` on float64 copies of its inputs, without autocast."""

    def loss(*inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, enabled=False):
            return criterion(*(x.double() if x.is_floating_point() else x for x in inputs))

    return loss


def _step(
    model: CLAP, criterion: Criterion, lengths: Tensor, tokens: dict[str, Tensor], dtype: torch.dtype
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function of the audio that returns the loss and the gradients of projections, convolutions, and embeddings."""
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Embedding)]
    weights += [model.get_parameter(f"{name}_projection.weight") for name in ("audio", "text")]

    def call(audio: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(audio.device.type, dtype, enabled=dtype.itemsize == 2):
            sound, text = model(audio, lengths, tokens)
            loss = criterion(sound.pooled, text.pooled, sound.frames, text.tokens, sound.mask, text.mask)
        loss.backward()
        gradients = []
        for weight in weights:
            assert weight.grad is not None
            gradients.append(weight.grad)
        model.zero_grad(set_to_none=True)  # so that the next call allocates its gradients too
        return loss.detach(), *gradients

    return call
