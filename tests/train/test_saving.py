"""Checkpoints written in the background, and weights written one at a time."""

import errno
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_clap import tiny_clap
from torch import nn

from atk.models.clap import CLAP
from atk.models.saved import find_checkpoint
from atk.train import checkpoint
from atk.train.saving import CheckpointWriter, distinct_weights, write_weights


def writer(tmp_path, background=True):
    return CheckpointWriter(SimpleNamespace(out=str(tmp_path), async_save=background, timeout=10.0), sharded=False)


def state(step, **more):
    return {"step": step, "best": 0.0, **more}


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_holds_the_moment_of_the_save(tmp_path, background):
    model = tiny_clap()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {0: {"exp_avg": torch.ones(3)}}
    with writer(tmp_path, background) as checkpoints:
        checkpoints.save(model, 1, state(1, optimizer=moments), best=False)
        if background:
            with torch.no_grad():
                for value in (*model.parameters(), moments[0]["exp_avg"]):
                    value.zero_()
    last = find_checkpoint(tmp_path / "checkpoints", "last")
    loaded = CLAP.from_pretrained(last).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    saved = torch.load(last / "training.pt", weights_only=True)
    assert torch.equal(saved["optimizer"][0]["exp_avg"], torch.ones(3))


def test_training_continues_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    model, reached, go_on = tiny_clap(), threading.Event(), threading.Event()
    save = torch.save

    def save_later(*arguments):
        reached.set()
        assert go_on.wait(60)
        save(*arguments)

    with writer(tmp_path) as checkpoints:
        checkpoints.save(model, 1, state(1), best=False)
        checkpoints.wait()
        monkeypatch.setattr(torch, "save", save_later)
        checkpoints.save(model, 2, state(2), best=True)
        assert reached.wait(60)
        checkpoints.check()  # returns at once
        # What a kill at this moment would leave.
        assert checkpoint.load_state(tmp_path / "checkpoints")["step"] == 1
        assert checkpoint.last_whole_checkpoint(tmp_path / "checkpoints").resolve().name == "step-00000001"
        go_on.set()
        checkpoints.save(model, 3, state(3), best=False)  # waits for the one before
        assert find_checkpoint(tmp_path / "checkpoints", "best").resolve().name == "step-00000002"
    assert checkpoint.load_state(tmp_path / "checkpoints")["step"] == 3


@pytest.mark.parametrize("found_by", ["check", "save", "wait", "end"])
def test_a_failure_in_the_background_ends_the_run(tmp_path, monkeypatch, found_by):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    model, checkpoints = tiny_clap(), writer(tmp_path)
    checkpoints.save(model, 1, state(1), best=False)
    checkpoints.wait()
    monkeypatch.setattr(torch, "save", fail)
    checkpoints.save(model, 2, state(2), best=False)
    calls = {
        "check": checkpoints.check,
        "save": lambda: checkpoints.save(model, 3, state(3), best=False),
        "wait": checkpoints.wait,
        "end": lambda: checkpoints.__exit__(None, None, None),
    }
    if found_by == "check":
        checkpoints.pool.shutdown()
    with pytest.raises(OSError, match=r"step-00000002: cannot be saved \(.*space.*\); checkpoints left: step-00000001"):
        calls[found_by]()
    assert checkpoint.load_state(tmp_path / "checkpoints")["step"] == 1
    assert not list((tmp_path / "checkpoints").glob(".partial-*"))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.words.weight
        self.norm = nn.BatchNorm1d(3)  # with a scalar buffer of integers
        self.part = nn.Parameter(torch.randn(2, 3).bfloat16().T)
        self.register_buffer("mask", torch.tensor([True, False, True]))


def test_a_file_of_weights_is_that_of_safetensors(tmp_path):
    model = Tied()
    weights = distinct_weights(model)
    assert set(model.state_dict()) - set(weights) == {"out.weight"}
    write_weights(tmp_path / "weights", weights)
    loaded = load_file(tmp_path / "weights")
    assert loaded.keys() == weights.keys()
    for name, value in weights.items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name], value), name


def test_a_full_disk_leaves_no_rank_waiting(tmp_path, monkeypatch):
    gathered = []
    monkeypatch.setattr("atk.train.saving.full_tensor", lambda value: gathered.append(value) or value)
    weights = distinct_weights(Tied())
    with pytest.raises(FileNotFoundError):
        write_weights(tmp_path / "missing" / "weights", weights)
    assert len(gathered) == len(weights)  # all ranks must take part
