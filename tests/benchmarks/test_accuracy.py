"""Which results the benchmarks accept: every real provider, and none with a gradient that is slightly wrong."""

import importlib
import math
from dataclasses import replace

import pytest
import torch

from atk.bench import sizes
from atk.bench.accuracy import Tolerance, mistake, rounded_inputs, rounded_scores
from atk.bench.measure import MISSING, OK, WRONG, check

CPU = torch.device("cpu")
HALF = [torch.bfloat16, torch.float16]


def scaled(gradient):
    return 1.05 * gradient


def without_rows(gradient):
    """`gradient` with 5 % of its nonzero rows set to zero."""
    rows = gradient.reshape(-1, gradient.shape[-1] if gradient.ndim > 1 else 1).clone()
    nonzero = rows.abs().sum(1).nonzero().flatten()
    rows[nonzero[::20]] = 0
    return rows.view(gradient.shape)


def with_gradients(provider, change):
    """`provider` with `change` applied to all its gradients."""

    def call(*inputs):
        value, *gradients = provider.call(*inputs)
        return value, *(change(gradient) if gradient.ndim else gradient for gradient in gradients)

    return replace(provider, call=call)


def case_of(op, dtype):
    torch.manual_seed(0)
    mode = "ragged_step" if op == "aligned_info_nce" else "step"
    return importlib.import_module(f"atk.bench.{op}").case(sizes.NAMED[op]["tiny"], mode, dtype, CPU)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("op", sizes.NAMED)
def test_a_slightly_wrong_gradient_is_refused_from_every_provider(op, dtype):
    case = case_of(op, dtype)
    truth = case.truth()
    providers = [
        provider
        for provider in case.providers
        if not provider.missing and not provider.name.startswith("torch.compile")
    ]
    assert len(providers) >= 2
    for provider in providers:
        assert check(provider, case, truth).status == OK, provider.name
        for change in (scaled, without_rows):
            row = check(with_gradients(provider, change), case, truth)
            assert row.status == WRONG and "gradient" in row.note, (provider.name, change.__name__, row.note)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("op", ["info_nce", pytest.param("aligned_info_nce", marks=pytest.mark.slow)])
def test_a_wrong_gradient_of_the_logit_scale_is_refused(op, dtype):
    case = case_of(op, dtype)
    truth = case.truth()
    (provider,) = (provider for provider in case.providers if provider.name == "atk reference")

    def call(*inputs):
        *results, d_scale = provider.call(*inputs)
        return *results, 1.05 * d_scale

    row = check(replace(provider, call=call), case, truth)
    assert row.status == WRONG and row.note.startswith("error of gradient 3")


def results(value=1.0, gradient=None, scale=0.5):
    return [torch.tensor([value, 1.0]), torch.ones(40, 8) if gradient is None else gradient, torch.tensor(scale)]


def truths():
    return [value.double() for value in results()]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_value_may_be_off_by_two_units_in_the_last_place_of_its_type(dtype):
    eps = torch.finfo(dtype).eps
    for tolerance in (rounded_inputs(dtype, gradient=1e-2), rounded_scores(dtype)):
        assert mistake(results(value=1 - 1.9 * eps), truths(), tolerance) == ""
        assert mistake(results(value=1 - 2.1 * eps), truths(), tolerance).startswith("error ")
        assert mistake(results(value=math.nan), truths(), tolerance).startswith("error is nan")


def test_gradients_are_compared_by_entry_norm_and_direction():
    tolerance = Tolerance(gradient=0.1)
    gradient = torch.ones(40, 8)
    gradient[0, 0] = 0.8
    assert mistake(results(gradient=gradient), truths(), tolerance).startswith("error of gradient 1 is ")
    assert mistake(results(gradient=torch.full((40, 8), 1.02)), truths(), tolerance) == (
        "error of the norm of gradient 1 is 0.02, above 0.01"
    )
    turned = torch.ones(40, 8)
    turned[::2] = 1.08
    turned[1::2] = 0.92
    assert mistake(results(gradient=turned), truths(), tolerance).startswith("cosine of gradient 1 is 0.99")
    for wrong in (0.0, math.nan, math.inf):
        gradient = torch.full((40, 8), wrong)
        assert mistake(results(gradient=gradient), truths(), replace(tolerance, gradient=math.inf))


def test_the_error_of_a_scale_gradient_is_relative_to_the_loss_if_the_loss_is_larger():
    tolerance = replace(rounded_scores(torch.bfloat16), norm=0.01)
    assert mistake(results(scale=0.509), truths(), tolerance) == ""
    assert mistake(results(scale=0.511), truths(), tolerance).startswith("error of gradient 2 ")


def test_float32_is_held_to_the_same_bound_everywhere():
    assert rounded_inputs(torch.float32, gradient=5e-2) == rounded_scores(torch.float32) == Tolerance()
    assert Tolerance().value == Tolerance().gradient == 1e-4


def test_missing_libraries_are_not_checked():
    case = case_of("info_nce", torch.float32)
    row = check(replace(case.providers[0], missing="not installed"), case, [])
    assert (row.status, row.note) == (MISSING, "not installed")
