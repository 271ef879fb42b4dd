"""Optimizers: Adam with linear warmup and cosine decay, and schedule-free Adam, which averages the weights instead."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atk.extras import optional_imports
from atk.train.config import OptimConfig

# Settings of a group that follow from the configuration and are not restored from a checkpoint.
_OF_THE_RUN = ("params", "weight_decay", "lr", "lr_factor")


def make_optimizer(groups: Iterable[dict[str, Any]], optim: OptimConfig, steps: int) -> torch.optim.Optimizer:
    """The optimizer that `optim` names.

    Args:
        groups: groups of parameters, such as from `decay_groups`.
        optim: configuration.
        steps: number of steps of the whole run.
    """
    if optim.name == "adam":
        return torch.optim.AdamW(groups, optim.peak_lr, weight_decay=optim.weight_decay)
    with optional_imports:
        from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(
        groups, optim.peak_lr, weight_decay=optim.weight_decay, warmup_steps=round(optim.warmup * steps)
    )
    optimizer.train()
    return optimizer


def without_decay(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters that weight decay would harm: those of norms, biases (including tables of them), and scalars or
    vectors such as the temperature and the `[CLS]` input."""
    spared: dict[int, nn.Parameter] = {}
    for root in modules:
        for path, module in root.named_modules():
            is_norm = "norm" in type(module).__name__.lower()
            for name, parameter in module.named_parameters(recurse=False):
                if is_norm or "bias" in f"{path.rpartition('.')[2]}.{name}" or parameter.dim() <= 1:
                    spared[id(parameter)] = parameter
    return list(spared.values())


def parameter_groups(
    parameters: Iterable[Tensor], undecayed: Sequence[Tensor], lr_factors: Mapping[int, float] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, by weight decay and learning rate; none is empty.

    Args:
        parameters: all parameters to train.
        undecayed: those that get no weight decay.
        lr_factors: learning rates relative to that of the run, by `id` of the parameter; 1 for those that are missing.
    """
    spared = {id(parameter) for parameter in undecayed}
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for parameter in parameters:
        factor = (lr_factors or {}).get(id(parameter), 1.0)
        groups.setdefault((id(parameter) in spared, factor), []).append(parameter)
    return [
        {"params": members, "lr_factor": factor} | ({"weight_decay": 0.0} if undecayed_group else {})
        for (undecayed_group, factor), members in sorted(groups.items())
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the run; each group multiplies it by its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def ordered_state(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The state of an optimizer by the index of each parameter in `parameters`.

    Groups that differ only in what the configuration determines (weight decay, learning rate) become one.
    """
    order = _order(optimizer, parameters)
    state = optimizer.state_dict()
    groups: list[dict[str, Any]] = []
    for group in state["param_groups"]:
        indices = [order[position] for position in group["params"]]
        like = next((other for other in groups if _own_state(other) == _own_state(group)), None)
        if like is None:
            groups.append({name: value for name, value in group.items() if name != "lr_factor"} | {"params": indices})
        else:
            like["params"] = sorted([*like["params"], *indices])
    return {"state": {order[index]: values for index, values in state["state"].items()}, "param_groups": groups}


def load_ordered_state(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], state: dict[str, Any]) -> None:
    """Load the result of `ordered_state`; groups keep their weight decay and learning rate.

    Raises:
        ValueError: the state is that of other parameters, or of another optimizer.
    """
    saved_group = {index: group for group in state["param_groups"] for index in group["params"]}
    if set(saved_group) != set(range(len(parameters))):
        raise ValueError(f"it trains {len(saved_group)} weights instead of {len(parameters)}")
    if set(_own_state(state["param_groups"][0])) != set(_own_state(optimizer.param_groups[0])):
        raise ValueError("a different optimizer")
    order = _order(optimizer, parameters)
    groups = []
    for group in optimizer.state_dict()["param_groups"]:
        of_the_run = {name: group[name] for name in _OF_THE_RUN if name in group}
        groups.append(saved_group[order[group["params"][0]]] | of_the_run)
    values = {index: state["state"][position] for index, position in enumerate(order) if position in state["state"]}
    optimizer.load_state_dict({"state": values, "param_groups": groups})


def _order(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[int]:
    """For each parameter of the optimizer, in the order of its groups, its index in `parameters`."""
    index_of = {id(parameter): index for index, parameter in enumerate(parameters)}
    return [index_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _own_state(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in _OF_THE_RUN}


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """The learning rate to set at `step` (from 0) of `steps`. The schedule-free optimizer does its own warmup."""
    return optim.peak_lr * (lr_factor(step, steps, optim) if optim.name == "adam" else 1.0)


def lr_factor(step: int, steps: int, optim: OptimConfig) -> float:
    """Fraction of the peak learning rate at `step` (from 0) of `steps`: linear warmup, then cosine decay."""
    warmup = max(1, round(optim.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return optim.final + (1 - optim.final) * 0.5 * (1 + math.cos(math.pi * done))
