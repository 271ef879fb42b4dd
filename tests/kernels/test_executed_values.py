"""The compiled Triton kernels, executed by ptx_machine, against float64: values, gradients, and no faults."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from support.executed import execute, parametrized
from support.triton_cases import needs_compiler

pytestmark = needs_compiler


@parametrized(
    ("max-mean, 32 channels", "bf16", "sm_90"),
    ("attention, 3 x 33 x 40, 2 heads of 20, NaN in padding", "fp16", "sm_80"),
    ("InfoNCE, 70 pairs, 33 channels", "fp32", "sm_80"),
)
def test_values_and_gradients_match_float64_without_faults(case, dtype, capability):
    assert not execute(case, dtype, capability).inaccurate()
