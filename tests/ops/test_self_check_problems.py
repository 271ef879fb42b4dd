"""The small problems of the self-check: right backends pass, any mistake is noticed, and rounding is not one."""

import types

import pytest
import torch
from support.public_cases import TRITON_DEVICE

import atk
from atk.ops import self_check
from atk.ops import self_check_problems as small
from atk.ops.backend import BACKENDS, KERNEL_DTYPES, unavailable

CPU = torch.device("cpu")
COMPARED = [(op, name) for op in BACKENDS for name in BACKENDS[op] if name != "reference"]


@pytest.mark.parametrize(("op", "backend"), COMPARED)
def test_right_backends_pass_with_tolerance_to_spare(op, backend):
    device = TRITON_DEVICE if backend == "triton" else CPU
    for dtype in KERNEL_DTYPES:
        if backend == "triton" and device.type == "cpu" and dtype == torch.bfloat16:
            continue  # the interpreter computes wrong products
        if unavailable(backend, device, dtype) is not None:
            pytest.skip(f"{backend} cannot run here")
        rows = self_check.check(op, backend, device, dtype)
        assert len(rows) >= 4 and self_check.describe(rows) is None
        assert all(row.error < row.tolerance / 2 for row in rows)


@pytest.mark.parametrize("op", dict(COMPARED))
def test_a_mistake_in_any_result_is_noticed(op):
    for dtype in KERNEL_DTYPES:
        truth = small.run(op, "reference", CPU, dtype, torch.float64)
        similar = small.run(op, "reference", CPU, dtype)
        assert self_check.describe(small.deviations(similar, similar, truth)) is None
        for name, value in similar.items():
            largest = value.abs().argmax()
            for wrong in (0.0, torch.nan, torch.inf):
                results = {other: result.clone() for other, result in similar.items()}
                results[name].view(-1)[largest] = wrong
                assert self_check.describe(small.deviations(results, similar, truth)).startswith(f"{name} is off by")


def test_no_frame_has_two_tokens_that_rounding_could_swap():
    for problem in small.problems("max_mean_similarity")[:2]:
        audio, text = (problem.inputs[name].nan_to_num(0) for name in ("audio", "text"))
        for dtype in KERNEL_DTYPES:
            scores = torch.einsum("atd,bld->abtl", audio.to(dtype).double(), text.to(dtype).double())
            if (mask := problem.inputs.get("text_mask")) is not None:
                scores = scores.masked_fill(~mask[None, :, None], -torch.inf)
            first, second = scores.topk(2).values.unbind(-1)
            valid = first.isfinite() & (first != 0)
            assert (first - second)[valid].min() > 1e-5


@pytest.mark.parametrize(("op", "backend"), COMPARED)
def test_the_default_dtype_changes_nothing(op, backend):
    device = TRITON_DEVICE if backend == "triton" else CPU
    if unavailable(backend, device, torch.float32) is not None:
        pytest.skip(f"{backend} cannot run here")
    wanted = small.run(op, backend, device, torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        results = small.run(op, backend, device, torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in results.items():
        assert value.dtype == wanted[name].dtype and torch.equal(value, wanted[name]), name


def test_a_gpu_is_known_by_its_name_capability_and_the_versions(monkeypatch):
    triton = pytest.importorskip("triton")
    properties = types.SimpleNamespace(name="NVIDIA X100", major=13, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    self_check.Gpu.of.cache_clear()
    gpu = self_check.Gpu.of(0)
    self_check.Gpu.of.cache_clear()
    assert str(gpu) == (
        f"NVIDIA X100, compute capability 13.0, triton {triton.__version__}, torch {torch.__version__}, "
        f"atk {atk.__version__}"
    )


@pytest.mark.parametrize("step", ["reference", "comparison"])
def test_a_failure_around_the_kernels_says_nothing_about_them(monkeypatch, step):
    def fail(*_):
        raise RuntimeError("no\nroom")

    if step == "comparison":
        monkeypatch.setattr(self_check, "run", lambda *_: [])
    monkeypatch.setattr(self_check, "run" if step == "reference" else "deviations", fail)
    with pytest.raises(self_check.UncheckedError, match="no room"):
        self_check.check("info_nce", "chunked", CPU, torch.float32)
