"""The compiled Triton kernels, executed by ptx_machine: results are the same bits in any order of warps and CTAs."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from ptx_machine import active
from support.executed import CASES
from support.triton_cases import assert_equal, needs_compiler

pytestmark = needs_compiler
BOTH = pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
RECOMPUTED = [
    "max-mean, 32 channels",
    "max-mean, chunked captions",
    "max-mean, packed, every length class",
    "max-mean, pairs",
    "max-mean, pairs, chunked",
    "max-mean, ties, 9 tokens",
]
SCHEDULED = [
    ("max-mean, 32 channels", BF16),
    ("max-mean, chunked captions", BF16),
    ("max-mean, pairs", FP32),
    ("max-mean, normalized, 100 channels", FP16),
    ("aligned InfoNCE, pairs skipped", BF16),
    ("attention, 2 x 20 x 70, 1 heads of 64, no bias", FP16),
    ("attention, 2 x 17 x 65, 3 heads of 5", FP32),
    ("InfoNCE, 70 of 200 captions", BF16),
    ("InfoNCE, 70 pairs, 33 channels", FP32),
]


def run(name, dtype, capability, save_index=None, **options):
    chosen = {} if save_index is None else {"save_index": save_index}
    with active(capability, **options):
        return CASES[name].run("triton", dtype, **chosen)


@pytest.mark.exhaustive
@BOTH
@pytest.mark.parametrize("name", RECOMPUTED)
def test_saved_and_recomputed_winners_give_the_same_bits(name, capability):
    saved, recomputed = (run(name, BF16, capability, save_index=save, lockstep=True) for save in (True, False))
    assert_equal(recomputed.values(), saved.values())


@pytest.mark.exhaustive
@BOTH
@pytest.mark.parametrize(("name", "dtype"), SCHEDULED, ids=str)
def test_any_schedule_gives_the_same_bits(name, dtype, capability):
    lockstep = run(name, dtype, capability, lockstep=True)
    for options in ({"seed": 1}, {"seed": 2, "eager": True}):
        assert_equal(run(name, dtype, capability, **options).values(), lockstep.values())


@pytest.mark.exhaustive
@BOTH
@pytest.mark.parametrize("name", ["max-mean, 20 clips", "InfoNCE, 150 pairs, 64 channels"])
def test_a_large_gpu_is_as_accurate(name, capability):
    """The work is split into more parts, so the bits may differ."""
    large, small = (run(name, FP32, capability, lockstep=True, multiprocessors=count) for count in (132, 1))
    for value, target in zip(large.values(), small.values(), strict=True):
        torch.testing.assert_close(value, target, rtol=0, atol=2e-6 * target.abs().max().item())
