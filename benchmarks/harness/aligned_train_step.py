"""A step of aligned training: encoders of random waveforms and captions, and the loss, forward and backward.

atk's rows are its whole loss, `atk.nn.AlignedContrastiveLoss`; the others a similarity in the loss that a user writes
around it. The model is the small default one without dropout; the optimiser's step, the same for all, is left out.
Operations are those of the encoders, forward and backward, and of the similarity's forward.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import atk
from atk.bench import max_mean_similarity as max_mean
from atk.bench.measure import Case, Provider
from atk.bench.peers import cross_entropies
from atk.bench.sizes import Batch, Pairs
from atk.models.clap import CLAP, ModelConfig
from atk.ops.reference import normalize

KINDS = {"step": "forward and backward of encoders and loss"}
TEMPERATURE = 0.2
SENTENCE = "a dog barks while rain falls on the roof then two bells ring far away"


def case(shape: Batch, kind: str, dtype: torch.dtype, device: torch.device) -> Case:
    """The table of one shape; a half type means autocast."""
    captions = [_caption(number) for number in range(shape.pairs)]
    model = _model(captions).to(device)
    audio = _waveforms(shape.pairs, int(shape.seconds * model.sample_rate)).to(device)
    lengths = torch.full([shape.pairs], audio.shape[1], device=device)
    tokens = {name: value.to(device) for name, value in model.tokenize(captions).items()}
    pairs, flops = _count(model, audio, lengths, tokens)
    providers = []
    for each in max_mean.similarities(dtype, device, ragged=True, backward=True):
        if each.name.startswith("torch.compile") or each.name.endswith("packed"):
            continue
        call = _step(model, _criterion(each), lengths, tokens, dtype)
        tolerance = 2e-3 if dtype == torch.float32 else 0.6  # rounding moves winners, of tokens and of pools
        providers.append(Provider(each.name, call, tolerance, max_mean.held(each, pairs, dtype), each.missing))

    def true() -> tuple[Tensor, ...]:
        precise = copy.deepcopy(model).double()
        precise.audio_encoder.log_mel.float()  # which computes in float32 always
        plain = _criterion(max_mean.Similarity("naive", max_mean.naive))
        return _step(precise, plain, lengths, tokens, torch.float64)(audio)

    counts = f"{shape.pairs} pairs of {shape.seconds:g} s, {str(dtype).removeprefix('torch.')}"
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return Case(
        title=f"aligned_train_step, {KINDS[kind]}: {counts}",
        inputs=(audio,),
        truth=true,
        providers=providers,
        flops=flops,
        nbytes=float(audio.nbytes + 2 * weights),
        dtype=dtype,
    )


def _caption(number: int) -> str:
    """4 to 15 words, not the same ones first."""
    words = SENTENCE.split()
    start = 7 * number % len(words)
    return " ".join((words[start:] + words[:start])[: 4 + number % 12])


def _waveforms(pairs: int, samples: int) -> Tensor:
    """`[N, S]`: noise, each clip through a random filter of its own, so that clips differ in spectrum."""
    filters = torch.randn(pairs, 1, 31)
    noise = torch.randn(pairs, samples + 30)
    return 0.02 * F.conv1d(noise[None], filters, groups=pairs)[0]


def _model(captions: list[str]) -> CLAP:
    config = ModelConfig()
    parts = {name: replace(getattr(config, name), dropout=0.0) for name in ("audio", "text")}
    return CLAP.create(replace(config, **parts), captions)


def _count(model: CLAP, audio: Tensor, lengths: Tensor, tokens: dict[str, Tensor]) -> tuple[Pairs, float]:
    """Shape of the similarity, and operations of the step."""
    with FlopCounterMode(display=False) as counter:
        sound, text = model(audio, lengths, tokens)
        (sound.pooled.sum() + text.pooled.sum() + sound.frames.sum() + text.tokens.sum()).backward()
    model.zero_grad(set_to_none=True)
    n, frames, channels = sound.frames.shape
    similarity = 2.0 * int(sound.mask.sum()) * int(text.mask.sum()) * channels
    return Pairs(n, n, frames, text.tokens.shape[1], channels), counter.get_total_flops() + similarity


def _criterion(similarity: max_mean.Similarity) -> Callable[..., Tensor]:
    """`L_total` (3.7) with the aligned term on this similarity."""
    if similarity.name.startswith("atk"):
        backend = similarity.name.removeprefix("atk ").partition(",")[0]
        return atk.nn.AlignedContrastiveLoss(TEMPERATURE, backend=backend)

    def loss(audio, text, frames, tokens, frame_mask, token_mask):
        whole = normalize(audio) @ normalize(text).T
        # Every clip is as long; the first token is special, so that without it a caption's tokens lead its row.
        aligned = similarity.call(normalize(frames), normalize(tokens[:, 1:]), token_mask[:, 1:])
        return cross_entropies(whole / TEMPERATURE) + cross_entropies(aligned / TEMPERATURE)

    return loss


def _step(
    model: CLAP, criterion: Callable[..., Tensor], lengths: Tensor, tokens: dict[str, Tensor], dtype: torch.dtype
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The loss, and its gradients to the weights of projections and convolutions and to the word embeddings."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Embedding)]
    layers += [model.audio_projection, model.text_projection]

    def call(audio):
        with torch.autocast(audio.device.type, dtype, enabled=dtype.itemsize == 2):
            sound, text = model(audio, lengths, tokens)
            loss = criterion(sound.pooled, text.pooled, sound.frames, text.tokens, sound.mask, text.mask)
        loss.backward()
        gradients = [layer.weight.grad for layer in layers]
        model.zero_grad(set_to_none=True)  # the next call pays for its own
        return loss.detach(), *gradients

    return call
