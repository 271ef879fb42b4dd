"""Marks and fixtures of all tests.

Every test starts from the same seed, and uninitialized memory is filled with NaN or the largest integer. `tiny_data` is
a data folder of tones, `tiny_run` the finished run folder of a tiny model trained on it.
"""

import contextlib
import csv
import gc
import os
import sys

import numpy as np
import pytest
import torch
from support.runs import CONFIG, arguments

# cuBLAS is deterministic only with a fixed workspace.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
FROZEN = {"modules": 0}
if os.environ.get("TRITON_INTERPRET") == "1":
    with contextlib.suppress(ImportError):  # without triton, its cases are skipped
        from support.interpreter import patch_once

        patch_once()


@pytest.hookimpl(tryfirst=True)  # before -m selects tests
def pytest_collection_modifyitems(items):
    for item in items:
        if runs_triton_backend(item):
            item.add_marker("triton")


def pytest_runtest_logstart():
    """Exempt the objects of imported modules from garbage collection, which takes a second if it visits them all."""
    if len(sys.modules) > FROZEN["modules"] + 100:
        gc.collect()
        gc.freeze()
        FROZEN["modules"] = len(sys.modules)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


def runs_triton_backend(item) -> bool:
    case = getattr(item, "callspec", None)
    return case is not None and case.params.get("backend") == "triton"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    os.environ["ATK_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def seeded_and_poisoned():
    # Without a GPU, torch.manual_seed would record the whole stack in each test, to seed a GPU later.
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(0)
    if not torch.are_deterministic_algorithms_enabled():  # turned on once, as that takes as long as a small test
        torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def triton_cases_run_on_the_gpu(request):
    if not runs_triton_backend(request.node) or not torch.cuda.is_available():
        yield
        return
    with torch.device("cuda"):
        yield


NOTES = {"low": 220, "middle": 660, "high": 1980}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Tones and their captions: 12 to train on, 4 to validate, 6 to test."""
    import soundfile  # not installed on every machine that tests the kernels
    import yaml

    folder = tmp_path_factory.mktemp("data set")
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 6)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", "caption"])
            for index in range(count):
                name = list(NOTES)[index % 3]
                samples = np.arange(int(16000 * draw.uniform(0.4, 0.9)))
                tone = 0.5 * np.sin(2 * np.pi * NOTES[name] * draw.uniform(0.9, 1.1) / 16000 * samples)
                soundfile.write(folder / f"{split} {index}.wav", tone, 16000)
                rows.writerow([f"{split} {index}.wav", f"a {name} tone number {index}"])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory):
    from atk.cli.main import main

    out = tmp_path_factory.mktemp("runs") / "whole"
    main(arguments(tiny_data, out))
    return out
