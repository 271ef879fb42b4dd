"""The parts of a step that are run to plan it: the encoders on a few clips, the loss on a few logits."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from atk.data.dataset import Batch, collate
from atk.models.clap import CLAP
from atk.models.layers import checkpoint_layers, innermost_layers
from atk.models.text import TextEncoder
from atk.ops import reference
from atk.ops.info_nce import logit_gradient_magnitude
from atk.ops.sigmoid import losses_of_scores
from atk.plan.cost import Cost, LinearCost, Trace
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.contrastive import ContrastiveTask
from atk.train.grad_cache import Embeddings
from atk.train.semisupervised import SemiSupervisedBatch, SemiSupervisedTask
from atk.train.semisupervised_config import SemiSupervisedConfig

PlanConfig = AlignedConfig | SemiSupervisedConfig
PlanTask = ContrastiveTask[Any, Any]

_CLIPS = 2  # in the run that is extrapolated
_LOGITS = 64  # rows and columns of the traced logits


@dataclass(frozen=True)
class Encoders:
    """The cost of clips with their captions.

    Attributes:
        parameters: number of trained weights.
        gathered_parameters: number of weights that a rank gathers at a time if they are sharded.
        cost: cost of forward and backward of n clips and captions.
        forward: number of operations in the forward.
        waveform_bytes: bytes per clip, including the unlabeled clip that goes with it.
        embedding_bytes: bytes per pair of everything that the loss depends on.
        aligned_bytes: bytes per pair of the frames and tokens among them.
        itemsize: bytes per value of the embeddings.
        frames, tokens, valid_tokens, dim: L_a, L_t with and without special tokens, and D; the first three are 0 if the
            loss uses no frames and tokens.
        terms: number of losses on global vectors.
    """

    parameters: int
    gathered_parameters: int
    cost: LinearCost
    forward: int
    waveform_bytes: int
    embedding_bytes: float
    aligned_bytes: float
    itemsize: int
    frames: int
    tokens: int
    valid_tokens: int
    dim: int
    terms: int


def trace_encoders(config: PlanConfig, caption_tokens: int) -> Encoders:
    """Trace the encoders of `config` on noise and captions of `caption_tokens` words, on the CPU.

    Raises:
        ValueError: the loss is the triplet loss.
    """
    if config.loss.kind == "triplet":
        raise ValueError("loss.kind: steps with the triplet loss cannot be planned")
    task = _task(config)
    bf16 = config.precision == "bf16"
    embeddings, cost, forward = _run(task, _batch(task, _CLIPS, caption_tokens), bf16)
    _, next_cost, _ = _run(task, _batch(task, _CLIPS + 1, caption_tokens), bf16)
    vectors = [value for value in embeddings.values() if value.dim() == 2 and value.is_floating_point()]
    has_frames = "frames" in embeddings
    has_global_loss = not has_frames or (isinstance(config, AlignedConfig) and config.loss.global_weight > 0)
    encodes_twice = "unlabeled audio" in embeddings or "mix audio" in embeddings
    return Encoders(
        parameters=sum(parameter.numel() for parameter in _trained(task)),
        gathered_parameters=_gathered_parameters(task.model),
        cost=LinearCost(_CLIPS, cost, next_cost),
        forward=forward,
        waveform_bytes=4 * (1 + encodes_twice) * round(config.clip_seconds * task.model.sample_rate),
        embedding_bytes=sum(value.nbytes for value in embeddings.values()) / _CLIPS,
        aligned_bytes=sum(embeddings[name].nbytes for name in ("frames", "tokens") if has_frames) / _CLIPS,
        itemsize=vectors[0].itemsize,
        frames=embeddings["frames"].shape[1] if has_frames else 0,
        tokens=embeddings["tokens"].shape[1] if has_frames else 0,
        valid_tokens=int(embeddings["token_mask"][0].sum()) if has_frames else 0,
        dim=task.model.dim,
        terms=len(vectors) // 2 if has_global_loss else 0,
    )


def logits_cost(loss: str, skip_below: float) -> tuple[float, float]:
    """Bytes held and bytes moved per logit by a loss on a score matrix, including the matrix and its gradient.

    `loss` is "info_nce" or "sigmoid".
    """
    sim = torch.rand(_LOGITS, _LOGITS, requires_grad=True)
    with Trace() as trace:
        if loss == "sigmoid":
            losses_of_scores(sim, 5.0, -10.0, torch.arange(_LOGITS), skip_below).mean().backward()
        else:
            scores = sim
            if skip_below > 0:
                scores = torch.where(logit_gradient_magnitude(sim, 5.0) < skip_below, sim.detach(), sim)
            reference.info_nce(scores, 5.0).backward()
    cost = trace.cost()
    return cost.peak() / _LOGITS**2 + sim.itemsize, cost.moved.sum() / _LOGITS**2


def _task(config: PlanConfig) -> PlanTask:
    """The task that trains `config`, without its data."""
    if config.init is not None:
        config = replace(config, model=CLAP.saved_config(config.init))
    make: type[PlanTask] = AlignedTask if isinstance(config, AlignedConfig) else SemiSupervisedTask
    task: PlanTask = make.__new__(make)  # the constructor would read data
    task.config = replace(config, backend="auto")  # this machine may lack the one that trains
    task.device = torch.device("cpu")
    task.model = _model(config).train()
    if config.activation_checkpointing:
        checkpoint_layers(task.model)
    task.criterion = task.make_criterion().train()
    for parameter in _trained(task):
        parameter.grad = torch.zeros_like(parameter)  # counted with the weights, not with the activations
    return task


def _model(config: PlanConfig) -> CLAP:
    """The model, with the largest vocabulary that training could give it."""
    text = config.model.text
    model = CLAP.create(config.model, ["a"])
    published = config.model.clap.enabled or config.model.msclap.enabled
    if text.pretrained is None and not published and isinstance(model.text_encoder, TextEncoder):
        model.text_encoder.model.set_input_embeddings(nn.Embedding(text.vocabulary, text.width, padding_idx=0))
    return model


def _trained(task: PlanTask) -> list[Tensor]:
    return [p for module in (task.model, task.criterion) for p in module.parameters() if p.requires_grad]


def _gathered_parameters(model: nn.Module) -> int:
    """Number of weights outside the layers and in two layers: the one in use and the next one, which is prefetched."""
    sizes = sorted(sum(p.numel() for p in layer.parameters()) for layer in innermost_layers(model))
    return sum(p.numel() for p in model.parameters()) - sum(sizes) + sum(sizes[-2:])


def _batch(task: PlanTask, clips: int, caption_tokens: int) -> Batch | SemiSupervisedBatch:
    """Noise, and captions of one-token words."""
    samples = round(task.config.clip_seconds * task.model.sample_rate)
    caption = " ".join(["a"] * caption_tokens)
    batch = collate([{"audio": torch.randn(samples) / 10, "caption": caption, "file": "noise", "clip": 0}] * clips)
    if isinstance(task, SemiSupervisedTask):
        return SemiSupervisedBatch(batch, batch if task.config.uses_unlabeled else None)
    return batch


def _run(task: PlanTask, batch: Batch | SemiSupervisedBatch, bf16: bool) -> tuple[Embeddings, Cost, int]:
    """Embeddings of a batch, the cost of their forward and backward, and the number of operations in the forward."""
    with Trace() as trace:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            embeddings = task.encode(batch)
        forward = len(trace)
        outputs = [value for value in embeddings.values() if value.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(value) for value in outputs])
        embeddings = {name: value.detach() for name, value in embeddings.items()}
    return embeddings, trace.cost(), forward
