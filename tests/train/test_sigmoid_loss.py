"""`loss.kind sigmoid`: its terms as equations, complete and resumed runs, and what the log says."""

import pytest
import torch
import yaml
from support.runs import arguments, rows, semisupervised_task, training_state

import atk
from atk.cli.main import main
from atk.train.aligned import AlignedConfig, AlignedTask, LossConfig

SIGMOID = ["--loss.kind", "sigmoid", "--loss.learnable", "null"]


@pytest.mark.slow
def test_a_run_learns_scale_and_bias_and_resumes(tiny_data, tmp_path):
    out = tmp_path / "run"
    main(arguments(tiny_data, out, *SIGMOID, "--steps", "4", "--micro-batch", "2"))
    main(arguments(tiny_data, out, *SIGMOID, "--steps", "5", "--micro-batch", "2", "--resume"))
    training = [row for row in rows(out) if "loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5]
    for row in training:
        assert row["loss"] == pytest.approx(row["global"] + row["aligned"], rel=1e-5)
        assert row["logit_scale"] == pytest.approx(10, abs=0.2) and row["logit_bias"] == pytest.approx(-10, abs=0.02)
    assert len({row["logit_bias"] for row in training}) == 5
    config = yaml.safe_load((out / "config.yaml").read_text())["loss"]
    assert (config["kind"], config["temperature"], config["bias"]) == ("sigmoid", None, -10.0)
    assert set(training_state(out)["criterion"]) == {"log_logit_scale", "logit_bias"}


def test_resuming_with_another_loss_is_refused_in_one_line(tiny_run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "aligned", "--out", str(tiny_run), "--resume", "--steps", "13", "--loss.kind", "sigmoid"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "has a different optimizer, loss or mapper" in error and error.count("\n") == 1


def test_defaults_are_those_of_the_loss():
    info_nce, sigmoid = LossConfig(), LossConfig("sigmoid")
    assert (info_nce.starting_from(None, None).temperature, info_nce.learns) == (0.2, False)
    assert (*sigmoid.starting_from(None, None), sigmoid.learns) == (0.1, -10.0, True)
    given = LossConfig("sigmoid", temperature=0.5, learnable=False)
    assert (given.starting_from(None, None).temperature, given.learns) == (0.5, False)
    with pytest.raises(ValueError, match="reduction must be 'sum' for the sigmoid loss"):
        LossConfig("sigmoid", reduction="mean")


def test_the_terms_of_semisupervised_training_are_sigmoid_losses(tiny_data, noises, tmp_path):
    task = semisupervised_task(
        tiny_data, noises, tmp_path, loss__kind="sigmoid", loss__learnable="null", loss__bias=-5.0
    )
    embeddings = task.encode(next(iter(task.batches(0))))
    total, terms = task.loss_of(embeddings)
    for name, value in terms.items():
        unit = [torch.nn.functional.normalize(embeddings[f"{name} {side}"], dim=-1) for side in ("audio", "text")]
        torch.testing.assert_close(value, atk.sigmoid_loss(*unit, 10.0, -5.0))
    assert len(terms) == 3
    torch.testing.assert_close(total, sum(terms.values()))
    assert {name: value.item() for name, value in task.readings().items()} == pytest.approx(
        {"logit_scale": 10, "logit_bias": -5}
    )
    total.backward()
    assert task.criterion.info_nce.logit_bias.grad.abs() > 0


def test_an_aligned_task_without_the_key_keeps_info_nce(tiny_data, tmp_path):
    config = AlignedConfig(
        str(tiny_data), str(tmp_path / "run"), batch_size=4, clip_seconds=0.5, workers=0, device="cpu"
    )
    criterion = AlignedTask(config, torch.device("cpu")).criterion
    assert criterion.loss == "info_nce" and set(criterion.state_dict()) == {"log_logit_scale"}
    assert criterion.logit_scale.item() == pytest.approx(5)
