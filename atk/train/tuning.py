"""Fine-tuning: which weights of a model are trained, from which step on, and how fast."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from atk.device import launcher_integer
from atk.models.layers import innermost_layers
from atk.models.spec_augment import SpecAugment, SpecAugmentConfig
from atk.train.config import OptimConfig, TrainConfig
from atk.train.lora import adapter_targets, add_adapters, load_base, save_base
from atk.train.tune_config import TuneConfig

PRETRAINED_LR = 5e-5
_BASE = "base.safetensors"  # in the run folder
_AUDIO = ("audio_encoder",)
_TEXT = ("text_encoder", "decoder")
TOWERS = (*_AUDIO, *_TEXT)
ConfigT = TypeVar("ConfigT", bound=TrainConfig)


@dataclass(frozen=True)
class Pace:
    """How a weight is trained: its learning rate relative to that of the run, and the first step that changes it."""

    lr_factor: float = 1.0
    first_step: int = 0


def pretrained_defaults(config: ConfigT, audio: bool, text: bool) -> ConfigT:
    """The configuration with the learning rate that suits the towers that start from pretrained weights.

    A learning rate that the configuration gives is kept. Anything that is chosen here is printed in one line.

    Args:
        config: configuration of a new run.
        audio, text: whether the audio encoder, and the text encoder or decoder, start from pretrained weights.
    """
    optim = config.optim
    if optim.lr is not None or not (audio or text):
        return config
    if audio and text:
        optim = replace(optim, lr=PRETRAINED_LR)
        note = f"optim.lr {PRETRAINED_LR:g}"
    elif audio and optim.audio_lr is None:
        optim = replace(optim, audio_lr=PRETRAINED_LR)
        note = f"optim.audio_lr {PRETRAINED_LR:g}"
    elif text and optim.text_lr is None:
        optim = replace(optim, text_lr=PRETRAINED_LR)
        note = f"optim.text_lr {PRETRAINED_LR:g}"
    else:
        return config
    note_once(f"pretrained weights: {note}, unless optim.lr is given")
    return replace(config, optim=optim)


def note_once(text: str) -> None:
    """Print a line to stderr, on the first rank only; works before there is a process group."""
    if launcher_integer("RANK", 0) == 0:
        print(text, file=sys.stderr)


def prepare(model: nn.Module, config: TrainConfig, resume: bool) -> dict[str, Pace]:
    """Freeze weights, add adapters, and add SpecAugment, before the model is replicated or sharded.

    Args:
        model: changed in place.
        config: the run.
        resume: whether the run already has a checkpoint, and so a copy of the weights that its adapters belong to.

    Returns:
        How each weight that is trained is trained, by its name.

    Raises:
        ValueError: a pattern matches nothing, a tower has fewer layers, nothing is left to train, or the audio encoder
            has no spectrogram to mask.
    """
    tune = config.tune
    if config.spec_augment.enabled:
        _augment(model, config.spec_augment)
    depths = {tower: _depths(model, tower) for tower in TOWERS if hasattr(model, tower)}
    _freeze(model, tune, depths)
    if tune.lora.rank:
        base = Path(config.out) / _BASE
        targets = adapter_targets(model, list(depths), tune.lora)
        (load_base if resume else save_base)(model, base)
        add_adapters(model, list(depths), targets, tune.lora)
        depths = {tower: _depths(model, tower) for tower in depths}
    paces = {name: Pace() for name, weight in model.named_parameters() if weight.requires_grad}
    if not paces:
        raise ValueError("tune: every weight of the model is frozen; nothing is left to train")
    for tower, (layers, depth_of) in depths.items():
        lr = _tower_lr(config.optim, tower) / config.optim.peak_lr
        for name, depth in depth_of.items():
            if name in paces:
                below = layers + 1 - depth  # layers above this one, counting what follows the last
                paces[name] = Pace(lr * config.optim.layer_decay**below, tune.unfreeze_every * below)
    if min(pace.first_step for pace in paces.values()) > 0:
        raise ValueError(
            "tune.unfreeze_every: everything outside the layers is frozen; nothing trains in the first steps"
        )
    return paces


def lr_factors(model: nn.Module, paces: dict[str, Pace]) -> dict[int, float]:
    """Learning rates relative to that of the run, by `id` of the weight."""
    return {id(weight): paces[name].lr_factor for name, weight in model.named_parameters() if name in paces}


def drop_locked_gradients(model: nn.Module, paces: dict[str, Pace], step: int, idle: Iterable[nn.Module]) -> None:
    """Remove the gradients of weights that are `idle` or not trained yet at `step`, so that the optimizer keeps them.

    They are computed all the same: ranks that exchange gradients must agree on the weights that have one.
    """
    for name, weight in model.named_parameters():
        if name in paces and step < paces[name].first_step:
            weight.grad = None
    for module in idle:  # DDP gives their weights gradients of 0
        module.zero_grad()


def train_mode(model: nn.Module) -> None:
    """Put the model in training mode, but modules without any weight to train in evaluation mode."""
    model.train()
    for module in model.modules():
        weights = list(module.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            module.eval()


def set_augmentation_key(model: nn.Module, key: int) -> None:
    """Choose the masks of SpecAugment for a step."""
    for module in model.modules():
        if isinstance(module, SpecAugment):
            module.key.fill_(key)


def _augment(model: nn.Module, config: SpecAugmentConfig) -> None:
    encoder = model.get_submodule("audio_encoder")
    augmented: list[Any] = [module for module in encoder.modules() if hasattr(module, "augment")]
    if not augmented:
        raise ValueError("spec_augment: this audio encoder takes waveforms and has no spectrogram to mask")
    for module in augmented:
        module.augment = SpecAugment(config).to(next(encoder.parameters()).device)


def _tower_lr(optim: OptimConfig, tower: str) -> float:
    lr = optim.audio_lr if tower in _AUDIO else optim.text_lr
    return optim.peak_lr if lr is None else lr


def _depths(model: nn.Module, tower: str) -> tuple[int, dict[str, int]]:
    """The number of layers of a tower, and the depth of each of its weights by name.

    Depth 0 is what precedes the layers, such as word embeddings; 1 is the first layer; what follows the last of n
    layers has depth n + 1. What lies between two layers belongs to the lower one.
    """
    module = model.get_submodule(tower)
    layers = _layers(module)
    layer_of = {id(weight): index for index, layer in enumerate(layers, 1) for weight in layer.parameters()}
    inputs: Any = getattr(module, "inputs", ())
    layer_of |= {id(weight): 0 for part in inputs for weight in part.parameters()}
    depths: dict[str, int] = {}
    seen = 0
    last = len(layers)
    for name, weight in module.named_parameters():
        depth = layer_of.get(id(weight), last + 1 if seen == last and last else seen)
        seen = max(seen, layer_of.get(id(weight), 0))
        depths[f"{tower}.{name}"] = depth
    return last, depths


def _layers(tower: nn.Module) -> list[nn.Module]:
    """The layers of a tower, from its input on."""
    blocks: Any = getattr(tower, "blocks", None)
    layers = innermost_layers(tower) if blocks is None else list(blocks)
    return [layer for layer in layers if any(True for _ in layer.parameters())]


def _freeze(model: nn.Module, tune: TuneConfig, depths: dict[str, tuple[int, dict[str, int]]]) -> None:
    for tower, (layers, depth_of) in depths.items():
        key = "freeze_audio" if tower in _AUDIO else "freeze_text"
        count = getattr(tune, key)
        if count > layers:
            raise ValueError(f"tune.{key}: {tower} has {layers} layers, got {count}")
        for name, depth in depth_of.items():
            if count and depth <= count:
                model.get_parameter(name).requires_grad_(False)
    for pattern in tune.freeze:
        frozen: list[Tensor] = [w for name, w in model.named_parameters() if fnmatchcase(name, pattern)]
        if not frozen:
            raise ValueError(f"tune.freeze: no weight of the model matches {pattern!r}")
        for weight in frozen:
            weight.requires_grad_(False)
