"""The environment variables that a launcher sets."""

import pytest
import torch

from atk.device import launcher_integer, pick_device
from atk.ops.backend import choose
from atk.train.ranks import process_group

CPU = torch.device("cpu")


@pytest.mark.parametrize("value", [None, "", " "])
def test_empty_variables_count_as_not_set(monkeypatch, value):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ATK_BACKEND"):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value.strip() if name == "ATK_BACKEND" else value)
    assert launcher_integer("LOCAL_RANK", 3) == 3 and pick_device("cpu") == CPU
    with process_group(CPU, 10.0):
        assert not torch.distributed.is_initialized()
    assert choose("auto", CPU, torch.float64) == "chunked"


@pytest.mark.parametrize("value", ["two", "-1", "1.0", "²"])
def test_invalid_values_are_named(monkeypatch, value):
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(ValueError, match=rf"WORLD_SIZE: the environment variable must be an integer .* got '{value}'"):
        pick_device("cpu")


def test_each_rank_takes_its_own_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="use 'cuda', got 'cuda:0'"):
        pick_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="local rank 2 needs a GPU of its own, but torch sees only 2"):
        pick_device("auto")


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_missing_variable_is_named_if_there_are_several_ranks(monkeypatch, missing):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, "" if name == missing else value)
    with pytest.raises(
        ValueError, match=rf"WORLD_SIZE is set, but {missing} is not; start several ranks with torchrun"
    ):
        process_group(CPU, 10.0).__enter__()
