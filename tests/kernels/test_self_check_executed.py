"""The self-check of the compiled Triton kernels, executed by ptx_machine: they pass, and a planted mistake does not."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from ptx_machine import active
from support.triton_cases import needs_compiler

from atk.kernels import sigmoid
from atk.ops import self_check
from atk.ops.backend import BACKENDS

pytestmark = [needs_compiler, pytest.mark.exhaustive]
CPU = torch.device("cpu")


@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), torch.bfloat16), ((8, 0), torch.float32)])
@pytest.mark.parametrize("op", BACKENDS)
def test_compiled_kernels_pass(op, capability, dtype):
    with active(capability, lockstep=True) as machine:
        rows = self_check.check(op, "triton", CPU, dtype)
    assert machine.report.launches and self_check.describe(rows) is None
    assert all(row.error < row.tolerance / 2 for row in rows)


def test_a_kernel_that_forgets_the_last_column_is_wrong(monkeypatch):
    forward = sigmoid.forward
    monkeypatch.setattr(sigmoid, "forward", lambda audio, text, *rest: forward(audio, text[:-1].contiguous(), *rest))
    with active((9, 0), lockstep=True):
        mistake = self_check._check_in_thread("sigmoid_loss", CPU, torch.bfloat16)
    assert mistake.startswith("losses 1 is off by ")
