"""All calls of public ops that ptx_machine executes, and their comparison with float64."""

from typing import NamedTuple

import pytest
import torch
from ptx_machine import Machine, active
from support.executed_attention import ATTENTION
from support.executed_case import Case, Inputs
from support.executed_info_nce import INFO_NCE
from support.executed_max_mean import COMPOSED, EDGES, SIMILARITY
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CAPABILITIES = {"sm_80": (8, 0), "sm_90": (9, 0)}
CASES = {case.name: case for case in (*SIMILARITY, *COMPOSED, *EDGES, *ATTENTION, *INFO_NCE)}
# Where the cases that are not executed everywhere are executed.
_SOME = {("bf16", "sm_90"), ("fp32", "sm_80")}


def combinations():
    """(case, dtype, GPU) by name of everything that is executed."""
    for name, case in CASES.items():
        for dtype in DTYPES:
            for arch in CAPABILITIES:
                if case.everywhere or (dtype, arch) in _SOME:
                    yield name, dtype, arch


def parametrized(*fast: tuple[str, str, str]):
    """Parametrizes a test over all combinations; all but the fast ones are exhaustive."""
    params = []
    for name, dtype, arch in combinations():
        marks = [] if (name, dtype, arch) in fast else [pytest.mark.exhaustive]
        values = CASES[name], DTYPES[dtype], CAPABILITIES[arch]
        params.append(pytest.param(*values, id=f"{name}-{dtype}-{arch}", marks=marks))
    return pytest.mark.parametrize(("case", "dtype", "capability"), params)


class Executed(NamedTuple):
    """Results of a case, their errors and those of the reference in the same dtype, and the machine."""

    results: Inputs
    errors: dict[str, float]
    reference_errors: dict[str, float]
    machine: Machine

    def inaccurate(self) -> list[str]:
        """Results with more than four times the reference's error and a few units in the last place."""
        lines = []
        for name, error in self.errors.items():
            units = 64 if name == "grad scale" else 2  # the gradient of the scale is a sum of terms that cancel
            bound = 4 * self.reference_errors[name] + units * torch.finfo(self.results[name].dtype).eps
            if not error <= bound:
                lines.append(f"{name}: error {error:.1e}, bound {bound:.1e}")
        return lines


def execute(case: Case, dtype: torch.dtype, capability: tuple[int, int], **options) -> Executed:
    """Executes a case, all warps of a CTA in lockstep unless `options` of `active` say otherwise."""
    with active(capability, **{"lockstep": True} | options) as machine:
        results = case.run("triton", dtype)
    truth = case.run("reference", dtype, torch.float64)
    reference = case.run("reference", dtype)
    return Executed(results, _errors(results, truth), _errors(reference, truth), machine)


def _errors(results: Inputs, truth: Inputs) -> dict[str, float]:
    return {name: _error(result, truth[name]) for name, result in results.items()}


def _error(result: Tensor, truth: Tensor) -> float:
    """The largest error relative to the largest value; inf if NaN or infinities differ."""
    result, finite = result.double(), truth.isfinite()
    if not torch.equal(result.nan_to_num(1.0, 2.0, 3.0)[~finite], truth.nan_to_num(1.0, 2.0, 3.0)[~finite]):
        return float("inf")
    if not result[finite].isfinite().all():
        return float("inf")
    if not finite.any():
        return 0.0
    return ((result - truth)[finite].abs().max() / truth[finite].abs().max().clamp(min=1e-30)).item()
