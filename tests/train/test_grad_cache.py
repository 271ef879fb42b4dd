"""Gradient caching: a batch in parts gives the step of the whole batch, even with dropout, noise, and autocast."""

import contextlib
import json
import random

import pytest
import torch
from support.runs import arguments, difference_arguments, kill_at_a_random_moment, parsed_config, rows, weights
from support.runs import semisupervised_arguments as semi_arguments
from support.runs import semisupervised_task as semi_task
from torch import nn

from atk.cli.main import main
from atk.models.audio import AudioEncoderConfig
from atk.models.clap import ModelConfig
from atk.models.text import TextEncoderConfig
from atk.train import grad_cache
from atk.train.aligned import AlignedConfig, AlignedTask, LossConfig
from atk.train.difference import DifferenceConfig, DifferenceTask

CPU = torch.device("cpu")


def aligned_task(data, out, options=None, **loss):
    audio = AudioEncoderConfig(mel_bins=16, channels=(4, 4, 8, 8), width=32, layers=1, heads=2, dropout=0.2)
    model = ModelConfig(16, audio, TextEncoderConfig(width=32, layers=1, heads=2, dropout=0.2))
    config = AlignedConfig(
        str(data), str(out), batch_size=8, clip_seconds=0.5, workers=0, device="cpu", model=model,
        loss=LossConfig(learnable=True, **loss), **options or {},
    )  # fmt: skip
    return AlignedTask(config, CPU)


def gradients(task):
    parameters = [*task.model.named_parameters(), *task.criterion.named_parameters()]
    grads = {name: None if value.grad is None else value.grad.clone() for name, value in parameters}
    task.model.zero_grad()
    task.criterion.zero_grad()
    return grads


def with_one_graph(task, parts, autocast=contextlib.nullcontext):
    """The loss and gradients from the same parts and random numbers, but with the graphs of all parts kept."""
    torch.manual_seed(5)
    with autocast():
        encoded = [task.encode(part) for part in parts]
    joined = {}
    for name in dict.fromkeys(name for part in encoded for name in part):
        values = [part[name] for part in encoded if name in part]
        longest = max(value.shape[1] for value in values)
        padded = [torch.cat([v, v.new_zeros(len(v), longest - v.shape[1], *v.shape[2:])], 1) for v in values]
        joined[name] = torch.cat(padded)
    with autocast():
        loss, _ = task.loss_of(joined)
    loss.backward()
    return loss.detach(), gradients(task)


def cached(task, parts, autocast=contextlib.nullcontext):
    torch.manual_seed(5)
    loss, _ = grad_cache.backward(task, parts, CPU, autocast)
    return loss.detach(), gradients(task)


def check(task, batch, micro_batch, dtype):
    task.model.to(dtype).train()
    task.criterion.to(dtype).train()
    parts = batch.split(micro_batch)
    assert len(parts) > 1
    loss, grads = cached(task, parts)
    expected_loss, expected = with_one_graph(task, parts)
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 2e-5}
    torch.testing.assert_close(loss, expected_loss, **tolerance)
    for name, value in expected.items():
        assert (grads[name] is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(grads[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    assert sum(value is not None and bool(value.any()) for value in grads.values()) > 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", [{}, {"aligned_weight": 0.0}, {"kind": "sigmoid", "bias": -3.0, "skip_below": 0.05}])
def test_aligned_gradients_are_those_of_the_whole_batch_with_dropout(tiny_data, tmp_path, dtype, loss):
    task = aligned_task(tiny_data, tmp_path / "run", **loss)
    check(task, next(iter(task.batches(0))), 3, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
def test_semisupervised_gradients_are_those_of_the_whole_batch(tiny_data, noises, tmp_path, dtype, mapper):
    task = semi_task(tiny_data, noises, tmp_path, mapper__kind=mapper, loss__mix_weight=0.7)
    check(task, next(iter(task.batches(0))), 3, dtype)


def test_fewer_captioned_than_unlabeled_clips(tiny_data, noises, tmp_path):
    task = semi_task(tiny_data, noises, tmp_path)
    batch = next(iter(task.batches(0)))
    batch.labeled = batch.labeled.rows(0, 2)
    check(task, batch, 2, torch.float64)


def test_parts_equal_the_whole_without_dropout(tiny_data, tmp_path):
    task = aligned_task(tiny_data, tmp_path / "run")
    task.model.double()
    task.criterion.double()
    task.model.eval()
    batch = next(iter(task.batches(0)))
    loss, grads = cached(task, batch.split(3))
    expected_loss, _ = task.loss_of(task.encode(batch))
    expected_loss.backward()
    torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-6, atol=0)  # spectrograms are float32
    for name, value in gradients(task).items():
        if value is not None:
            torch.testing.assert_close(grads[name], value, rtol=1e-4, atol=1e-6)


def test_gradients_reach_every_weight_under_autocast(tiny_data, tmp_path):
    task = aligned_task(tiny_data, tmp_path / "run")
    batch = next(iter(task.batches(0)))

    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    _, grads = cached(task, batch.split(3), autocast)
    _, expected = with_one_graph(task, batch.split(3), autocast)
    for name, value in expected.items():
        if value is not None:
            assert (grads[name] - value).norm() <= 0.02 * value.norm() + 1e-6, name


def test_batch_normalization_counts_each_part_once():
    class Task:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        criterion = nn.Identity()

        def encode(self, batch):
            return {"z": self.model(batch)}

        def loss_of(self, embeddings):
            return embeddings["z"].square().sum(), {}

    task, parts = Task(), [torch.randn(5, 3), torch.randn(4, 3)]
    grad_cache.backward(task, parts, CPU, contextlib.nullcontext)
    norm = task.model[1]
    assert norm.num_batches_tracked == 2
    running_mean = norm.running_mean.clone()
    norm.reset_running_stats()
    for part in parts:
        task.model(part)
    torch.testing.assert_close(running_mean, norm.running_mean)


@pytest.mark.slow
def test_a_run_with_micro_batches_has_the_losses_of_a_run_without_them(tiny_data, tmp_path):
    no_dropout = ["--model.audio.dropout", "0", "--model.text.dropout", "0", "--steps", "4"]
    main(arguments(tiny_data, tmp_path / "whole", *no_dropout))
    main(arguments(tiny_data, tmp_path / "parts", *no_dropout, "--micro-batch", "3"))
    losses = [[row["loss"] for row in rows(tmp_path / run) if "loss" in row] for run in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert json.loads((tmp_path / "parts" / "summary.json").read_text())["steps"] == 4


@pytest.mark.slow
def test_a_killed_run_with_micro_batches_resumes_to_the_same_bits(tiny_data, noises, tmp_path):
    more = ["--micro-batch", "3"]
    main(semi_arguments(tiny_data, noises, tmp_path / "whole", *more))
    out = tmp_path / "killed"
    kill_at_a_random_moment(semi_arguments(tiny_data, noises, out, *more), out, random.Random(4))
    main(["train", "semisupervised", "--out", str(out), "--resume"])
    expected = weights(tmp_path / "whole")
    assert {name for name, value in weights(out).items() if not torch.equal(value, expected[name])} == set()


def test_activation_checkpointing_changes_no_bit(tiny_data, tmp_path):
    main(arguments(tiny_data, tmp_path / "whole", "--steps", "3"))
    main(arguments(tiny_data, tmp_path / "again", "--steps", "3", "--activation-checkpointing", "true"))
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(expected[name], value) for name, value in weights(tmp_path / "again").items())


def test_activation_checkpointing_keeps_fewer_activations(tiny_data, tmp_path):
    def saved_elements(**options):
        task = aligned_task(tiny_data, tmp_path / "run", options=options)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nelement()) or x, lambda x: x):
            task.loss_of(task.encode(next(iter(task.batches(0)))))
        return sum(sizes)

    assert saved_elements(activation_checkpointing=True) < 0.7 * saved_elements()


@pytest.mark.slow
def test_a_captioner_accumulates_the_gradient_of_the_whole_batch(scenes, tmp_path, monkeypatch):
    values = parsed_config(difference_arguments(scenes, tmp_path / "run", "--batch-size", 6))
    config = DifferenceConfig(**{name: values[name] for name in DifferenceConfig.__dataclass_fields__})
    task = DifferenceTask(config, CPU)
    task.model.eval()  # batch normalization and dropout would see the parts
    batch = next(iter(task.batches(0)))
    whole, _ = grad_cache.backward(task, [batch], CPU, contextlib.nullcontext)
    expected = gradients(task)
    encoded = []
    encode = task.encode
    monkeypatch.setattr(task, "encode", lambda part: encoded.append(len(part)) or encode(part))
    parts, _ = grad_cache.backward(task, batch.split(4), CPU, contextlib.nullcontext)
    assert encoded == [4, 2]
    torch.testing.assert_close(parts, whole)
    for name, grad in gradients(task).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
