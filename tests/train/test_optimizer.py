"""The learning-rate schedule, and which weights decay."""

import copy
from dataclasses import replace

import pytest
import torch
from support.tiny_captioner import tiny as tiny_captioner
from support.tiny_clap import tiny_clap
from torch import nn

from atk.nn import AlignedContrastiveLoss
from atk.train.config import OptimConfig
from atk.train.optimizer import (
    load_ordered_state,
    lr_factor,
    make_optimizer,
    ordered_state,
    parameter_groups,
    without_decay,
)


def test_schedule_warms_up_and_decays():
    optim = OptimConfig(warmup=0.1, final=0.01)
    factors = [lr_factor(step, 100, optim) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == 1.0 == max(factors)
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[-1] < 0.02


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3)
        self.words = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm([4, 3])
        self.attention = nn.MultiheadAttention(4, 2)
        self.position_bias_table = nn.Parameter(torch.ones(5, 2))
        self.temperature = nn.Parameter(torch.ones(()))
        self.cls = nn.Parameter(torch.ones(4))


DECAYED = {"conv.weight", "words.weight", "attention.in_proj_weight", "attention.out_proj.weight"}


def test_norms_biases_and_the_temperature_do_not_decay():
    layers = Layers()
    spared = {id(parameter) for parameter in without_decay([layers])}
    assert {name for name, parameter in layers.named_parameters() if id(parameter) not in spared} == DECAYED


@pytest.mark.parametrize("make", [tiny_clap, tiny_captioner])
def test_all_weights_of_a_model_decay_except_those_of_norms(make):
    model, loss = make(), AlignedContrastiveLoss()
    spared = {id(parameter) for parameter in without_decay([model, loss])}
    for module in (*model.modules(), loss):
        for name, parameter in module.named_parameters(recurse=False):
            decays = name.endswith("weight") and not isinstance(module, (nn.LayerNorm, nn.BatchNorm1d))
            assert (id(parameter) in spared) is not decays, f"{type(module).__name__}.{name}"


def step(optimizer, parameters):
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, 0.1 * (index + 1))
    optimizer.step()


@pytest.mark.parametrize("name", ["adam", "schedulefree"])
def test_the_saved_state_does_not_depend_on_the_groups(name):
    optim = OptimConfig(name=name, lr=0.1, weight_decay=0.5, warmup=0.0)
    layers = Layers()
    parameters = list(layers.parameters())
    grouped = make_optimizer(parameter_groups(parameters, without_decay([layers])), optim, 10)
    assert [len(group["params"]) for group in grouped.param_groups] == [len(DECAYED), len(parameters) - len(DECAYED)]
    step(grouped, parameters)
    state = copy.deepcopy(ordered_state(grouped, parameters))
    assert list(state["param_groups"][0]["params"]) == list(range(len(parameters)))
    for index, parameter in enumerate(parameters):
        assert state["state"][index]["exp_avg_sq"].shape == parameter.shape
    again = copy.deepcopy(layers)
    same = list(again.parameters())
    resumed = make_optimizer(parameter_groups(same, without_decay([again])), optim, 10)
    load_ordered_state(resumed, same, state)
    for optimizer, values in ((grouped, parameters), (resumed, same)):
        step(optimizer, values)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(same, parameters, strict=True))
    # The state has a single group, as in older versions; the groups that it is loaded into keep their weight decay.
    single = make_optimizer(
        [{"params": list(copy.deepcopy(layers).parameters())}], replace(optim, weight_decay=0.2), 10
    )
    load_ordered_state(single, single.param_groups[0]["params"], state)
    assert single.param_groups[0]["weight_decay"] == 0.2
    assert [group["weight_decay"] for group in resumed.param_groups] == [0.5, 0.0]


def test_only_the_weights_shrink_without_a_gradient():
    layers = Layers()
    before = {name: parameter.detach().clone() for name, parameter in layers.named_parameters()}
    parameters = list(layers.parameters())
    optim = OptimConfig(lr=0.1, weight_decay=0.5, warmup=0.0)
    optimizer = make_optimizer(parameter_groups(parameters, without_decay([layers])), optim, 10)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in layers.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5 if name in DECAYED else 1)
        torch.testing.assert_close(parameter.detach(), expected)
