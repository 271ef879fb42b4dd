"""Every test starts from the same seed, and uninitialised memory is poisoned: NaN, or the largest integer."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded_and_poisoned():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
