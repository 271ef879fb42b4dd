"""Memory in the benchmarks: lower bounds, peaks of a call, and the limit of a container."""

from pathlib import Path

import pytest
import torch

from atk.bench import aligned_train_step, cross_attention_difference, info_nce, max_mean_similarity, memory, sizes

CPU = torch.device("cpu")


def peak_of(provider, inputs):
    provider.call(*inputs)
    return memory.peak_bytes(provider.call, inputs, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("mode", max_mean_similarity.MODES)
def test_the_lower_bound_is_at_most_the_peak_of_a_call(mode):
    case = max_mean_similarity.case(sizes.Pairs(64, 64, 250, 32, 16), mode, torch.float32, CPU)
    known = [provider for provider in case.providers if provider.needs_bytes and "compile" not in provider.name]
    assert [provider.name for provider in known] == ["naive einsum", "atk reference"]
    for provider in known:
        assert not peak_of(provider, case.inputs) < 0.95 * provider.needs_bytes  # NaN if the system does not report it


@pytest.mark.slow
def test_the_lower_bound_for_logits_is_at_most_the_peak_of_a_call():
    case = info_nce.case(sizes.Vectors(2048, 16), "step", torch.float32, CPU)
    for provider in case.providers:
        if provider.needs_bytes and not provider.missing:
            assert not peak_of(provider, case.inputs) < 0.95 * provider.needs_bytes


def test_the_peak_includes_the_gradients_of_weights():
    attention = cross_attention_difference.case(sizes.Attention(1, 4, 1024, 2), "step", torch.float32, CPU)
    step = aligned_train_step.case(sizes.Batch(2, 0.1), "step", torch.float32, CPU)
    weights = {4 * (4 * 1024**2 + 4 * 1024): attention, (step.nbytes - step.inputs[0].nbytes) / 2: step}
    for nbytes, case in weights.items():
        for provider in (case.providers[0], case.providers[-1]):
            assert not peak_of(provider, case.inputs) < 0.95 * nbytes


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not report its memory")
def test_free_memory_respects_the_container(monkeypatch, tmp_path):
    host_bytes = memory.free_bytes(CPU)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 300000\n")
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    assert memory.free_bytes(CPU) == 400000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) > 0.5 * host_bytes
