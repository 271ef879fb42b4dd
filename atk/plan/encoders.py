"""The parts of a step that are run to be planned: the encoders on a few clips, the loss over a few logits."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atk.data.dataset import collate
from atk.models.clap import CLAP
from atk.models.layers import checkpoint_layers, innermost_layers
from atk.ops import reference
from atk.ops.info_nce import pair_weights
from atk.plan.cost import Cost, LinearCost, Trace
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.checkpoint import model_folder
from atk.train.contrastive import ContrastiveConfig, ContrastiveTask
from atk.train.grad_cache import Embeddings
from atk.train.semisupervised import SemiSupervisedBatch, SemiSupervisedConfig, SemiSupervisedTask

_FEW = 2  # clips of the run that is scaled
_LOGITS = 64


@dataclass(frozen=True)
class Encoders:
    """What a clip and its caption cost.

    Attributes:
        parameters: trained weights.
        put_together: weights that a rank holds whole at a time where they are sharded.
        cost: forward and backward of n clips and captions.
        forward: operations of the forward.
        waveform_bytes: of a clip, and of the unlabelled clip beside it.
        embedding_bytes: all that the loss is a function of, of a pair.
        aligned_bytes: frames and tokens among them.
        itemsize: bytes of a number of them.
        frames, tokens, valid_tokens, dim: L_a, L_t with and without special tokens, D; no frames where the loss uses
            none.
        terms: InfoNCE losses over global vectors.
    """

    parameters: int
    put_together: int
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


def trace_encoders(config: ContrastiveConfig, caption_tokens: int) -> Encoders:
    """See what the encoders of `config` do with noise and captions of `caption_tokens` words, on the CPU."""
    task = _task(config)
    bf16 = config.precision == "bf16"
    runs = [_run(task, _batch(task, clips, caption_tokens), bf16) for clips in (_FEW, _FEW + 1)]
    embeddings, _, forward = runs[0]
    frames, tokens = embeddings.get("frames"), embeddings.get("tokens")
    aligned = [] if frames is None else [frames, tokens]
    vectors = [value for value in embeddings.values() if value.dim() == 2 and value.is_floating_point()]
    batches = 2 if "unlabeled audio" in embeddings or "mix audio" in embeddings else 1
    return Encoders(
        parameters=sum(parameter.numel() for parameter in _trained(task)),
        put_together=_put_together(task.model),
        cost=LinearCost(_FEW, *(cost for _, cost, _ in runs)),
        forward=forward,
        waveform_bytes=4 * batches * round(config.clip_seconds * task.model.sample_rate),
        embedding_bytes=sum(value.nbytes for value in embeddings.values()) / _FEW,
        aligned_bytes=sum(value.nbytes for value in aligned) / _FEW,
        itemsize=vectors[0].itemsize,
        frames=0 if frames is None else frames.shape[1],
        tokens=0 if tokens is None else tokens.shape[1],
        valid_tokens=0 if tokens is None else int(embeddings["token_mask"][0].sum()),
        dim=task.model.dim,
        terms=len(vectors) // 2 if frames is None or config.loss.global_weight else 0,
    )


def logits_cost(skip_below: float) -> tuple[float, float]:
    """Bytes held and bytes moved for each logit, by InfoNCE over a score matrix, its gradient and itself included."""
    sim = torch.rand(_LOGITS, _LOGITS, requires_grad=True)
    with Trace() as trace:
        scores = sim
        if skip_below > 0:
            scores = torch.where(pair_weights(sim.detach(), 5.0) < skip_below, sim.detach(), sim)
        reference.info_nce(scores, 5.0).backward()
    cost = trace.cost()
    return cost.peak() / _LOGITS**2 + sim.itemsize, cost.moved.sum() / _LOGITS**2


def _task(config: ContrastiveConfig) -> ContrastiveTask:
    """The task that trains `config`, without its data."""
    make = {AlignedConfig: AlignedTask, SemiSupervisedConfig: SemiSupervisedTask}[type(config)]
    if config.init is not None:
        config = replace(config, model=CLAP.saved_config(model_folder(Path(config.init))))
    task = make.__new__(make)
    task.config, task.device, task.backend = config, torch.device("cpu"), "auto"
    task.model = _model(config).train()
    if config.activation_checkpointing:
        checkpoint_layers(task.model)
    task.criterion = task.make_criterion().train()
    for parameter in _trained(task):
        parameter.grad = torch.zeros_like(parameter)  # counted with the weights, not among activations
    return task


def _model(config: ContrastiveConfig) -> CLAP:
    """The model, with a vocabulary as large as training could make it."""
    given, text = config.model, config.model.text
    model = CLAP.create(given, ["a"])
    if text.pretrained is None and not given.clap.chosen and not given.msclap.chosen:
        model.text_encoder.model.set_input_embeddings(nn.Embedding(text.vocabulary, text.width, padding_idx=0))
    return model


def _trained(task: ContrastiveTask) -> list[Tensor]:
    return [p for module in (task.model, task.criterion) for p in module.parameters() if p.requires_grad]


def _put_together(model: nn.Module) -> int:
    """Weights outside the layers, and of two layers: one at work and one on its way."""
    sizes = sorted(sum(p.numel() for p in layer.parameters()) for layer in innermost_layers(model))
    return sum(p.numel() for p in model.parameters()) - sum(sizes) + sum(sizes[-2:])


def _batch(task: ContrastiveTask, clips: int, caption_tokens: int) -> Any:
    """Noise, and captions of one-token words."""
    samples = round(task.config.clip_seconds * task.model.sample_rate)
    caption = " ".join(["a"] * caption_tokens)
    items = [{"audio": torch.randn(samples) / 10, "caption": caption, "file": "noise", "clip": 0}] * clips
    batch = collate(items)
    if isinstance(task, SemiSupervisedTask):
        return SemiSupervisedBatch(batch, batch if task.config.uses_unlabeled else None)
    return batch


def _run(task: ContrastiveTask, batch: Any, bf16: bool) -> tuple[Embeddings, Cost, int]:
    """Embeddings of a batch, the cost of their forward and backward, and the number of operations of the forward."""
    with Trace() as trace:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            embeddings = task.encode(batch)
        forward = len(trace)
        outputs = [value for value in embeddings.values() if value.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(value) for value in outputs])
        embeddings = {name: value.detach() for name, value in embeddings.items()}
    return embeddings, trace.cost(), forward
