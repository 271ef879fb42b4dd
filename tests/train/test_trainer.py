"""The training loop: logged rates, the best checkpoint, and compiled encoders."""

import math
from types import SimpleNamespace

import pytest
import torch
from support.runs import arguments, rows, weights

from atk.cli.main import main
from atk.train.aligned import AlignedTask


def test_the_logged_rate_excludes_validation(tiny_data, tmp_path, monkeypatch):
    clock = [0.0]
    encode = AlignedTask.encode

    def encode_in_a_second(self, batch):
        clock[0] += 1
        return encode(self, batch)

    def validate_in_a_minute(self):
        clock[0] += 60
        return {"mAP@10": 0.0}

    monkeypatch.setattr("atk.train.trainer.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(AlignedTask, "encode", encode_in_a_second)
    monkeypatch.setattr(AlignedTask, "validate", validate_in_a_minute)
    main(arguments(tiny_data, tmp_path / "run", "--steps", "6"))
    training = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert [row["examples_per_second"] for row in training] == [4.0] * 6
    assert [row["seconds"] for row in training] == [1, 2, 3, 4, 65, 66]


def test_a_nan_validation_is_never_the_best(tiny_data, tmp_path, monkeypatch):
    metrics = iter([math.nan, 30.0, math.nan])
    monkeypatch.setattr(AlignedTask, "validate", lambda self: {"mAP@10": next(metrics)})
    main(arguments(tiny_data, tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / "best").readlink().name == "step-00000008"


@pytest.mark.exhaustive
def test_compiled_encoders_train_about_the_same(tiny_run, tiny_data, tmp_path, monkeypatch):
    graphs = []

    def compile_briefly(module):  # the default compiler takes minutes
        module._compiled_call_impl = torch.compile(module._call_impl, backend=count)

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", compile_briefly)
    main(arguments(tiny_data, tmp_path / "run", "--compile", "true", "--steps", "2"))
    losses = [[row["loss"] for row in rows(run) if "loss" in row][:2] for run in (tmp_path / "run", tiny_run)]
    assert graphs and losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert weights(tmp_path / "run").keys() == weights(tiny_run).keys()
