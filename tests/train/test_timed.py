"""Training with timed captions: the terms, gradient caching, exact resume, several ranks, and early errors."""

import csv
import json
import random
import shutil

import pytest
import torch
from support.processes import start_ranks
from support.runs import arguments, kill_at_a_random_moment, parsed_config, rows, training_state, weights
from support.training_ranks import BATCH

from atk.cli.main import main
from atk.train import grad_cache
from atk.train.aligned import AlignedConfig, AlignedTask, LossConfig

CPU = torch.device("cpu")
TIMED = (
    "--loss.timed-weight", "1", "--loss.frame-weight", "0.5",
    "--loss.timed-captions", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def timed_data(tiny_data, tmp_path_factory):
    """`tiny_data`, whose clips have none to three timed captions."""
    folder = shutil.copytree(tiny_data, tmp_path_factory.mktemp("timed") / "data")
    with (folder / "events.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "event", "phrase", "start", "end"])
        for clip in range(12):
            for part in range(clip % 4):
                text = f"tone {(clip + part) % 5}"
                table.writerow([f"train {clip}.wav", "tone", text, 0.1 * part, 0.1 * part + 0.15])
    return folder


def make_task(command):
    values = parsed_config(command)
    return AlignedTask(AlignedConfig(**{name: values[name] for name in AlignedConfig.__dataclass_fields__}), CPU)


def gradients(task, parts):
    torch.manual_seed(0)
    loss, terms = grad_cache.backward(task, parts, CPU, lambda: torch.autocast("cpu", enabled=False))
    modules = task.model, task.criterion
    grads = [value.grad for module in modules for value in module.parameters() if value.grad is not None]
    return loss, terms, grads


def test_parts_give_the_step_of_the_whole_batch(timed_data, tmp_path):
    command = arguments(timed_data, tmp_path / "run", "--batch-size", "12", "--clip-seconds", "1", *TIMED)
    results = []
    for size in (12, 5):
        task = make_task(command)
        for module in (task.model, task.criterion):
            module.double().eval()
        batch = next(task.batches(0))
        assert any(timed.left_out for timed in batch.timed) and any(not timed.captions for timed in batch.timed)
        results.append(gradients(task, [*batch.split(size), None] if size == 5 else [batch]))
    (loss, terms, whole), (loss_of_parts, _, parts) = results
    assert list(terms) == ["global", "aligned", "timed", "frames"]
    expected = terms["global"] + terms["aligned"] + terms["timed"] + 0.5 * terms["frames"]
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(loss_of_parts, loss)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits(timed_data, tmp_path, capsys):
    command, parts = (arguments(timed_data, tmp_path / name, "--micro-batch", "3", *TIMED) for name in "ab")
    main(command)
    assert "train: 18 timed captions of 9 of 12 clips" in capsys.readouterr().err
    kill_at_a_random_moment(parts, tmp_path / "b", random.Random(0))
    main([*parts, "--resume"])
    first, second = (weights(tmp_path / name) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    criterion, resumed = (training_state(tmp_path / name)["criterion"] for name in "ab")
    assert criterion == resumed
    assert set(criterion) == {"log_logit_scale", "timed.log_frame_scale", "timed.frame_bias"}
    training = [row for row in rows(tmp_path / "b") if "loss" in row]
    assert len({row["frame_bias"] for row in training}) == 12
    assert any(row["timed"] > 0 for row in training) and any(row["frames"] > 0 for row in training)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
@pytest.mark.parametrize("loss", ["info_nce", pytest.param("sigmoid", marks=pytest.mark.exhaustive)])
def test_two_ranks_take_the_step_of_one(timed_data, tmp_path, loss):
    command = arguments(timed_data, tmp_path / "a", "--batch_size", str(BATCH), *TIMED, "--loss.kind", loss)
    job = start_ranks(2, "support.training_ranks:run_steps", 2, str(tmp_path), [command])
    assert job.wait(600) == 0, job.output
    errors = [line for rank in range(2) for line in json.loads((tmp_path / f"{rank}.json").read_text())]
    assert not errors, "\n".join(errors)


def test_a_folder_without_timed_captions_is_refused(tiny_data, tmp_path):
    with pytest.raises(ValueError, match=r"no training clip has a timed caption; looked for them in .*events\.csv"):
        make_task(arguments(tiny_data, tmp_path / "run", "--loss.timed-weight", "1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timed_weight": -1.0}, "timed_weight must be at least 0"),
        ({"timed_captions": 0}, "timed_captions must be at least 1"),
        ({"frame_temperature": 0.0}, "frame_temperature must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**options)
