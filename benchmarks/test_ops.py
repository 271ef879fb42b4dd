"""Every provider of every op under pytest-benchmark: `pytest benchmarks`, `pytest benchmarks -k "info_nce and atk"`.

Each result is compared with float64 before its provider is timed. The saved file's `extra_info` has the error and the
peak memory.
"""

import importlib
from functools import lru_cache

import pytest
import torch

from atk.bench import sizes
from atk.bench.measure import MISSING, OUT_OF_MEMORY, check

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=1)
def case_and_truth(op, size, mode):
    torch.manual_seed(0)
    torch.compiler.reset()  # torch limits the number of recompilations
    (shape,) = sizes.shapes(op, size)
    case = importlib.import_module(f"atk.bench.{op}").case(shape, mode, torch.float32, DEVICE)
    return case, case.truth()


def cases():
    for op in sizes.NAMED:
        for mode in importlib.import_module(f"atk.bench.{op}").MODES:
            names = [provider.name for provider in case_and_truth(op, "tiny", mode)[0].providers]
            for size in ("tiny", sizes.SHORT[op][0]):
                for name in names:
                    yield pytest.param(op, size, mode, name, id=f"{op}-{size}-{mode}-{name}")


@pytest.mark.parametrize(("op", "size", "mode", "name"), cases())
def test_provider(benchmark, op, size, mode, name):
    case, truth = case_and_truth(op, size, mode)
    (provider,) = (provider for provider in case.providers if provider.name == name)
    row = check(provider, case, truth)
    if row.status in (MISSING, OUT_OF_MEMORY):
        pytest.skip(f"{row.status}: {row.note}")
    assert row.status == "ok", f"{row.status}: {row.note}"
    benchmark.group = case.title
    benchmark.extra_info.update(error=row.error, peak_mib=row.peak_mib)
    call = provider.call if DEVICE.type == "cpu" else synchronized(provider.call)
    benchmark.pedantic(call, case.inputs, rounds=3)


def synchronized(call):
    def timed(*inputs):
        call(*inputs)
        torch.cuda.synchronize()

    return timed
