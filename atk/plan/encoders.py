"""The parts of a step that are run to plan it: the encoders on a few clips, the loss on a few logits."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from atk.data import MixConfig, MixtureBatch
from atk.data.dataset import Batch, collate
from atk.models.captioner import Captioner
from atk.models.clap import CLAP
from atk.models.decoder import CaptionDecoder
from atk.models.layers import MelSpectrogram, checkpoint_layers, innermost_layers
from atk.models.text import TextEncoder
from atk.models.unified import Unified, starting_config
from atk.ops import reference
from atk.ops.info_nce import logit_gradient_magnitude
from atk.ops.sigmoid import losses_of_scores
from atk.plan.cost import Cost, LinearCost, Trace
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.contrastive import ContrastiveTask
from atk.train.difference import DifferenceConfig, DifferenceTask
from atk.train.grad_cache import AdditiveTask, Embeddings
from atk.train.semisupervised import SemiSupervisedTask
from atk.train.semisupervised_batch import SemiSupervisedBatch
from atk.train.semisupervised_config import SemiSupervisedConfig
from atk.train.unified import UnifiedTask
from atk.train.unified_config import UnifiedConfig

PlanConfig = AlignedConfig | SemiSupervisedConfig | UnifiedConfig | DifferenceConfig
PlanTask = ContrastiveTask[Any, Any] | DifferenceTask
PlanBatch = Batch | SemiSupervisedBatch
_TASKS: dict[type[PlanConfig], type[PlanTask]] = {
    AlignedConfig: AlignedTask,
    SemiSupervisedConfig: SemiSupervisedTask,
    UnifiedConfig: UnifiedTask,
    DifferenceConfig: DifferenceTask,
}

_CLIPS = 2  # in the run that is extrapolated
_ANY_NUMBER = 1 << 30  # of clips
_LOGITS = 64  # rows and columns of the traced logits


@dataclass(frozen=True)
class Encoders:
    """The cost of clips with their captions.

    Attributes:
        parameters: number of trained weights.
        gathered_parameters: number of weights that a rank gathers at a time if they are sharded.
        cost: cost of forward and backward of n clips and captions.
        forward: number of operations in the forward.
        waveform_bytes: bytes per clip, including its references and the unlabeled clip that goes with it.
        embedding_bytes: bytes per pair of everything that the loss depends on.
        aligned_bytes: bytes per pair of the frames and tokens among them.
        itemsize: bytes per value of the embeddings.
        frames, tokens, valid_tokens, dim: L_a, L_t with and without special tokens, and D; the first three are 0 if the
            loss uses no frames and tokens.
        terms: number of losses on global vectors.
        additive: whether the loss is a sum over clips, so that micro-batches are encoded only once.
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
    additive: bool = False


def trace_encoders(config: PlanConfig, caption_tokens: int) -> Encoders:
    """Trace the encoders of `config` on noise and captions of `caption_tokens` words, on the CPU.

    Raises:
        ValueError: the loss is the triplet loss.
    """
    if not isinstance(config, DifferenceConfig) and config.loss.kind == "triplet":
        raise ValueError("loss.kind: steps with the triplet loss cannot be planned")
    task = _task(config)
    bf16 = config.precision == "bf16"
    batch = _batch(task, _CLIPS, caption_tokens)
    embeddings, cost, forward = _run(task, batch, bf16)
    _, next_cost, _ = _run(task, _batch(task, _CLIPS + 1, caption_tokens), bf16)
    vectors = [value for value in embeddings.values() if value.dim() == 2 and value.is_floating_point()]
    has_frames = "frames" in embeddings
    unused = (
        isinstance(config, (AlignedConfig, UnifiedConfig)) and "audio" in embeddings and not config.loss.global_weight
    )
    return Encoders(
        parameters=sum(parameter.numel() for parameter in _trained(task)),
        gathered_parameters=_gathered_parameters(task.model),
        cost=LinearCost(_CLIPS, cost, next_cost),
        forward=forward,
        waveform_bytes=_waveform_bytes(batch) // _CLIPS,
        embedding_bytes=sum(value.nbytes for value in embeddings.values()) / _CLIPS,
        aligned_bytes=sum(embeddings[name].nbytes for name in ("frames", "tokens") if has_frames) / _CLIPS,
        itemsize=vectors[0].itemsize if vectors else 4,
        frames=embeddings["frames"].shape[1] if has_frames else 0,
        tokens=embeddings["tokens"].shape[1] if has_frames else 0,
        valid_tokens=int(embeddings["token_mask"][0].sum()) if has_frames else 0,
        dim=task.model.decoder.width if isinstance(task, DifferenceTask) else task.model.dim,
        terms=len(vectors) // 2 - unused,
        additive=isinstance(task, AdditiveTask),
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
    config = _with_saved_model(config)
    make: Any = _TASKS[type(config)]
    task = make.__new__(make)  # the constructor would read data
    task.config = replace(config, backend="auto")  # this machine may lack the one that trains
    task.device = torch.device("cpu")
    task.model = _model(config).train()
    for module in task.model.modules():
        if isinstance(module, MelSpectrogram):
            module.clips_at_a_time = _ANY_NUMBER  # equally many operations for any number of clips
    if isinstance(task, UnifiedTask):
        task.weights = dict.fromkeys(task.config.loss.used, 1.0)  # the costliest step of a schedule
        task.freeze_unused()
    if not isinstance(config, DifferenceConfig) and config.activation_checkpointing:
        checkpoint_layers(task.model)
    task.criterion = nn.Identity() if isinstance(config, DifferenceConfig) else task.make_criterion().train()
    for parameter in _trained(task):
        parameter.grad = torch.zeros_like(parameter)  # counted with the weights, not with the activations
    return task


def _with_saved_model(config: PlanConfig) -> PlanConfig:
    """The configuration with that of the model that it starts from."""
    if config.init is None:
        return config
    if isinstance(config, DifferenceConfig):
        saved, block = Captioner.saved_config(config.init), config.model
        return replace(config, model=replace(saved, difference=block.difference, heads=block.heads))
    if isinstance(config, UnifiedConfig):
        return replace(config, model=starting_config(config.init, config.model))
    return replace(config, model=CLAP.saved_config(config.init))


def _model(config: PlanConfig) -> CLAP | Captioner:
    """The model, with the largest vocabularies that training could give it."""
    if isinstance(config, DifferenceConfig):
        model = Captioner.create(config.model, ["a"])
    else:
        model = (Unified if isinstance(config, UnifiedConfig) else CLAP).create(config.model, ["a"])
        text = config.model.text
        published = config.model.clap.enabled or config.model.msclap.enabled
        if text.pretrained is None and not published and isinstance(model.text_encoder, TextEncoder):
            model.text_encoder.model.set_input_embeddings(nn.Embedding(text.vocabulary, text.width, padding_idx=0))
    if isinstance(config, (DifferenceConfig, UnifiedConfig)):
        words, decoder = config.model.decoder, model.decoder
        assert isinstance(decoder, CaptionDecoder)
        if words.pretrained is None and words.tokenizer is None:
            _set_vocabulary(decoder.bart, words.vocabulary)
    return model


def _set_vocabulary(bart: Any, size: int) -> None:
    """Give a BART without an encoder, which transformers cannot resize, new word embeddings."""
    bart.model.shared = bart.model.decoder.embed_tokens = nn.Embedding(size, bart.config.d_model)
    bart.lm_head = nn.Linear(bart.config.d_model, size, bias=False)
    bart.lm_head.weight = bart.model.shared.weight
    bart.final_logits_bias = torch.zeros(1, size)
    bart.config.vocab_size = size


def _trained(task: PlanTask) -> list[Tensor]:
    return [p for module in (task.model, task.criterion) for p in module.parameters() if p.requires_grad]


def _gathered_parameters(model: nn.Module) -> int:
    """Number of weights outside the layers and in two layers: the one in use and the next one, which is prefetched."""
    sizes = sorted(sum(p.numel() for p in layer.parameters()) for layer in innermost_layers(model))
    return sum(p.numel() for p in model.parameters()) - sum(sizes) + sum(sizes[-2:])


def _batch(task: PlanTask, clips: int, caption_tokens: int) -> PlanBatch:
    """Noise, and captions of one-token words; if clips are mixed at all, all are, with references as long as a clip."""
    samples = round(task.config.clip_seconds * task.model.sample_rate)
    caption = " ".join(["a"] * caption_tokens)
    batch = collate([{"audio": torch.randn(samples) / 10, "caption": caption, "file": "noise", "clip": 0}] * clips)
    labeled = batch
    if isinstance(task, DifferenceTask) or (isinstance(task, UnifiedTask) and task.config.captions):
        labeled = _mixed(batch, task.config.mix, task.model.difference_block is not None)
        if isinstance(task, UnifiedTask):
            labeled.inputs = batch.audio
    if isinstance(task, (SemiSupervisedTask, UnifiedTask)):
        return SemiSupervisedBatch(labeled, batch if task.config.uses_unlabeled else None)
    return labeled


def _mixed(batch: Batch, mix: MixConfig, subtracts: bool) -> MixtureBatch:
    count = (mix.sources if mix.condition.startswith("multi") else 1) * (subtracts and mix.rate > 0)
    references = torch.randn(len(batch), count, batch.audio.shape[1]) / 10
    return MixtureBatch(
        **vars(batch),
        references=references,
        reference_lengths=torch.full((len(batch), count), references.shape[2]),
        added=[("noise",) * count] * len(batch),
        common=torch.zeros(len(batch), dtype=torch.bool),
    )


def _waveform_bytes(batch: PlanBatch) -> int:
    if isinstance(batch, SemiSupervisedBatch):
        return sum(_waveform_bytes(part) for part in (batch.labeled, batch.unlabeled) if part is not None)
    more = batch.references.nbytes + batch.inputs.nbytes if isinstance(batch, MixtureBatch) else 0
    return batch.audio.nbytes + more


def _run(task: PlanTask, batch: Any, bf16: bool) -> tuple[Embeddings, Cost, int]:
    """Embeddings of a batch, the cost of their forward and backward, and the number of operations in the forward."""
    with Trace() as trace:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            embeddings = task.encode(batch)
        forward = len(trace)
        outputs = [value for value in embeddings.values() if value.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(value) for value in outputs])
        embeddings = {name: value.detach() for name, value in embeddings.items()}
    return embeddings, trace.cost(), forward
